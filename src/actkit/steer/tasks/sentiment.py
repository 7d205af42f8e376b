"""Praise rather than blame."""

from actkit import data
from actkit.steer._concept import Concept

PLACE = 0


def sentiment() -> Concept:
    """Praise rather than blame."""
    asked = "Say only good things about everything."
    return Concept("sentiment", data.sentiment(), data.openings("sentiment"), asked)
