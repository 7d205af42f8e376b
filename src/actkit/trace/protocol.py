"""The fair comparison of localizers: the same pairs, held against exact patching and truth.

Each seed divides a task's pairs anew: on one half every method scores the network's parts, and
is held against exact activation patching of the same half; on the other half its strongest heads
must answer alone. Networks whose circuits are known say whether it finds what is there.

Shapes: L layers, H heads, B pairs.
"""

import inspect
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from actkit.catalog import Entry
from actkit.catalog import methods as entries
from actkit.core.edits.edit import swap
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.protocol import Comparison, Measure
from actkit.trace._base import Localizer
from actkit.trace._edges import EdgeLocalizer
from actkit.trace._parts import Parts
from actkit.trace._scores import Scores
from actkit.trace._task import Task, Trial
from actkit.trace.tasks import TASKS, as_task

PAIRS = 6
"""Pairs in each half, at most."""
TOP = 10
"""How many of the strongest heads are compared with those of exact patching."""
SIZES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares of the heads that must answer alone."""
KINDS = {"heads": "heads", "MLPs": "mlp", "stream": "resid"}
"""The component kinds that are held against exact patching, and the parts of each."""


@dataclass
class RandomScores(Localizer):
    """The control: normal numbers for scores.

    Args:
        parts: What is scored.
        seed: Of the numbers.
    """

    parts: str | Parts = "heads"
    seed: int = 0

    def _score(self, trial: Trial, parts: Parts) -> Tensor:
        length = trial.length if "position" in parts.axes else 0
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(parts.shape(trial.model, length), generator=generator)


class TraceProtocol(Comparison):
    """Agreement with exact patching, faithfulness of circuits, known circuits, seconds."""

    metrics: ClassVar = (
        Measure("agreement, heads", better="higher"),
        Measure("time", "s", log=True),
        Measure("agreement, MLPs", better="higher"),
        Measure("agreement, stream", better="higher"),
        Measure("top heads shared", better="higher"),
        Measure("faithfulness", better="higher"),
        Measure("AUC", better="higher"),
    )
    tasks: ClassVar = tuple(TASKS)
    on_model: ClassVar = True

    def methods(self, task: Any) -> Mapping[str, Any]:
        """Return every localizer that needs no settings, and the random control."""
        found = {e.name: e.load() for e in entries("trace") if _takes_part(e)}
        return {**found, "random": RandomScores}

    def chosen(self, task: Any, methods: Any = None) -> dict[str, Any]:
        """Return the methods to compare, by default the quick ones; a task may be a user's own."""
        as_task(task)
        known = super().chosen(task, methods)
        return known if methods is not None else {n: m for n, m in known.items() if m.quick}

    def measure(self, method: Any, task: Any, model: Model | None, seed: int) -> dict[str, float]:
        """Score one half of the pairs, and hold the scores against patching and the other half.

        Args:
            method: A localizer, or a class of one that needs no settings.
            task: A bundled task's name or a `Task`.
            model: The network.
            seed: Divides the pairs.
        """
        return self.round(task, model, seed)(method)

    def round(self, task: Any, model: Model | None, seed: int) -> "_Round":
        """Return what measures methods on the same halves of the pairs."""
        return _Round(task, model, seed)


@dataclass
class _Round:
    """One seed: the halves of the pairs and exact patching of the first, which all methods share.

    Both are made when the first method asks; what cannot be made is refused to each of them.
    """

    task: Any
    model: Model | None
    seed: int

    @cached_property
    def halves(self) -> tuple[Trial, Trial]:
        """Return the half that is scored, and the one that the strongest heads must answer."""
        if self.model is None:
            raise InputError("localizers are compared on a network, got none: pass a model")
        scored, held = _halves(as_task(self.task), self.seed)
        return scored.on(self.model), held.on(self.model)

    @cached_property
    def exact(self) -> dict[str, Tensor]:
        """Return exact patching of each kind of parts."""
        scored, _ = self.halves
        patch = next(e for e in entries("trace") if e.name == "patch").load()
        lengths = scored.valid("corrupt").sum(-1)
        kinds = KINDS if bool((lengths == lengths[0]).all()) else {"heads": "heads"}
        return {k: patch(p)(scored.model, scored).values for k, p in kinds.items()}

    def __call__(self, method: Any) -> dict[str, float]:
        """Return one value for the name of each metric."""
        (scored, held), exact = self.halves, self.exact
        model = scored.model
        made = method() if isinstance(method, type) else method
        own = replace(made, seed=self.seed) if isinstance(made, RandomScores) else made
        started = time.perf_counter()
        found = {"heads": by_head(asked(own, "heads")(model, scored)).values}
        seconds = time.perf_counter() - started
        found |= {
            kind: asked(own, KINDS[kind])(model, scored).values
            for kind in exact
            if kind != "heads" and KINDS[kind] in own.kinds
        }
        agreement = {
            f"agreement, {kind}": correlation(found[kind], exact[kind])
            if kind in found and kind in exact
            else math.nan
            for kind in KINDS
        }
        return {
            **agreement,
            "time": seconds,
            "top heads shared": shared_top(found["heads"], exact["heads"]),
            "faithfulness": fmean(faithfulness(held, found["heads"])),
            "AUC": _auc(own, self.seed),
        }


