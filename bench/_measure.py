"""Paired timings in one process: medians of ratios, with their spread.

Two jobs take turns (A B A B ...), so that a drift of the machine's speed meets both alike.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table of results."""

    name: str
    ratio: float
    low: float
    high: float
    bound: str
    ok: bool
    limit: str
    detail: str = ""


def paired(job: Callable[[], Any], base: Callable[[], Any], repeats: int = 7) -> list[float]:
    """Return time(job) / time(base) of each pair, after one warm-up of both."""
    job(), base()
    ratios = []
    for i in range(repeats):
        first, second = (job, base) if i % 2 else (base, job)
        times = {first: _seconds(first), second: _seconds(second)}
        ratios.append(times[job] / times[base])
    return ratios


def row(name: str, ratios: list[float], bound: str, limit: str, detail: str = "") -> Row:
    """Judge the median of the ratios by a bound such as "<= 1.05"; "" sets none."""
    median = statistics.median(ratios)
    sign, _, number = bound.partition(" ")
    ok = not sign or (median <= float(number) if sign == "<=" else median >= float(number))
    return Row(name, median, min(ratios), max(ratios), bound, ok, limit, detail)


def _seconds(job: Callable[[], Any]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start
