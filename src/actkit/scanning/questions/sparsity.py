"""How many activations are zero or small, and how many units never fire."""

from collections.abc import Sequence

from actkit.read.streaming.sparsity import Sparsity, SparsityResult
from actkit.scanning.format import count, percent
from actkit.scanning.questions._base import Decode, Question, Told
from actkit.scanning.questions._shared import WITHOUT_FIRST, figure_of, from_lowest_to_highest

SELDOM = 1e-4
"""Share below which activations that are exactly zero do not count."""


def tell(names: Sequence[str], results: Sequence[SparsityResult], _: Decode) -> Told:
    """Tell how many activations are zero or small, and how many units never fire."""
    level = results[0].levels[1]
    widths = [r.active_KD.shape[1] for r in results]
    entries = [r.num_rows * w for r, w in zip(results, widths, strict=True)]
    zeros, small = ([r.below[k] for r in results] for k in (0, 1))
    all_zeros = sum(s * n for s, n in zip(zeros, entries, strict=True)) / sum(entries)
    all_small = value(results)
    if max(zeros) == 0:
        findings = ["No activation is exactly zero."]
    elif all_zeros < SELDOM:
        findings = [f"Fewer than {percent(SELDOM)} of activations are exactly zero."]
    else:
        span = from_lowest_to_highest(names, zeros)
        findings = [f"{percent(all_zeros)} of activations are exactly zero{span}."]
    span = from_lowest_to_highest(names, small)
    findings.append(f"{percent(all_small)} of activations are at most {level:g} in size{span}.")
    findings.append(_dead(names, [r.num_dead[1] for r in results], sum(widths), level))
    figure = figure_of(
        "Small activations",
        names,
        "share of all",
        {f"at most {level:g} in size": small, "exactly zero": zeros},
        percent=True,
    )
    return findings, [figure]


def value(results: Sequence[SparsityResult]) -> float:
    """Return the share of all activations that are small; layers count by their entries."""
    entries = [r.num_rows * r.active_KD.shape[1] for r in results]
    held = sum(r.below[1] * n for r, n in zip(results, entries, strict=True))
    return held / sum(entries)


def _dead(names: Sequence[str], dead: Sequence[int], num_units: int, level: float) -> str:
    total, most = sum(dead), max(dead)
    if not total:
        return f"Every one of {count(num_units, 'unit')} exceeds {level:g} in size on this data."
    where = ""
    if len(dead) > 1:
        share = "" if total == 1 else "all " if total == most else f"{most:,} of them "
        where = f", {share}at layer {names[dead.index(most)]}"
    if most == 1 < total:
        where = ", no two at one layer"
    verb = "exceeds" if total == 1 else "exceed"
    units = count(num_units, "unit")
    return f"{total:,} of {units} never {verb} {level:g} in size on this data{where}."


QUESTION = Question(
    order=20,
    key="sparsity",
    text="How sparse are they?",
    kind="hidden",
    reading=Sparsity,
    tell=tell,
    value=value,
    what="activations of at most 0.1 in size",
    percent=True,
    texts=WITHOUT_FIRST,
)
