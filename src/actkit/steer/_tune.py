"""Choose the layer and the strength of a method: a sweep, its Pareto front, and the chosen point.

Shapes: B rows of a batch, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from actkit.catalog import get
from actkit.core.as_json import as_json
from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.provenance import stamp
from actkit.core.writing import write_text
from actkit.model import Model
from actkit.steer._base import Steerer
from actkit.steer._concept import Concept
from actkit.steer._measure import divergence, next_logits, perplexity, random_like
from actkit.steer.tasks import as_task

ROWS = 96
"""Rows of one batch: prompts times strengths."""
DRAWS = 10
"""Random vectors that the chosen point is held against."""


@dataclass(frozen=True)
class Budget:
    """What a choice may cost, in looking for it and in what it does.

    Attributes:
        prompts: How many questions of the task to use at most.
        kl: The largest KL to the unedited next-token distribution (nats).
        perplexity: The largest perplexity of written text, as a ratio to the network's own.
        finalists: How many points to write text with at most.
        max_new_tokens: How many tokens to write after each prompt.
    """

    prompts: int = 20
    kl: float = 1.0
    perplexity: float = 2.0
    finalists: int = 4
    max_new_tokens: int = 20


@dataclass(frozen=True)
class Point:
    """One layer and strength.

    Attributes:
        layer: None for methods that choose their sites themselves.
        strength: As in `Steerer.edits`.
        concept: Rise of the concept's log-odds at the next token (nats).
        kl: KL divergence of the unedited next-token distribution from the edited one (nats).
        perplexity: Of written text under the unedited network, as a ratio to that of its own;
            NaN where nothing was written.
    """

    layer: int | None
    strength: float
    concept: float
    kl: float
    perplexity: float = math.nan

    def beats(self, other: "Point") -> bool:
        """Say whether it is as good in both, concept and KL, and better in one."""
        better = self.concept >= other.concept and self.kl <= other.kl
        return better and (self.concept, self.kl) != (other.concept, other.kl)


@dataclass(frozen=True)
class Tuning:
    """What a sweep over layers and strengths found.

    Attributes:
        steerer: The fitted method, acting at the chosen layer.
        points: Every layer and strength.
        chosen: The largest rise of the concept within the bounds on KL and perplexity.
        random: The same rise of random vectors as long as the chosen ones; empty where the
            method does more than add.
        about: Provenance and settings.
    """

    steerer: Steerer
    points: tuple[Point, ...]
    chosen: Point
    random: tuple[float, ...]
    about: dict[str, Any]

    def __repr__(self) -> str:
        """Return the chosen point and how many were tried."""
        return f"Tuning({self.chosen}, {len(self.points)} points tried)"

    def edits(self) -> list[Edit]:
        """Return the edits of the chosen point."""
        return self.steerer.edits(self.chosen.strength)

    def front(self) -> list[Point]:
        """Return the points that no other beats in concept and KL, the cheapest first."""
        best = [p for p in self.points if not any(q.beats(p) for q in self.points)]
        return sorted(best, key=lambda p: p.kl)

    def table(self) -> str:
        """Return the front as Markdown, the chosen point marked with a star."""
        lines = [
            "| layer | strength | concept (nats) | KL (nats) | perplexity ratio |",
            *["|---|---|---|---|---|"],
        ]
        for p in self.front():
            star = (
                " *" if (p.layer, p.strength) == (self.chosen.layer, self.chosen.strength) else ""
            )
            written = "" if math.isnan(p.perplexity) else f"{p.perplexity:.2f}"
            lines.append(
                f"| {'-' if p.layer is None else p.layer}{star} | {p.strength:g} | "
                f"{p.concept:+.2f} | {p.kl:.2f} | {written} |"
            )
        return "\n".join(lines)

    def plot(self, path: str | Path | None = None) -> Any:
        """Return concept against KL, one line a layer; a plotly figure.

        Args:
            path: Also write it there, as a page that opens offline.

        Raises:
            DataError: The file cannot be written.
        """
        import plotly.graph_objects as go
        from plotly.colors import sample_colorscale

        figure = go.Figure()
        layers = list(dict.fromkeys(p.layer for p in self.points))
        for i, layer in enumerate(layers):
            own = [p for p in self.points if p.layer == layer]
            colour = sample_colorscale("Viridis", i / max(len(layers) - 1, 1))[0]
            figure.add_scatter(
                x=[p.kl for p in own],
                y=[p.concept for p in own],
                mode="lines+markers",
                name="" if layer is None else f"layer {layer}",
                line={"color": colour},
                text=[f"strength {p.strength:g}" for p in own],
            )
        figure.add_scatter(
            x=[self.chosen.kl],
            y=[self.chosen.concept],
            mode="markers",
            name="chosen",
            marker={"symbol": "star", "size": 16, "color": "#d62728"},
        )
        figure.update_layout(
            template="plotly_white", title=f"{self.about['settings']['task']}: layers, strengths"
        )
        figure.update_xaxes(title="KL from the unedited next token (nats), lower is better")
        figure.update_yaxes(title="rise of the concept's log-odds (nats), higher is better")
        if path is not None:
            write_text(path, figure.to_html(include_plotlyjs=True))
        return figure

    def to_json(self, path: str | Path | None = None) -> str:
        """Return points, choice and provenance as JSON.

        Args:
            path: Also write it there.

        Raises:
            DataError: The file cannot be written.
        """
        facts = {
            "about": self.about,
            "chosen": asdict(self.chosen),
            "front": [asdict(p) for p in self.front()],
            "points": [asdict(p) for p in self.points],
            "random": list(self.random),
        }
        text = as_json(facts)
        if path is not None:
            write_text(path, text)
        return text


def tune(
    model: Model,
    method: str | Steerer,
    task: str | Concept,
    *,
    layers: Sequence[int] | None = None,
    strengths: Sequence[float] | None = None,
    budget: Budget = Budget(),
) -> Tuning:
    """Choose layer and strength by their effects on held-out prompts.

    Each layer runs all strengths as rows of one batch, and only the next token is looked at;
    text is written for the finalists alone. A point is taken only if its KL and the perplexity
    of its text stay within bounds, and random vectors of its length show what any push of that
    size does.

    Args:
        model: The network.
        method: A method's name, or a steerer, fitted or not; it is fitted on the task's examples.
        task: A bundled task's name, or a task of your own.
        layers: Those to try; all if None. Methods that choose their sites have none.
        strengths: Those to try; the method's own if None.
        budget: How much to try, and the bounds on side effects.

    Raises:
        InputError: No strength, or no point keeps within the bounds.
    """
    task = as_task(task)
    task = replace(task, questions=list(task.questions)[: budget.prompts])
    steerer = get(method)() if isinstance(method, str) else method
    steerer = steerer if steerer.about_ is not None else steerer.fit(model, task.examples)
    grid = list(steerer.grid if strengths is None else strengths)
    if not grid:
        raise InputError("a sweep needs a strength to try, got none")
    bare = _Bare.of(model, task)
    points = []
    for layer in track(_places(model, steerer, layers), "sweeping layers and strengths"):
        points += _points(model, _at(steerer, layer), layer, grid, bare)
    tried = _tried(model, steerer, points, task, budget)
    chosen = next((p for p in tried if p.perplexity <= budget.perplexity), None)
    if chosen is None:
        lowest = min(points, key=lambda p: p.kl)
        raise InputError(
            f"a point must keep to {budget}, none of {len(points)} does; the lowest KL is "
            f"{lowest.kl:.2f} at strength {lowest.strength:g}"
        )
    known = {(p.layer, p.strength): p for p in tried}
    points = [known.get((p.layer, p.strength), p) for p in points]
    moved = _at(steerer, chosen.layer)
    about = stamp(model, **{**(steerer.about_ or {}), **asdict(budget), "task": str(task)})
    return Tuning(moved, tuple(points), chosen, _random(model, moved, chosen, bare), about)


@dataclass(frozen=True)
class _Bare:
    """A task, and what the network answers without edits."""

    task: Concept
    logits_NV: torch.Tensor
    log_odds_N: torch.Tensor

    @classmethod
    def of(cls, model: Model, task: Concept) -> "_Bare":
        logits_NV = next_logits(model, task.prompts)
        return cls(task, logits_NV, task.log_odds(model, logits_NV))


def _places(model: Model, steerer: Steerer, layers: Sequence[int] | None) -> list[int] | list[None]:
    if not hasattr(steerer, "layers"):
        if layers is not None:
            raise InputError(f"{type(steerer).__name__} chooses its sites itself, got {layers!r}")
        return [None]
    return list(range(len(model.sites("resid_post.*")))) if layers is None else list(layers)


def _at(steerer: Steerer, layer: int | None) -> Steerer:
    return steerer if layer is None else steerer.at(layer)


def _points(
    model: Model,
    steerer: Steerer,
    layer: int | None,
    grid: Sequence[float],
    bare: "_Bare",
) -> list[Point]:
    """Return a point for each strength; as many strengths as fit are rows of one batch."""
    task, num, found = bare.task, len(bare.task.questions), []
    at_once = max(1, ROWS // num)
    for start in range(0, len(grid), at_once):
        some = grid[start : start + at_once]
        strengths_B = torch.tensor(some).repeat_interleave(num)
        edits = steerer.edits(strengths_B)
        moved = next_logits(model, task.prompts * len(some), edits, batch_size=len(strengths_B))
        rise = task.log_odds(model, moved) - bare.log_odds_N.repeat(len(some))
        cost = divergence(bare.logits_NV.repeat(len(some), 1), moved)
        for i, strength in enumerate(some):
            own = slice(i * num, (i + 1) * num)
            found.append(Point(layer, strength, float(rise[own].mean()), float(cost[own].mean())))
    return found


def _tried(
    model: Model, steerer: Steerer, points: Sequence[Point], task: Concept, budget: Budget
) -> list[Point]:
    """Write text from the best point on until one is fluent enough; return those tried."""
    within = sorted((p for p in points if p.kl <= budget.kl), key=lambda p: -p.concept)
    tried: list[Point] = []
    if not within:
        return tried
    length = budget.max_new_tokens
    plain = model.generate(task.prompts, max_new_tokens=length)
    own = perplexity(model, task.prompts, plain)
    for point in track(within[: budget.finalists], "writing with the best points"):
        edits = _at(steerer, point.layer).edits(point.strength)
        texts = model.generate(task.prompts, edits=edits, max_new_tokens=length)
        tried.append(replace(point, perplexity=perplexity(model, task.prompts, texts) / own))
        if tried[-1].perplexity <= budget.perplexity:
            break
    return tried


def _random(model: Model, steerer: Steerer, chosen: Point, bare: "_Bare") -> tuple[float, ...]:
    """Return the rise of the concept under random vectors of the same length."""
    edits = steerer.edits(chosen.strength)
    if any(edit.operation.name != "add" for edit in edits):
        return ()
    task = bare.task
    draws = [random_like(edits, seed) for seed in range(DRAWS)]

    def odds(logits_nPV: torch.Tensor) -> torch.Tensor:
        return task.log_odds(model, logits_nPV[:, -1])

    odds_VN = model.sweep(task.prompts, draws, odds)
    rise_VN = odds_VN - bare.log_odds_N.to(odds_VN.device)
    return tuple(float(rise_N.mean()) for rise_N in rise_VN)
