"""Fewer layers for what needs fewer."""
