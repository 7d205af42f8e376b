"""Steering by what a network is given."""
