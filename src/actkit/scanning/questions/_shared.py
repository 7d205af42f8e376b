"""What questions share: figures over layers, and sentences that several of them tell."""

from collections.abc import Mapping, Sequence
from typing import Any

from actkit.scanning.answer import Figure
from actkit.scanning.format import percent

WITHOUT_FIRST = "The first token of each sample is left out: its activations are unlike all others."


def figure_of(
    title: str,
    names: Sequence[str],
    unit: str,
    series: Mapping[str, Sequence[float]],
    **how: Any,
) -> Figure:
    """Return a figure over layers; the first series is what is drawn of other networks too."""
    values = {name: tuple(map(float, v)) for name, v in series.items()}
    return Figure(
        **{"kind": "lines", **how},
        title=title,
        x=tuple(names),
        x_title="layer",
        y_title=unit,
        series=values,
    )


def from_lowest_to_highest(names: Sequence[str], shares: Sequence[float]) -> str:
    """Return where shares are lowest and highest, "" if they read alike."""
    low, high = min(shares), max(shares)
    if percent(low) == percent(high):
        return ""
    return (
        f", from {percent(low)} at layer {names[shares.index(low)]} to {percent(high)} at layer "
        f"{names[shares.index(high)]}"
    )
