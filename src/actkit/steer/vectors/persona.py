"""Add or remove the direction of a personality trait.

Shapes: N examples, B batch, J directions, D width, P personas.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.controller import StrengthOperation
from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.sweep.stream import batches
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._chat_answers import answer_states
from actkit.steer._examples import Examples
from actkit.steer._states import additive, by_layer, chosen_layers

Chat = list[dict[str, str]]


@dataclass(frozen=True, eq=False)
class Remove(StrengthOperation):
    """Remove a share of what lies in the span of orthonormal (J, D) directions."""

    identifier: ClassVar[str] = "persona.remove"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.persona:Remove",)
    basis_JD: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return x - strength * x Q^T Q, with Q the basis."""
        return x - self.dose(x) * ((x @ self.basis_JD.mT) @ self.basis_JD)


@method(source="Allbert et al. 2024, arXiv:2412.10427")
@dataclass
class Persona(ContrastSteerer):
    """Trait directions: mean states under a persona less those under another, added or removed.

    Examples are chats (see `trait_chats`) or texts. One that ends with an answer is read as the
    mean over the answer's tokens, any other at its last token. As in the paper, with a strength.

    Args:
        layers: Blocks of the direction; the one at 60 % of the depth if None.
        mode: "induce", add strength times the direction after its block at all tokens; "ablate",
            take strength times the state's part along it out after every block (1 is all).

    Attributes:
        vectors_: (D,) of each layer.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> data = trait_chats("a cheerful person", ["How was your day?"], "a gloomy person")
        >>> persona = Persona(layers=16, mode="ablate").fit(m, data)
        >>> len(persona.edits(1.0)), persona.at(12).edits(0.5)[29].site
        (30, 'resid_post.29')
    """

    layers: int | Sequence[int] | None = None
    mode: Literal["induce", "ablate"] = "induce"
    vectors_: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)

    def _contrast(self, model: Model, examples: Examples) -> None:
        if self.mode not in ("induce", "ablate"):
            raise InputError(f"mode must be 'induce' or 'ablate', got {self.mode!r}")
        positive, negative = (
            by_layer(answer_states(model, side, "resid_post.*"))
            for side in (examples.positive, examples.negative)
        )
        self.vectors_ = {n: positive[n].mean(0) - negative[n].mean(0) for n in positive}

    def _act(self, strength: Strength) -> list[Edit]:
        layers = chosen_layers(self.layers, self.vectors_)
        if self.mode == "induce":
            return additive(self.vectors_, layers, strength)
        directions_DJ = torch.stack([self.vectors_[n].double() for n in layers], -1)
        basis_JD = torch.linalg.qr(directions_DJ).Q.mT.float()
        remove = Remove(basis_JD, strength=strength)
        return [Edit(f"resid_post.{n}", remove) for n in self.vectors_]

    def score(self, model: Model, examples: Sequence[Any]) -> Tensor:
        """Return how far each example's state lies along the unit direction, (N,).

        Examples are read as in `fit`, at the first of the chosen layers.
        """
        layer = chosen_layers(self.layers, self.vectors_)[0]
        (acts_ND,) = answer_states(model, examples, f"resid_post.{layer}").values()
        scores_N: Tensor = acts_ND @ (self.vectors_[layer] / self.vectors_[layer].norm())
        return scores_N

    def sweep(
        self, effect: Callable[[list[Edit]], float], strength: float = 1.0
    ) -> dict[int, float]:
        """Return each layer's effect; the largest is the best layer.

        Args:
            effect: Measures edits, on examples that `fit` did not see.
            strength: Of the edits.
        """
        layers = track(list(self.vectors_), "trying layers")
        return {n: effect(self.at(n).edits(strength)) for n in layers}


def trait_chats(
    trait: str, questions: Sequence[str], other: str = "a person"
) -> list[tuple[Chat, Chat]]:
    """Return each question asked under the trait's persona, and under another or a neutral one.

    Example:
        >>> trait_chats("a kind person", ["Who are you?"])[0][0][0]
        {'role': 'system', 'content': 'You are a kind person.'}
    """

    def ask(persona: str, question: str) -> Chat:
        said = {"role": "system", "content": f"You are {persona}."}
        return [said, {"role": "user", "content": question}]

    return [(ask(trait, question), ask(other, question)) for question in questions]


def with_answers(
    model: Model, chats: Sequence[Chat], max_new_tokens: int = 40, batch_size: int = 8
) -> list[Chat]:
    """Return chats with the network's own answers, so that traits are read where they show."""
    answers: list[str] = []
    for group in track(list(batches(list(chats), batch_size)), "answering"):
        answers += model.generate(group, max_new_tokens=max_new_tokens)
    return [
        [*chat, {"role": "assistant", "content": answer}]
        for chat, answer in zip(chats, answers, strict=True)
    ]


def similarity(personas: Mapping[str, Persona], layer: int) -> Tensor:
    """Return the (P, P) cosines of the personas' directions at a layer, in their order."""
    directions_PD = torch.stack([persona.vectors_[layer] for persona in personas.values()])
    units_PD = torch.nn.functional.normalize(directions_PD, dim=-1)
    return units_PD @ units_PD.mT
