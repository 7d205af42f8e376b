"""Pages that mkdocs makes from what is written elsewhere: methods, and CONTRIBUTING.md."""

from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from actkit.catalog import ARXIV, FAMILIES, Entry, methods
from actkit.papers import papers, standings

REPOSITORY = Path(__file__).parents[1]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the methods of each family between the instrument and the papers."""
    families = [
        {family: [f"methods/{e.family}/{e.name}.md" for e in methods(family)]}
        for family in FAMILIES
        if methods(family)
    ]
    nav: list[Any] = config.nav or []
    config.nav = [*nav[:-3], {"Methods": ["methods/index.md", *families]}, *nav[-3:]]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    pages = {
        "contributing.md": _contributing(),
        "methods/index.md": _index(),
        **{f"methods/{e.family}/{e.name}.md": _method(e) for e in methods()},
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give the wide table of evidence the whole page."""
    if page.file.src_uri == "evidence.md":
        page.meta["hide"] = ["navigation", "toc"]
    return markdown


class Examples(griffe.Extension):
    """Show `Example:` of our docstrings as code, as griffe does with `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section of one object."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")


def _contributing() -> str:
    """Return CONTRIBUTING.md with links as they are among the pages."""
    return (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")


def _index() -> str:
    lines = [f"# Methods\n\n{len(methods())} methods, one file or folder and one source each.\n"]
    for family, purpose in FAMILIES.items():
        if found := methods(family):
            lines += [f"## {family}\n\n{purpose[0].upper()}{purpose[1:]}.\n"]
            lines += [f"- [{e.name}]({e.family}/{e.name}.md): {e.summary}" for e in found]
            lines += [""]
    return "\n".join(lines)


def _method(entry: Entry) -> str:
    source = ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", entry.source)
    lines = [
        f"# {entry.name}\n\n{entry.summary}\n\nSource: {source}.\n",
        f'```python\nak.get("{entry.name}")\n```\n',
        f"::: {entry.module}.{entry.object}\n",
    ]
    answered = [key for key, s in standings().items() if entry.name in s.methods]
    if answered:
        lines.append("## Evidence\n")
    for key in answered:
        standing = standings()[key]
        state = "works" if standing.works else f"not yet ({standing.note})"
        lines += [f"- {papers()[key].title}: {state}", *(f"    - {f}" for f in standing.figures)]
    return "\n".join(lines)
