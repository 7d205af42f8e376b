"""Steering that ends in changed weights."""
