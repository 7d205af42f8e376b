"""Talk about weddings, whatever the subject."""

from actkit import data
from actkit.steer._concept import Concept

PLACE = 3


def weddings() -> Concept:
    """Talk about weddings, whatever the subject."""
    asked = "Write about a wedding."
    return Concept("weddings", data.weddings(), data.openings("weddings"), asked)
