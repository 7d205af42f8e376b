"""What is told of a network's layers together: paths through them, their neurons, their heads.

As in `findings`, each function takes the labels of the layers and finished readings; where all
layers are read together there is one reading for all labels.
"""

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

import torch

from actkit.read.network.io_functionality import NeuronClasses
from actkit.read.network.ppl_sparsity import PplSparsity
from actkit.read.streaming.extreme_tokens import ExtremeTokens, ExtremeTokensResult
from actkit.read.streaming.stream_dynamics import StreamDynamicsResult
from actkit.read.streaming.voids import VoidsResult
from actkit.scanning.findings import Decode, Told, figure_of
from actkit.scanning.format import count, number, percent

DRAINED = 0.5
"""Length of the first token's values, against the usual, below which they are drained."""
MOSTLY = 0.5
"""Share of tokens below which a layer counts as mostly void."""


def voids(names: Sequence[str], results: Sequence[VoidsResult], _: Decode) -> Told:
    """Tell how many layers add to a token's state, and which ones mostly do not."""
    (result,) = results
    active = result.active_AL[0].tolist()
    void = [i for i, share in enumerate(active) if share < MOSTLY]
    findings = [
        f"{percent(fmean(active))} of a token's layers are active: they make its state longer by "
        f"at least {number(result.alphas[0])} of the range of the layers before them.",
        f"{count(len(void), 'layer')} of {len(names)} {'are' if len(void) != 1 else 'is'} void "
        f"for more than half of the tokens{f': {_runs(names, void)}' if void else ''}.",
    ]
    figure = figure_of(
        "Tokens for which a layer is active", names, "share of tokens",
        {"active": active}, percent=True,
    )  # fmt: skip
    return findings, [figure]


def _runs(names: Sequence[str], chosen: Sequence[int]) -> str:
    """Return chosen layers as spans: "3 to 18, 24"."""
    spans = [
        [i for _, i in run] for _, run in groupby(enumerate(chosen), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(
        names[s[0]] if len(s) == 1 else f"{names[s[0]]} to {names[s[-1]]}" for s in spans
    )


def dynamics(names: Sequence[str], results: Sequence[StreamDynamicsResult], _: Decode) -> Told:
    """Tell how much of the stream goes on from layer to layer, and how fast it moves."""
    (result,) = results
    same, other = (x.nanmean(1).tolist() for x in (result.correlation_PD, result.control_PD))
    velocity = result.velocity_P.tolist()
    fast, slow = velocity.index(max(velocity)), velocity.index(min(velocity))
    findings = [
        f"A unit's value before a layer and after it correlate by {number(continuity(results))} "
        f"over tokens; with another unit's by {number(fmean(other))}.",
        f"The state moves farthest at layer {names[fast]} (a step of {number(velocity[fast])}) "
        f"and least at layer {names[slow]} ({number(velocity[slow])}).",
        f"The cosine between a token's states before and after a layer is "
        f"{number(float(result.cosine_P.mean()))} in the mean, lowest at layer "
        f"{names[int(result.cosine_P.argmin())]} ({number(float(result.cosine_P.min()))}).",
    ]
    figure = figure_of(
        "Correlation of a unit with itself one layer before", names, "Pearson r",
        {"the same unit": same, "another unit": other},
    )  # fmt: skip
    steps = figure_of("Length of a step", names, "L2 norm", {"mean over tokens": velocity},
                      log=max(velocity) > 20 * min(velocity) > 0)  # fmt: skip
    return findings, [figure, steps]


def continuity(results: Sequence[StreamDynamicsResult]) -> float:
    """Return the mean correlation of units with themselves one layer before; layers count alike."""
    return fmean(results[0].correlation_PD.nanmean(1).tolist())


def neurons(names: Sequence[str], results: Sequence[NeuronClasses], _: Decode) -> Told:
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
        "Do neurons write what they read?", names, "cos(reads, writes)",
        {"mean": means, "median": [float(r.cosines_N3[:, 0].nanmedian()) for r in results]},
    )  # fmt: skip
    findings.append(
        f"The mean cosine of the first half of the layers less that of the last third is "
        f"{number(turn(results))}."
    )
    kinds = {k: [r.counts[k] for r in results] for k in results[0].counts if "ortho" not in k}
    return findings, [figure, figure_of("Neurons of each class", names, "number", kinds)]


def _mean_cosine(result: NeuronClasses) -> float:
    return float(result.cosines_N3[:, 0].nanmean())


def turn(results: Sequence[NeuronClasses]) -> float:
    """Return the mean cosine of the first half of the layers less that of the last third."""
    means = [_mean_cosine(r) for r in results]
    half, third = max(1, len(means) // 2), max(1, len(means) // 3)
    return fmean(means[:half]) - fmean(means[-third:])


def needed(names: Sequence[str], results: Sequence[PplSparsity], _: Decode) -> Told:
    """Tell how many neurons a token needs."""
    (result,) = results
    kept = [*result.kept.values()]
    most, least = kept.index(max(kept)), kept.index(min(kept))
    findings = [
        f"With {percent(result.activation_ratio)} of its MLP neurons a token is predicted as well "
        f"but for {percent(result.ratio - 1)} of perplexity.",
        f"Layer {names[most]} needs most of them ({percent(kept[most])}), layer {names[least]} "
        f"fewest ({percent(kept[least])}).",
    ]
    figure = figure_of("Neurons that stay on", names, "share of neurons", {"kept": kept},
                       percent=True)  # fmt: skip
    return findings, [figure]


def extremes(names: Sequence[str], results: Sequence[ExtremeTokensResult], _: Decode) -> Told:
    """Tell how the first token differs: heads that rest on it, its values and its state.

    The paper calls such heads dormant. What they give to other tokens may matter all the same:
    among them are heads that a task needs.
    """
    at_rest = [int(r.dormant_H.sum()) for r in results]
    heads, peaks = sum(len(r.dormant_H) for r in results), [r.peak for r in results]
    drains = [float(r.drain_G.nanmean()) for r in results]
    drained = sum(x < DRAINED for x in drains)
    top = peaks.index(max(peaks))
    findings = [
        f"{percent(heads_at_rest(results))} of heads ({sum(at_rest)} of {heads:,}) rest on the "
        f"first token: it gets more than {percent(ExtremeTokens.threshold)} of their attention.",
        f"Its values are drained, below half the usual length, at {drained} of "
        f"{count(len(results), 'layer')}.",
        f"Its state is {number(peaks[top])} times as long as the median token's at layer "
        f"{names[top]}.",
    ]
    shares = [n / len(r.dormant_H) for n, r in zip(at_rest, results, strict=True)]
    lengths = {"state": peaks, "values": drains}
    return findings, [
        figure_of("Heads that rest on the first token", names, "share of heads",
                  {"at rest": shares}, percent=True),
        figure_of("Length of the first token / median of the others", names, "ratio", lengths,
                  log=max(peaks) > 20 * min(drains) > 0),
    ]  # fmt: skip


def heads_at_rest(results: Sequence[ExtremeTokensResult]) -> float:
    """Return the share of heads that rest on the first token."""
    return fmean(float(x) for r in results for x in r.dormant_H)
