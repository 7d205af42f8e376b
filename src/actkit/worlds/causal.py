"""High-level causal models: variables that are computed one after another and can be set by hand.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from actkit.core.errors import InputError

Rule = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
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
        >>> from actkit.worlds import pointer
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

    def pairs(self, num: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Draw (B, T) pairs of prompts whose answers differ.

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
        return pairs[:, 0], pairs[:, 1]
