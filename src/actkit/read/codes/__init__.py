"""Activations as binary codes."""
