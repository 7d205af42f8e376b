"""Real text, labelled photos and prompt sets that ship with actkit, and loaders for your own data.

Importing this package reads nothing and imports no other library; each loader imports what it
needs, and says what to install if it is missing.
"""

from actkit.data._backcopy import Backcopy, bigram_backcopy
from actkit.data._chunks import chunks
from actkit.data._load import load
from actkit.data._photos import Photos, normalise, photos
from actkit.data._prompts import (
    Cloze,
    Contrast,
    Opening,
    capitals,
    formality,
    ioi,
    openings,
    refusal,
    sentiment,
    split,
    weddings,
)
from actkit.data._samples import Samples
from actkit.data._texts import Text, text, texts

__all__ = [
    "Backcopy",
    "Cloze",
    "Contrast",
    "Opening",
    "Photos",
    "Samples",
    "Text",
    "bigram_backcopy",
    "capitals",
    "chunks",
    "formality",
    "ioi",
    "load",
    "normalise",
    "openings",
    "photos",
    "refusal",
    "sentiment",
    "split",
    "text",
    "texts",
    "weddings",
]
