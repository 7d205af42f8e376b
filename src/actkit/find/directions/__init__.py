"""Directions of concepts."""
