"""Readings: statistics of activations that stream and merge."""
