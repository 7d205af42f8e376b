"""Sequences of two exemplars with their labels and one of the two again: what induction is for.

Shapes: B sequences, T tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.core.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Episodes:
    """Sequences x1 l1 x2 l2 xq whose answer is the label after the exemplar that comes again.

    Attributes:
        token_BT: (B, T) token ids.
        answer_B: (B,) the right label, a token id.
        right_B: (B,) the position of the right label.
        wrong_B: (B,) the position of the other label.
    """

    token_BT: Tensor
    answer_B: Tensor
    right_B: Tensor
    wrong_B: Tensor


@dataclass(frozen=True, slots=True)
class TwoPairs:
    """Draws sequences x1 l1 x2 l2 xq; exemplars get their labels anew in each sequence.

    Tokens 0 and 1 are the labels, then come the exemplars, at last one blank. With `blanks`, the
    two pairs stand anywhere among that many blank tokens: at fixed distances a network of two
    layers finds the label by its place, without attention to previous tokens.

    Args:
        num_exemplars: How many exemplars there are (>= 2).
        blanks: Blank tokens of each sequence, before and between the pairs and before the last.

    Raises:
        InputError: The numbers make no sequence.

    Example:
        >>> episodes = TwoPairs(num_exemplars=2).draw(1)
        >>> episodes.token_BT.tolist(), int(episodes.answer_B)
        ([[3, 0, 2, 1, 2]], 1)
    """

    num_exemplars: int = 64
    blanks: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.num_exemplars < 2 or self.blanks < 0:
            raise InputError(f"need at least 2 exemplars and no negative blanks, got {self}")

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens."""
        return self.num_exemplars + 3

    def draw(self, num: int, seed: int = 0) -> Episodes:
        """Draw `num` sequences of 5 tokens and the blanks."""
        gen = torch.Generator().manual_seed(seed)
        exemplar_B2 = 2 + torch.rand(num, self.num_exemplars, generator=gen).topk(2).indices
        label_B2 = torch.rand(num, 2, generator=gen).argsort(1)
        asked_B1 = torch.randint(2, (num, 1), generator=gen)
        slots_B2 = torch.rand(num, 2 + self.blanks, generator=gen).topk(2).indices
        place_B2 = slots_B2.sort(1).values + torch.arange(2)
        token_BT = torch.full((num, 5 + self.blanks), self.vocabulary - 1)
        token_BT.scatter_(1, place_B2, exemplar_B2).scatter_(1, place_B2 + 1, label_B2)
        token_BT[:, -1] = exemplar_B2.gather(1, asked_B1)[:, 0]
        right_B, wrong_B = (
            1 + place_B2.gather(1, index)[:, 0] for index in (asked_B1, 1 - asked_B1)
        )
        return Episodes(token_BT, label_B2.gather(1, asked_B1)[:, 0], right_B, wrong_B)
