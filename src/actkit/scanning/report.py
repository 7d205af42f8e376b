"""What a scan found: pages of figures, numbers and findings; printed, as a page, as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actkit.core.as_json import as_json
from actkit.core.writing import write_text
from actkit.scanning.answer import Page


@dataclass(frozen=True)
class Report:
    """A finished scan.

    Attributes:
        title: What was scanned.
        about: Provenance: data, versions, model, weight hash, settings.
        pages: One for each question.
    """

    title: str
    about: Mapping[str, Any]
    pages: tuple[Page, ...] = ()

    def __repr__(self) -> str:
        """Return the title and the questions; `print` shows what was found."""
        return f"Report({self.title!r}, {', '.join(page.key for page in self.pages)})"

    def print(self) -> None:
        """Print a readable picture in the terminal."""
        from actkit.scanning.terminal import show

        show(self.title, self.about, self.pages)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page that opens offline; return its path.

        Raises:
            DataError: The file cannot be written.
        """
        from actkit.scanning.report_page import render

        return write_text(path, render(self.title, self.about, self.pages))

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the report as JSON, `null` where a number is NaN or infinite.

        Args:
            path: Also write it there.

        Raises:
            DataError: The file cannot be written.
        """
        text = as_json(asdict(self))
        if path is not None:
            write_text(path, text)
        return text
