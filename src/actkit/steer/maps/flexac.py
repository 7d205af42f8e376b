"""Turn states towards or away from free association, the less the nearer they are.

Shapes: N pairs, B batch, T tokens, D width.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import takewhile
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.controller import StrengthOperation
from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import Rows
from actkit.core.sweep.stream import batches
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._chat_answers import mean_from, tokens_of
from actkit.steer._examples import Examples
from actkit.steer._states import by_layer, chosen_layers


@dataclass(frozen=True, eq=False)
class TurnAssociation(StrengthOperation):
    """Add a vector and give the state its length back.

    Attributes:
        vector: (D,).
        adaptive: Add the less, the more a state points there already.
    """

    identifier: ClassVar[str] = "flexac.turn"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.flexac:Turn",)
    vector: Tensor
    adaptive: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """Return h |h| / |h'| with h' = h + a (1 - cos(h, a v)) v."""
        h, v, a = (
            x.float(),
            self.vector.float(),
            torch.as_tensor(self.dose(x), device=x.device).float(),
        )
        length = h.norm(dim=-1, keepdim=True)
        cos = (h @ v)[..., None] / (length * v.norm()).clamp_min(1e-30)
        gain = a - a.abs() * cos if self.adaptive else a
        new = h + gain * v
        turned: Tensor = new * (length / new.norm(dim=-1, keepdim=True).clamp_min(1e-30))
        return turned.to(x.dtype)


@method(source="Yuan et al. 2025, arXiv:2510.11190")
@dataclass
class FlexAC(ContrastSteerer):
    """Flexible association control: creative with positive strengths, faithful with negative ones.

    Positive examples end with an associative (hallucinated) answer, negative ones with a
    faithful one to the same question. The answer is what follows the tokens that the two share;
    its mean state is read. Pairs whose states lie farthest apart make the vector. The law of the
    strength follows the paper's words, for want of its code: a vector of the length of the mean
    difference times 1 - cos of the state and where it is sent, then the state's own length again.

    Args:
        layers: Blocks whose outputs are turned; the one at half the depth if None.
        share: Share of the pairs, those of lowest cosine between their sides, that is used.
        adaptive: Turn states the less, the nearer they are; else all alike.

    Attributes:
        vectors_: (D,) of each layer.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> data = [("The sky is a sea", "The sky is blue"), ("Ice is a dream", "Ice is cold")]
        >>> [edit.site for edit in FlexAC().fit(m, data).edits(-1.0)]
        ['resid_post.15']
    """

    layers: int | Sequence[int] | None = None
    share: float = 0.2
    adaptive: bool = True
    vectors_: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)

    def _contrast(self, model: Model, examples: Examples) -> None:
        self.vectors_ = association(model, examples, self.share)

    def adapted(self, model: Model, data: Any, weight: float = 1.0) -> "FlexAC":
        """Return a copy that also follows what a task's own associations have in common.

        Args:
            model: The network that it was fitted on.
            data: A few pairs of the task, as for `fit`; all are used.
            weight: Of the task's vector beside the general one. The sum has the length of the
                general vector.
        """
        task, made = association(model, Examples.of(data), 1.0), copy(self)
        both = {n: v + weight * task[n] for n, v in self.vectors_.items()}
        made.vectors_ = {n: u / u.norm() * self.vectors_[n].norm() for n, u in both.items()}
        return made

    def _act(self, strength: Strength) -> list[Edit]:
        return [
            Edit(
                f"resid_post.{n}",
                TurnAssociation(self.vectors_[n], self.adaptive, strength=strength),
            )
            for n in chosen_layers(self.layers, self.vectors_, 0.5)
        ]


def association(model: Model, examples: Examples, share: float) -> dict[int, Tensor]:
    """Return each layer's (D,) mean difference of the pairs that differ most."""
    examples.check_paired()
    sides = [[_ready(model, e) for e in s] for s in (examples.positive, examples.negative)]
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    groups = list(zip(*(batches(side, 4) for side in sides), strict=True))
    for pair in track(groups, "reading pairs"):
        plus, minus = (model.run(side, record="resid_post.*") for side in pair)
        for name in plus:
            rows, others = plus.rows_of(name), minus.rows_of(name)
            start_B, other_B = _answer_starts(rows, others)
            means = mean_from(plus[name], rows, start_B), mean_from(minus[name], others, other_B)
            found.setdefault(name, []).append(means)
    states = {
        name: [torch.cat(side) for side in zip(*own, strict=True)] for name, own in found.items()
    }
    return by_layer({n: strongest(assoc, faith, share) for n, (assoc, faith) in states.items()})


def strongest(assoc_ND: Tensor, faithful_ND: Tensor, share: float) -> Tensor:
    """Return the (D,) mean difference of the share of pairs with the lowest cosine.

    Raises:
        InputError: The share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise InputError(f"the share of pairs must lie in (0, 1], got {share}")
    cos_N = torch.cosine_similarity(assoc_ND, faithful_ND, dim=-1)
    far = cos_N.argsort()[: ceil(share * len(cos_N))]
    return (assoc_ND - faithful_ND)[far].mean(0)


def _ready(model: Model, example: Any) -> Any:
    return tokens_of(model, example)[0] if isinstance(example, str | list) else example


def _answer_starts(assoc: Rows, faithful: Rows) -> tuple[Tensor, Tensor]:
    """Return where the answers of two (B, T) batches begin, each (B,).

    The first token, whose massive activation would hide the others, is no part of an answer
    unless it is the only token.
    """
    starts: list[tuple[int, int]] = []
    for a, f in zip(_tokens(assoc), _tokens(faithful), strict=True):
        same = (x == y != -1 for x, y in zip(a, f, strict=False))
        shared = max(sum(takewhile(bool, same)), 1)
        starts.append((min(shared, len(a) - 1), min(shared, len(f) - 1)))
    start_B2 = torch.tensor(starts, device=assoc.valid.device)
    return start_B2[:, 0], start_B2[:, 1]


def _tokens(rows: Rows) -> list[list[int]]:
    return [own[valid].tolist() for own, valid in zip(rows.token, rows.valid, strict=True)]
