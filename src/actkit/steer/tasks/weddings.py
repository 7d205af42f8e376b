"""Talk about weddings, whatever the subject."""

from actkit import data
from actkit.steer._concept import Task

PLACE = 3


def weddings() -> Task:
    """Talk about weddings, whatever the subject."""
    asked = "Write about a wedding."
    return Task("weddings", data.weddings(), data.openings("weddings"), asked)
