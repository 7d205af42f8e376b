"""How far a network does what a causal model says, part by part.

Shapes: B rows, T tokens.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.core.edits.edit import swap
from actkit.core.errors import InputError
from actkit.core.sites.site_names import points_of
from actkit.model import Model
from actkit.trace._parts import Part, as_parts
from actkit.trace._task import Task
from actkit.worlds.causal import Causal

Places = Mapping[str, Sequence[Part]]
"""The parts of a network that compute each variable of a program."""


def pairs_of(program: Causal, num: int = 16, seed: int = 0) -> Task:
    """Return pairs of drawn prompts whose answers differ, as a task.

    Raises:
        InputError: A thousand draws gave too few.
    """
    clean, corrupt = program.pairs(num, seed)
    answers, wrong = program.answers(clean), program.answers(corrupt)
    return Task(clean, corrupt, answers, wrong, name=program.name)


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
