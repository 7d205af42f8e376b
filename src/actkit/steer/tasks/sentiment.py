"""Praise rather than blame."""

from actkit import data
from actkit.steer._concept import Task

PLACE = 0


def sentiment() -> Task:
    """Praise rather than blame."""
    asked = "Say only good things about everything."
    return Task("sentiment", data.sentiment(), data.openings("sentiment"), asked)