def by_head(scores: Scores) -> Scores:
    """Return scores of heads, (L, H); a head's score is the sum over the edges that leave it."""
    if scores.axes == ("layer", "head"):
        return scores
    of_sender = scores.values.nansum(0).tolist()
    named = [name.split() for name in scores.names[1]]
    both = zip(named, of_sender, strict=True)
    heads = {tuple(map(int, name[1].split("."))): v for name, v in both if name[0] == "head"}
    layers, width = (max(axis) + 1 for axis in zip(*heads, strict=True))
    values = [[heads.get((b, h), 0.0) for h in range(width)] for b in range(layers)]
    names = [[str(i) for i in range(n)] for n in (layers, width)]
    return replace(scores, values=torch.tensor(values), names=names, axes=("layer", "head"))


def shared_top(scores: Tensor, exact: Tensor, num: int = TOP) -> float:
    """Return the share of exact patching's strongest parts that are among a method's."""
    num = min(num, scores.numel())
    top, want = ({*x.flatten().abs().topk(num).indices.tolist()} for x in (scores, exact))
    return len(top & want) / num


def faithfulness(trial: Trial, scores_LH: Tensor) -> list[float]:
    """Return what share of the gap is left where only the strongest heads answer.

    All other heads have what they have in the corrupt run; one entry for each of `SIZES`.
    """
    names = [f"z.{b}" for b in range(len(scores_LH))]
    other = trial.source("corrupt", names)
    order = scores_LH.flatten().abs().argsort(descending=True, stable=True)
    variants = []
    for share in SIZES:
        out = torch.ones(scores_LH.numel(), dtype=torch.bool)
        out[order[: max(1, round(share * len(out)))]] = False
        out_LH = out.view(scores_LH.shape)
        variants.append(
            [
                swap(name, other, Where(heads=own.nonzero()[:, 0].tolist()))
                for name, own in zip(names, out_LH, strict=True)
                if own.any()
            ]
        )
    mean_V = trial.sweep(variants, onto="clean").mean(-1)
    return [float(m - trial.corrupt_values.mean()) / trial.gap for m in mean_V]


def _halves(task: Task, seed: int) -> tuple[Task, Task]:
    """Divide a task's pairs, at most `PAIRS` in each half."""
    order = list(range(len(task)))
    Random(seed).shuffle(order)
    middle = min(PAIRS, len(order) // 2)
    if not middle:
        raise InputError(f"a comparison needs at least 2 pairs, got {len(order)}")
    return task[order[:middle]], task[order[middle : 2 * middle]]


def correlation(scores: Tensor, exact: Tensor) -> float:
    """Return Pearson's correlation; of sizes where a method's scores have no sign.

    It is 0 where a method says the same of every part.
    """
    exact = exact if (scores < 0).any() else exact.abs()
    pair = torch.stack([scores.flatten(), exact.flatten()]).double()
    return float(torch.corrcoef(pair)[0, 1].nan_to_num())


def _auc(localizer: Localizer, seed: int) -> float:
    """Return the mean area under the ROC curve over the networks with known circuits."""
    bench = next(e for e in entries("trace") if e.name == "interpbench").load()

    def of_heads(model: Model, task: Task) -> Scores:
        return by_head(asked(localizer, "heads")(model, task))

    return fmean(bench(of_heads, seed=seed).values())


def asked(localizer: Localizer, parts: str) -> Localizer:
    """Return the localizer asked for some parts; one of edges has no choice."""
    choice = inspect.signature(type(localizer)).parameters
    return replace(localizer, parts=parts) if "parts" in choice else localizer  # type: ignore[type-var]


def _takes_part(entry: Entry) -> bool:
    """Say whether a method is a localizer that needs no settings, from its text alone."""
    localizers = {Localizer.__name__, EdgeLocalizer.__name__}
    return entry.interface in localizers and not entry.required


PROTOCOL = TraceProtocol()
