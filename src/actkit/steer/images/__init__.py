"""Steering of what makes images and fields."""
