"""The mathematics of a network's own weights."""
