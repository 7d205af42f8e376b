"""Fewer dimensions."""
