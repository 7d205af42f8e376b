"""Whether neurons write what they read (enrichment) or its opposite (depletion)."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from actkit.model import Model
from actkit.read.network.io_functionality import NeuronClasses, io_functionality
from actkit.scanning.format import count, number, percent
from actkit.scanning.questions._base import Decode, Question, Told
from actkit.scanning.questions._shared import figure_of


def tell(names: Sequence[str], results: Sequence[NeuronClasses], _: Decode) -> Told:
    """Tell whether neurons write what they read (enrichment) or its opposite (depletion)."""
    means = [_mean_cosine(r) for r in results]
    total = sum(len(r.class_N) for r in results)
    findings = []
    for kind in ("enrichment", "depletion"):
        counts = [r.counts[kind] + r.counts[f"conditional {kind}"] for r in results]
        where = f", most at layer {names[counts.index(max(counts))]}" if any(counts) else ""
        findings.append(
            f"{sum(counts):,} of {count(total, 'neuron')} "
            f"{'write what they read' if kind == 'enrichment' else 'write the opposite of it'} "
            f"({kind}, conditional or not){where}."
        )
    beyond = torch.cat([r.cosines_N3[:, 0].abs() > r.chance for r in results]).double().mean()
    findings.append(
        f"{percent(float(beyond))} of neurons have a |cosine| above {number(results[0].chance)}, "
        "which 5% of random directions exceed."
    )
    figure = figure_of(
        "Do neurons write what they read?",
        names,
        "cos(reads, writes)",
        {"mean": means, "median": [float(r.cosines_N3[:, 0].nanmedian()) for r in results]},
    )
    findings.append(
        f"The mean cosine of the first half of the layers less that of the last third is "
        f"{number(value(results))}."
    )
    kinds = {k: [r.counts[k] for r in results] for k in results[0].counts if "ortho" not in k}
    return findings, [figure, figure_of("Neurons of each class", names, "number", kinds)]


def value(results: Sequence[NeuronClasses]) -> float:
    """Return the mean cosine of the first half of the layers less that of the last third."""
    means = [_mean_cosine(r) for r in results]
    half, third = max(1, len(means) // 2), max(1, len(means) // 3)
    return fmean(means[:half]) - fmean(means[-third:])


def _mean_cosine(result: NeuronClasses) -> float:
    return float(result.cosines_N3[:, 0].nanmean())


def _measure(model: Model, _: Sequence[Any]) -> list[NeuronClasses]:
    """Return the classes of each layer's neurons: of weights, whatever the data."""
    return [*io_functionality(model).values()]


QUESTION = Question(
    order=90,
    key="neurons",
    text="What do neurons write?",
    kind="gates",
    reading=None,
    tell=tell,
    value=value,
    what="mean cos(reads, writes), first half of the layers less last third",
    note="The cosine between what a gated neuron's linear part reads and what it writes.",
    measure=_measure,
)
