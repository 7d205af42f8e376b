"""High-level causal models: variables that are computed one after another and can be set by hand.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from actkit.core.edits.edit import swap
from actkit.core.errors import InputError
from actkit.core.sites.site_names import points_of
from actkit.model import Model
from actkit.trace._parts import Part, as_parts
from actkit.trace._task import Task

Rule = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
Places = Mapping[str, Sequence[Part]]
"""The parts of a network that compute each variable of a program."""
Draw = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Causal:
    """A program over prompts: what a network should compute, step by step.

    Attributes:
        name: Of the program.
        nodes: The variables in the order in which they are computed, each from the (B, T) tokens
            and the variables before it; the last one is the answer, (B,) token ids that the
            network is to say after the last token.
        draw: Draws (B, T) prompts.
        vocabulary: Number of tokens.
        length: Tokens in a prompt.
        reads: What each variable is computed from: "input" and variables.

    Example:
        >>> from actkit.trace._programs import pointer
        >>> chase = pointer(3)
        >>> prompt = torch.tensor([[2, 0, 1, 1]])  # 1 points to 0, 0 points to 2
        >>> chase(prompt)["answer"], chase(prompt, {"hop 1": torch.tensor([2])})["answer"]
        (tensor([2]), tensor([1]))
    """

    name: str
    nodes: Mapping[str, Rule]
    draw: Draw = field(repr=False)
    vocabulary: int
    length: int
    reads: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __call__(
        self, tokens_BT: Tensor, given: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the value of each variable, those that are given as they are.

        Raises:
            InputError: A given variable is unknown.
        """
        given = given or {}
        if unknown := [name for name in given if name not in self.nodes]:
            raise InputError(f"variables must be of {', '.join(self.nodes)}, got {unknown}")
        values: dict[str, Tensor] = {}
        for name, rule in self.nodes.items():
            values[name] = given[name] if name in given else rule(tokens_BT, values)
        return values

    def answers(self, tokens_BT: Tensor, given: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the (B,) answers."""
        return list(self(tokens_BT, given).values())[-1]

    def task(self, num: int = 16, seed: int = 0) -> Task:
        """Return pairs of drawn prompts whose answers differ.

        Raises:
            InputError: A thousand draws gave too few.
        """
        generator = torch.Generator().manual_seed(seed)
        pairs = torch.empty(0, 2, self.length, dtype=torch.long)
        for _ in range(1000):
            drawn = torch.stack([self.draw(num, generator) for _ in range(2)], 1)
            differ = self.answers(drawn[:, 0]) != self.answers(drawn[:, 1])
            pairs = torch.cat([pairs, drawn[differ]])[:num]
            if len(pairs) == num:
                break
        else:
            raise InputError(f"prompts must have answers that differ, got {len(pairs)} of {num}")
        clean, corrupt = pairs.unbind(1)
        answers, wrong = self.answers(clean), self.answers(corrupt)
        return Task(clean, corrupt, answers, wrong, name=self.name)


def others(model: Model, places: Places, parts: Sequence[str] = ("heads", "mlps")) -> list[Part]:
    """Return the parts of a network that compute no variable, such as all other heads.

    Raises:
        InputError: A place is no part of the network, or no part is left.
    """
    all_parts = [part for kind in parts for part in as_parts(kind).each(model, 0)]
    used = [part for group in places.values() for part in group]
    known, taken = [{_named(p) for p in some} for some in (all_parts, used)]
    if unknown := [str(part) for part in used if _named(part) not in known]:
        raise InputError(f"places must be of the network's {' and '.join(parts)}, got {unknown}")
    rest = [part for part in all_parts if _named(part) not in taken]
    if not rest:
        raise InputError(f"some parts must compute no variable, got all {len(all_parts)} in places")
    return rest


def _named(part: Part) -> Hashable:
    """Return what a part and its aliases share."""
    return points_of(part.site), part.layer, part.position, part.head, part.unit


@dataclass(frozen=True)
class Agreement:
    """How far a network does what its causal model says, as shares of prompts.

    Attributes:
        behaviour: Bare runs that give the answer.
        iit: Runs with the parts of one variable from another prompt that give the answer that
            the causal model gives with that variable of the other prompt.
        strict: Runs with one part of no variable from another prompt that give the same answer.
        num_steps: Steps of training.
    """

    behaviour: float
    iit: float
    strict: float
    num_steps: int


def agreement(
    model: Model,
    program: Causal,
    places: Places,
    parts: Sequence[str] = ("heads", "mlps"),
    num: int = 512,
    seed: int = 1,
    num_steps: int = 0,
) -> Agreement:
    """Return how far a network agrees with a program: the worst variable and the worst part.

    Args:
        model: The network.
        program: The causal model.
        places: The parts of each variable.
        parts: Which parts the network is taken apart into.
        num: Prompts, each with another one as its source.
        seed: Of the draws.
        num_steps: To be noted in the result.
    """
    generator = torch.Generator().manual_seed(seed)
    base, source = (program.draw(num, generator) for _ in range(2))
    groups = [*places.values(), *([p] for p in others(model, places, parts))]
    rec = model.run(source, record=list({p.site for group in groups for p in group}))
    variants = [[swap(p.site, rec, p.where) for p in group] for group in groups]
    said_VB = model.sweep(base, [[], *variants], said).cpu()
    answers, values = program.answers(base), program(source)
    moved = [program.answers(base, {name: values[name]}) for name in places]
    wanted_VB = torch.stack([answers, *moved, *[answers] * (len(groups) - len(places))])
    share = (said_VB == wanted_VB).float().mean(-1)
    cut = 1 + len(places)
    return Agreement(
        float(share[0]), float(share[1:cut].min()), float(share[cut:].min()), num_steps
    )


def said(logits_nPV: Tensor) -> Tensor:
    """Return the most likely next tokens, (n,), as the numbers that a sweep takes."""
    return logits_nPV[:, -1].argmax(-1).float()
