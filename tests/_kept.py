"""Keeps trained networks on disk, so that workers and runs train each of them once.

What is kept lies in `build/trained`, which git ignores and `make clean` removes.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from actkit.digests import Code

T = TypeVar("T")
FOLDER = Path(__file__).parents[1] / "build" / "trained"


def kept(
    make: Callable[..., T], folder: Path = FOLDER, code: Code | None = None
) -> Callable[..., T]:
    """Return `make` with its results kept on disk.

    A result is found again only under the same source of `make`'s file and of every own file that
    it imports, directly or not, the same arguments, and the same arithmetic: versions of torch,
    transformers and numpy, torch's number of threads and the instructions that it uses.

    Args:
        make: A function of the repository. What it draws from torch's global generator it seeds
            itself: it starts from another state in each test, which comes back as it was.
        folder: Where results are kept.
        code: Where the sources are, by default this repository.
    """

    @wraps(make)
    def found(*args: Any, **settings: Any) -> T:
        facts = [*_sources(make, code or Code()), *_told((args, sorted(settings.items())))]
        facts += [f"{package} {version(package)}" for package in ("torch", "transformers", "numpy")]
        facts += [str(torch.get_num_threads()), torch.backends.cpu.get_cpu_capability()]
        name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
        path = folder / f"{make.__name__}-{name}.pt"
        folder.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be training it; freed if it dies
            if not path.exists():
                part = path.with_suffix(f".{os.getpid()}")
                with torch.random.fork_rng():
                    torch.save(make(*args, **settings), part)
                part.replace(path)
        result: T = torch.load(path, weights_only=False)
        return result

    return found


def _sources(make: Callable[..., object], code: Code) -> Iterator[str]:
    """Yield digests of the files that a function stands on."""
    for module in sorted(code.imported_by(make.__module__)):
        content = (code.root / code.file(module)).read_bytes()
        yield f"{module} {hashlib.sha256(content).hexdigest()}"


def _told(value: object) -> Iterator[str]:
    """Yield arguments as text, of tensors a digest.

    Raises:
        TypeError: An argument is of another kind.
    """
    if isinstance(value, list | tuple):
        yield f"{type(value).__name__} of {len(value)}"
        for part in value:
            yield from _told(part)
    elif isinstance(value, Tensor):
        content = value.detach().contiguous().numpy().tobytes()
        yield f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}"
    elif value is None or isinstance(value, bool | int | float | str):
        yield repr(value)
    else:
        raise TypeError(f"only numbers, texts and tensors say what is kept, got {type(value)}")
