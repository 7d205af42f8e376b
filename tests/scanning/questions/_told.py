"""What is told of layers whose activations are given."""

from typing import Any

import torch
from torch import Tensor

from actkit.core.run.recording import Rows
from actkit.scanning.answer import Page
from actkit.scanning.report import Report


def page(report: Report, key: str) -> Page:
    """Return one page."""
    return next(p for p in report.pages if p.key == key)


def told(tell: Any, reading: Any, *layers: Tensor) -> list[str]:
    """Return the findings on layers whose (samples, positions, ...) activations are given."""
    results = []
    for acts in layers:
        own, rows = reading(), Rows.of(torch.ones(acts.shape[:2], dtype=torch.bool)).flat()
        own.update(acts.flatten(0, 1), rows)
        results.append(own.result())
    sentences: list[str] = tell([f"L{i}" for i in range(len(layers))], results, None)[0]
    return sentences
