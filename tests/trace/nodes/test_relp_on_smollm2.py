"""Relevance patching on SmolLM2: conserved, cheap, and nearer to patching than plain gradients.

Shapes: L layers, P patched positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.model import Model
from actkit.trace import Task, Trial
from actkit.trace._gradients import with_metric
from actkit.trace._parts import as_parts
from actkit.trace.nodes.attribution_patching import AttributionPatching
from actkit.trace.nodes.relp import RelP
from actkit.trace.nodes.relp._relevance import RULES, propagating
from tests._evidence import Evidence

SENTENCE = "When {} and {} went to the {}, {} gave a {} to"
PAIRS = [("Mary", "John", "store", "drink"), ("Tom", "James", "park", "ball")]
LAYERS = (0, 10, 20, 29)


def trial(m: Model, row: int) -> Trial:
    """Return one pair: the second mention names the one person or the other."""
    a, b, place, thing = PAIRS[row]
    clean, corrupt = (SENTENCE.format(a, b, place, who, thing) for who in (b, a))
    return Task([clean], [corrupt], [f" {a}"], [f" {b}"], name="name mover").on(m)


def sums(task: Trial, layers: Sequence[int], rules: Sequence[str]) -> tuple[list[float], Tensor]:
    """Return the sum of a c at the stream of each layer (of the metric), and the logits."""
    names = [f"resid_pre.{i}" for i in layers]
    with propagating(task.model, rules) as edits:
        rec, value = with_metric(task, "clean", names, edits)
        c = torch.autograd.grad(value.sum(), [rec[n] for n in names])
    shares = [float((rec[n].detach() * g).sum() / value.detach())
              for n, g in zip(names, c, strict=True)]  # fmt: skip
    return shares, rec.logits.detach()


@pytest.mark.paper("relp")
def test_relevance_is_conserved_and_values_stay(smollm2: Model, evidence: Evidence) -> None:
    task = trial(smollm2, 0)
    ruled, logits = sums(task, LAYERS, [*RULES])
    plain, _ = sums(task, LAYERS, ())
    for layer, share in zip(LAYERS, ruled, strict=True):
        what = f"sum of a c at the stream of layer {layer} (of the metric)"
        evidence(what, measured=share, equals=1.0, tolerance=1e-3)
    evidence("the same without rules, furthest from 1", measured=max(abs(s - 1) for s in plain),
             at_least=0.3)  # fmt: skip
    bare = smollm2.run(task.clean, logits=True).logits
    assert bare is not None
    moved = (logits - bare).abs().max()
    evidence("largest change of a logit by the rules", measured=moved, at_most=1e-4)


@pytest.mark.slow
@pytest.mark.paper("relp")
def test_nearer_to_patching_than_gradients(smollm2: Model, evidence: Evidence) -> None:
    for name in ("mlp", "resid"):
        found = torch.tensor([correlations(trial(smollm2, row), name) for row in range(2)])
        relp, plain = found.mean(0).tolist()
        evidence(f"{name}: Pearson r of RelP and patching", measured=relp, at_least=0.8)
        evidence(f"{name}: r of RelP less r of attribution patching", measured=relp - plain,
                 at_least=0.01)  # fmt: skip


def correlations(task: Trial, name: str) -> list[float]:
    """Return Pearson's r with patching, at all layers and from the first token that differs."""
    parts, m = as_parts(name), task.model
    sites = [site.name for site in parts.sites(m)]
    source = task.source("clean", sites)
    positions = range(task.first, task.length)
    variants = [[ak.swap(s, source, ak.Where(tokens=t))] for s in sites for t in positions]
    true = task.recovery(task.sweep(variants))
    scores = [kind(name)(m, task).values[:, task.first :] for kind in (RelP, AttributionPatching)]
    return [float(torch.corrcoef(torch.stack([x.flatten(), true]))[0, 1]) for x in scores]


@contextmanager
def counted(m: Model) -> Iterator[dict[str, int]]:
    """Count passes through the first block, forward and backward."""
    counts = {"forward": 0, "backward": 0}

    def went(_: object, __: object, output: Tensor) -> None:
        counts["forward"] += 1
        if output.requires_grad:
            output.register_hook(came_back)  # type: ignore[no-untyped-call]

    def came_back(_: Tensor) -> None:
        counts["backward"] += 1

    handle = m.module.get_submodule("model.layers.0").register_forward_hook(went)
    try:
        yield counts
    finally:
        handle.remove()


@pytest.mark.paper("relp")
@pytest.mark.parametrize("kind", [RelP, AttributionPatching])
def test_two_forward_and_one_backward_pass(
    smollm2: Model, evidence: Evidence, kind: type[RelP | AttributionPatching]
) -> None:
    task = trial(smollm2, 1)
    task.check()  # reads both sides bare, as any localizer that is given a task
    with counted(smollm2) as passes:
        kind("mlp")(smollm2, task)
    evidence(f"{kind.__name__}: forward passes", measured=passes["forward"], equals=2, tolerance=0)
    evidence(f"{kind.__name__}: backward passes", measured=passes["backward"], equals=1,
             tolerance=0)  # fmt: skip
