"""Formal rather than casual language."""

from actkit import data
from actkit.steer._concept import Task

PLACE = 2


def formality() -> Task:
    """Formal rather than casual language."""
    asked = "Write in a formal and polite style."
    return Task("formality", data.formality(), data.openings("formality"), asked)
