"""How far a map of patching depends on how it was made: corruption, metric, window, direction.

Shapes: B pairs, T tokens, D width, V variants, C choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit, add, swap
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.maths.statistics import rank_correlations
from actkit.model import Model
from actkit.trace._gradients import sides
from actkit.trace._parts import Parts, as_parts, beside, filled
from actkit.trace._task import Task, Trial

CORRUPTIONS = ("replace", "noise")
METRICS = ("logit difference", "probability", "KL")


@dataclass(frozen=True)
class Choice:
    """One way to patch.

    Attributes:
        corruption: "replace": the task's corrupt prompts, symmetric token replacement; "noise":
            the clean prompts with Gaussian noise on the subject's embeddings.
        metric: As in `Task`, by name.
        window: How many neighbouring layers are patched together; odd.
        direction: "denoise" or "noise".
    """

    corruption: str = "replace"
    metric: str = "logit difference"
    window: int = 1
    direction: str = "denoise"

    def __post_init__(self) -> None:
        """Refuse what is unknown."""
        sides(self.direction)
        if self.corruption not in CORRUPTIONS:
            raise InputError(f"corruption must be of {CORRUPTIONS}, got {self.corruption!r}")
        if self.window < 1 or self.window % 2 == 0:
            raise InputError(f"a window must be odd and at least 1, got {self.window}")

    def __str__(self) -> str:
        """Return the choice in words."""
        return f"{self.corruption}, {self.metric}, window {self.window}, {self.direction}"


CHOICES = tuple(
    Choice(*made) for made in product(CORRUPTIONS, METRICS, (1, 3, 5), ("denoise", "noise"))
)
"""Every combination that the paper compares."""


@dataclass(frozen=True, eq=False)
class Robustness:
    """Maps of one network on one task, made in several ways.

    Attributes:
        choices: The C ways.
        scores: (C, layers, ...) shares of the gap.
        correlations: (C, C) rank correlations between them, NaN where a map is constant.
    """

    choices: Sequence[Choice]
    scores: Tensor
    correlations: Tensor

    def table(self) -> str:
        """Return the rank correlations, one way to patch a line."""
        width = max(len(str(c)) for c in self.choices) + 4
        head = " " * width + "".join(f"{i:6}" for i in range(len(self.choices)))
        rows = enumerate(zip(self.choices, self.correlations.tolist(), strict=True))
        lines = [
            f"{i:2}  {c!s:{width - 4}}" + "".join(f"{r:6.2f}" for r in row) for i, (c, row) in rows
        ]
        return "\n".join([head, *lines])


def robustness(
    model: Model,
    task: Task,
    parts: str | Parts = "heads",
    choices: Sequence[Choice] = CHOICES,
    subject: Where | None = None,
    sigma: float = 3.0,
    seed: int = 0,
) -> Robustness:
    """Patch the parts of a network in several ways and compare the maps by rank.

    Args:
        model: The network.
        task: Pairs of prompts with answers and wrong answers.
        parts: What is patched, as in `Patch`.
        choices: The ways; each costs as much as one map.
        subject: Which tokens get noise; those in which a pair differs if None.
        sigma: Standard deviation of the noise, in those of the embeddings.
        seed: Of the noise.

    Raises:
        InputError: No choice is given, the task has no answers, or noise is given no token.
    """
    if not choices:
        raise InputError("a comparison needs a choice, got none")
    known = as_parts(parts)
    trials = {c.metric: replace(task, metric=c.metric).on(model) for c in choices}
    trial = next(iter(trials.values()))
    noisy = any(c.corruption == "noise" for c in choices)
    noise = [noised(trial, subject, sigma, seed)] if noisy else []
    maps = [_scores(trials[c.metric], known, c, noise) for c in choices]
    shape = known.shape(model, trial.length if "position" in known.axes else 0)
    scores = torch.stack([filled(m, shape) for m in maps])
    return Robustness(choices, scores, rank_correlations(scores.flatten(1)))


def noised(trial: Trial, subject: Where | None = None, sigma: float = 3.0, seed: int = 0) -> Edit:
    """Return the edit that adds Gaussian noise to the subject's embeddings in the clean prompts.

    Each pair has its own draw. The standard deviation is `sigma` times that of all entries of the
    clean prompts' embeddings.

    Raises:
        InputError: No subject is given and pairs do not differ in a token.
    """
    rec = trial.record("clean", "embeddings")
    if subject is None:
        differ = torch.as_tensor(trial.clean.tokens) != torch.as_tensor(trial.corrupt.tokens)
        if not differ.any():
            raise InputError("noise needs a subject: the pairs differ in no token")
        subject = Where(tokens=differ & trial.valid("clean"))
    embeddings = rec["embeddings"]
    spread = rec.flat("embeddings")[0].float().std()
    gen = torch.Generator().manual_seed(seed)
    noise_BTD = torch.randn(embeddings.shape, generator=gen).to(embeddings.device)
    return add("embeddings", noise_BTD * sigma * spread, where=subject)


def _scores(trial: Trial, parts: Parts, choice: Choice, noise: list[Edit]) -> Tensor:
    """Return the share of the gap that patching each part moves."""
    replaces = choice.corruption == "replace"
    edits: dict[str, list[Edit]] = {"clean": [], "corrupt": [] if replaces else noise}
    run = {"clean": "clean", "corrupt": "corrupt" if replaces else "clean"}
    side, onto = sides(choice.direction)
    names = [site.name for site in parts.sites(trial.model)]
    source = trial.source(side, names) if replaces else trial.record(run[side], names, edits[side])
    other, own = (trial.sweep([edits[s]], run[s])[0].mean() for s in (side, onto))
    variants = [
        [*edits[onto], *(swap(p.site, source, p.where) for p in beside(part, names, choice.window))]
        for part in parts.each(trial.model, trial.length if "position" in parts.axes else 0)
    ]
    return (trial.sweep(variants, run[onto]).mean(-1) - own) / (other - own)
