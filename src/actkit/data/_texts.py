"""English text that ships inside the package: 2.4 MB, all of it in the public domain.

The files and their titles, licences and sources are in `files/sources.json`.
"""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from actkit.core.errors import DataError
from actkit.data._readers import How, read

FILES = Path(__file__).parent / "files"


@dataclass(frozen=True, slots=True)
class Text:
    """What one bundled text is and where it comes from."""

    name: str
    title: str
    author: str
    licence: str
    source: str


def texts() -> list[Text]:
    """List the bundled texts with title, author, licence and source.

    Example:
        >>> [(t.name, t.licence) for t in texts()][0]
        ('austen', 'public domain')
    """
    facts = json.loads((FILES / "sources.json").read_text(encoding="utf-8"))
    return [Text(name, **about) for name, about in facts.items()]


def text(name: str = "austen", num_samples: int | None = None) -> list[str]:
    """Return a bundled text as a list of paragraphs, from its beginning.

    Args:
        name: `austen` (two novels, 1.1 MB), `shakespeare` (speeches in verse, 1.1 MB) or
            `thoreau` (an essay, 0.1 MB). All are in the public domain.
        num_samples: How many paragraphs; None for all.

    Raises:
        DataError: there is no such text, or it has fewer paragraphs.

    Example:
        >>> text(num_samples=1)[0][:35]
        'It is a truth universally acknowled'
    """
    known = [t.name for t in texts()]
    if name not in known:
        near = ", ".join(get_close_matches(name, known, n=1, cutoff=0.4) or known)
        raise DataError(f"no bundled text {name!r}; nearest: {near}; all: {', '.join(known)}")
    paragraphs = list(read(FILES / f"{name}.txt.xz", How()))
    if num_samples is None:
        return paragraphs
    if not 1 <= num_samples <= len(paragraphs):
        raise DataError(
            f"num_samples must lie in 1..{len(paragraphs)} for {name!r}, got {num_samples}"
        )
    return paragraphs[:num_samples]
