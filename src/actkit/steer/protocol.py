"""The fair comparison of steering methods: the same examples, budget and held-out questions.

Each seed draws other examples to fit on and divides the questions anew: on one half every method
chooses its layer and strength within the same bounds on KL and perplexity, on the other half it
is measured.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

from actkit.catalog import Entry
from actkit.catalog import methods as entries
from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.protocol import Comparison, Measure
from actkit.steer._base import ContrastSteerer, Steerer
from actkit.steer._concept import Concept
from actkit.steer._measure import divergence, effects, next_logits, random_like
from actkit.steer._tune import Budget, tune
from actkit.steer.tasks import TASKS, as_task

BUDGET = Budget(prompts=8, max_new_tokens=16)
EXAMPLES = 0.75
"""Share of a task's examples that a seed fits on."""
DRAWS = 20
"""Random directions that the control is the mean of."""
STRIDE = 3
"""Every third layer is tried, from the last but one down to a fifth of the depth."""


@dataclass(frozen=True)
class Chosen:
    """What is measured: edits, what is put before prompts, and how long fitting took (s)."""

    edits: Sequence[Edit] = ()
    prefix: str = ""
    seconds: float = 0.0


class Control(ABC):
    """What every method is held against."""

    @abstractmethod
    def choose(self, model: Model, task: Concept) -> Chosen:
        """Return what is measured, from the half of the questions that settings are chosen on."""

    def draws(self, chosen: Chosen) -> list[Sequence[Edit]]:
        """Return the versions over which concept and KL are averaged."""
        return [chosen.edits]


class NoEdit(Control):
    """The network as it is."""

    def choose(self, model: Model, task: Concept) -> Chosen:
        """Return no edits."""
        return Chosen()


class PromptOnly(Control):
    """Ask for the concept in words before each prompt."""

    def choose(self, model: Model, task: Concept) -> Chosen:
        """Return the task's instruction."""
        if not task.instruction:
            raise InputError(f"prompting needs a task with an instruction, {task} has none")
        return Chosen(prefix=task.instruction)


class RandomDirection(Control):
    """Random directions where mean differences act, as long as those are."""

    def choose(self, model: Model, task: Concept) -> Chosen:
        """Return the first draw."""
        found = tune(model, "caa", task, layers=_layers(model), budget=BUDGET)
        return Chosen(random_like(found.edits(), 0))

    def draws(self, chosen: Chosen) -> list[Sequence[Edit]]:
        """Return many draws."""
        return [random_like(chosen.edits, seed) for seed in range(DRAWS)]


class SteerProtocol(Comparison):
    """Concept strength against fluency, KL and off-target loss, at the same budget."""

    metrics: ClassVar = (
        Measure("concept", "nats", better="higher"),
        Measure("perplexity", "ratio"),
        Measure("KL", "nats"),
        Measure("text loss", "nats"),
        Measure("fact loss", "nats"),
        Measure("distinct pairs", better="neither"),
        Measure("repetition", better="neither"),
        Measure("fit", "s"),
        Measure("speed", "ratio", better="higher"),
    )
    tasks: ClassVar = tuple(TASKS)
    on_model: ClassVar = True

    def methods(self, task: Any) -> Mapping[str, Any]:
        """Return every method that learns from examples and needs no settings; the controls."""
        text = {e.name: e.load() for e in entries("steer") if _takes_part(e)}
        controls = {"no edit": NoEdit(), "random direction": RandomDirection()}
        return {**text, **controls, "prompt only": PromptOnly()}

    def chosen(self, task: Any, methods: Any = None) -> dict[str, Any]:
        """Return the methods to compare; a task may be one of a user's own."""
        as_task(task)
        return super().chosen(task, methods)

    def measure(self, method: Any, task: Any, model: Model | None, seed: int) -> dict[str, float]:
        """Fit and choose on one half of the questions, measure on the other.

        Args:
            method: A `Control`, a steerer, or a class of one that needs no settings.
            task: A bundled task's name or a `Concept`.
            model: The network.
            seed: Draws the examples and divides the questions.
        """
        if model is None:
            raise InputError("steering is compared on a network, got none: pass a model")
        choice, held = as_task(task).sample(EXAMPLES, seed).halves(seed)
        control = method if isinstance(method, Control) else _Tuned(method)
        chosen = control.choose(model, choice)
        found = effects(model, chosen.edits, held, BUDGET.max_new_tokens, chosen.prefix)
        concept, kl = found.concept, found.kl
        if len(draws := control.draws(chosen)) > 1:
            base = next_logits(model, held.prompts)
            moved = [next_logits(model, held.prompts, edits) for edits in draws]
            own = held.log_odds(model, base)
            concept = fmean(float((held.log_odds(model, m) - own).mean()) for m in moved)
            kl = fmean(float(divergence(base, m).mean()) for m in moved)
        return {
            "concept": concept,
            "perplexity": found.perplexity,
            "KL": kl,
            "text loss": found.text_loss,
            "fact loss": found.fact_loss,
            "distinct pairs": found.distinct,
            "repetition": found.repetition,
            "fit": chosen.seconds,
            "speed": found.tokens_per_second,
        }


@dataclass(frozen=True)
class _Tuned(Control):
    """A method with the layer and strength of its choice."""

    method: Any

    def choose(self, model: Model, task: Concept) -> Chosen:
        steerer: Steerer = self.method() if isinstance(self.method, type) else self.method
        start = time.perf_counter()
        steerer = steerer.fit(model, task.examples)
        seconds = time.perf_counter() - start
        layers = _layers(model) if hasattr(steerer, "layers") else None
        return Chosen(tune(model, steerer, task, layers=layers, budget=BUDGET).edits(), "", seconds)


def _layers(model: Model) -> list[int]:
    num = len(model.sites("resid_post.*"))
    return list(range(num - 2, max(num // 5, 0) - 1, -STRIDE))[::-1] or [0]


def _takes_part(entry: Entry) -> bool:
    """Say whether a method learns from examples and needs no settings, from its text alone."""
    return entry.interface == ContrastSteerer.__name__ and not entry.required


PROTOCOL = SteerProtocol()
