"""Recordings on disk: written once, verified, read in place or shuffled."""

from actkit.store._format import check_dtype
from actkit.store.reader import Store
from actkit.store.writer import StoreWriter

__all__ = ["Store", "StoreWriter", "check_dtype"]
