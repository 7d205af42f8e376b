"""Strict interchange-intervention training: teach a network which of its parts computes what.

Shapes: B prompts, T tokens, V vocabulary, H heads, K head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from actkit.catalog import method
from actkit.core.edits.edit import Edit
from actkit.core.edits.edit import set as put
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import Recording
from actkit.model import Model
from actkit.trace._base import Trainer
from actkit.trace._causal import Agreement, Places, agreement, others
from actkit.trace._parts import Part
from actkit.worlds.causal import Causal

T = TypeVar("T")
WINDOW = 50
"""Steps over which the accuracies that end the training are taken."""


@method(source="Gupta et al. 2024, arXiv:2407.14494, strict interchange intervention training")
@dataclass
class SIIT(Trainer):
    """Train a network so that given parts, and no others, compute the variables of a program.

    Each step draws base prompts b and source prompts s, a variable v and a part u of no variable:

        loss = behaviour CE(f(b), H(b)) + iit CE(f(b; v from s), H(b; v from s))
             + strict CE(f(b; u from s), H(b))

    with f the network, H the program, and CE the cross-entropy at the last token; gradients flow
    through the source run, too. What differs from the paper: the behaviour of s is trained beside
    that of b, since both run, and the three losses take one step of Adam together.

    Args:
        behaviour: Weight of the bare runs.
        iit: Weight of the interventions on variables.
        strict: Weight of the interventions on all other parts; 0 is plain IIT.
        parts: Which parts the network is taken apart into.
        rate: Adam's learning rate.
        batch_size: Prompts in a step.
        num_steps: At most; fewer if the three accuracies over the last 50 steps reach `enough`.
        enough: The share.
        seed: Of the draws.

    Example:
        >>> from actkit.worlds import fraction
        >>> from actkit.worlds import toy
        >>> program, model = fraction(), Model(toy(6, layers=1))
        >>> places = {"is x": [Part("z.0", head=0)]}
        >>> SIIT(parts=("heads",), num_steps=0).fit(model, program, places).num_steps
        0
    """

    behaviour: float = 1.0
    iit: float = 1.0
    strict: float = 0.4
    parts: tuple[str, ...] = ("heads", "mlps")
    rate: float = 3e-3
    batch_size: int = 128
    num_steps: int = 1000
    enough: float = 0.999
    seed: int = 0

    def fit(self, model: Model, program: Causal, places: Places) -> Agreement:
        """Train the network in place; return how far it agrees on prompts drawn anew.

        Args:
            model: The network, of the program's vocabulary.
            program: The causal model.
            places: The parts of each variable; those that have none are not intervened on.

        Raises:
            InputError: A variable is unknown, or no part is left over.
        """
        outside = others(model, places, self.parts)
        if not places or not set(places) <= set(program.nodes):
            raise InputError(f"variables must be of {', '.join(program.nodes)}, got {list(places)}")
        generator = torch.Generator().manual_seed(self.seed)
        weights = [w for w in model.module.parameters() if w.requires_grad]
        optimizer = torch.optim.Adam(weights, self.rate)
        seen: list[Tensor] = []
        for _ in track(range(self.num_steps), "training"):
            base, source = (program.draw(self.batch_size, generator) for _ in range(2))
            name, part = _one(list(places), generator), _one(outside, generator)
            losses, right = _step(model, program, base, source, (name, places[name], part))
            optimizer.zero_grad()
            loss = losses @ losses.new_tensor([self.behaviour, self.iit, self.strict])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seen.append(right)
            if len(seen) >= WINDOW and torch.stack(seen[-WINDOW:]).mean(0).min() >= self.enough:
                break
        return agreement(model, program, places, self.parts, num_steps=len(seen))


def _step(
    model: Model,
    program: Causal,
    base: Tensor,
    source: Tensor,
    chosen: tuple[str, Sequence[Part], Part],
) -> tuple[Tensor, Tensor]:
    """Return the three losses and the three shares of right answers of one step."""
    name, inside, outside = chosen
    num, sites = len(base), list({p.site for p in (*inside, outside)})
    bare = model.run(torch.cat([base, source]), sites, logits=True, grad=True)

    def from_source(part: Part, rows: slice) -> Edit:
        return put(part.site, bare[part.site][num:], Where(rows=rows, heads=part.head))

    edits = [from_source(p, slice(num)) for p in inside] + [from_source(outside, slice(num, None))]
    twice = model.run(torch.cat([base, base]), edits=edits, logits=True, grad=True)
    answers, values = program.answers(base), program(source)
    runs = [
        (_last(bare), torch.cat([answers, program.answers(source)])),
        (_last(twice)[:num], program.answers(base, {name: values[name]})),
        (_last(twice)[num:], answers),
    ]
    losses = torch.stack([cross_entropy(x, wanted.to(x.device)) for x, wanted in runs])
    right = [(x.argmax(-1).cpu() == wanted).float().mean() for x, wanted in runs]
    return losses, torch.stack(right)


def _last(rec: Recording) -> Tensor:
    return rec.logits[:, -1]


def _one(items: Sequence[T], generator: torch.Generator) -> T:
    return items[int(torch.randint(len(items), (), generator=generator))]
