"""Formal rather than casual language."""

from actkit import data
from actkit.steer._concept import Concept

PLACE = 2


def formality() -> Concept:
    """Formal rather than casual language."""
    asked = "Write in a formal and polite style."
    return Concept("formality", data.formality(), data.openings("formality"), asked)
