"""What the file system must promise: durable names, one writer, errors that name the file.

Files are opened unbuffered: a buffer that a full disk refused would be written again on closing.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from actkit.core.errors import BusyError, StoreError

if sys.platform != "win32":
    import fcntl


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write all bytes at the file's position; the system may take them in several bites."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


def read_all(file: FileIO, view: memoryview) -> None:
    """Fill the view from the file's position."""
    while view:
        taken = file.readinto(view)
        if not taken:
            raise OSError(f"the file ends {len(view)} bytes early")
        view = view[taken:]


def sync_folder(folder: Path) -> None:
    """Return when the folder's names are on the disk; Windows does that by itself."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(file: FileIO, path: Path) -> None:
    """Refuse a second writer; the lock goes with the process, so a crash leaves none."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(f"a store has one writer at a time, {path} is being written") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into an error that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"cannot write {path}: {reason}; committed shards are intact") from error
