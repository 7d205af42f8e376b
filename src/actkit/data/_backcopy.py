"""The bigram-backcopy task, on which a one-layer transformer grows attention sinks.

Shapes: N sequences, T tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from actkit.core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

START = 0
"""The token that every sequence begins with."""


@dataclass(frozen=True, slots=True)
class Backcopy:
    """Sequences of the task, and the rule that they follow.

    Attributes:
        tokens_NT: (N, T) int64; token 0 begins each sequence and comes nowhere else.
        triggers: The tokens after which the token before them is repeated.
        bigram_VV: (V, V) float64 probability of the next token after each other one.
    """

    tokens_NT: "Tensor"
    triggers: "Tensor"
    bigram_VV: "Tensor"

    def is_trigger(self) -> "Tensor":
        """Return which tokens are triggers, (N, T) bool."""
        return (self.tokens_NT[..., None] == self.triggers).any(-1)


def bigram_backcopy(
    num_samples: int = 256,
    length: int = 32,
    vocabulary: int = 32,
    num_triggers: int = 3,
    seed: int = 0,
) -> Backcopy:
    """Make sequences of the bigram-backcopy task (Guo et al. 2024, arXiv:2410.13835).

    A sequence begins with token 0; each next token is drawn from a fixed bigram, except that
    after a trigger the token before it is repeated. So a network must look back at triggers, and
    nowhere else. The paper's bigram is counted in Shakespeare's letters; this one is random, and
    the first token after 0 is no trigger, since it would have nothing to repeat.

    Args:
        num_samples: How many sequences.
        length: Tokens of each, the first included (>= 3).
        vocabulary: Number of tokens.
        num_triggers: How many of them are triggers.
        seed: Of the bigram, the triggers and the sequences.

    Raises:
        DataError: A size is too small, or fewer than 2 tokens would be no triggers.

    Example:
        >>> task = bigram_backcopy(num_samples=4, length=9)
        >>> task.tokens_NT.shape, task.tokens_NT[:, 0].tolist()
        (torch.Size([4, 9]), [0, 0, 0, 0])
    """
    import torch

    if num_samples < 1 or length < 3 or not 1 <= num_triggers <= vocabulary - 3:
        raise DataError(
            "need at least 1 sequence of 3 tokens and 1 trigger, and 2 tokens beside 0 and the "
            f"triggers, got {num_samples=}, {length=}, {num_triggers=}, {vocabulary=}"
        )
    gen = torch.Generator().manual_seed(seed)
    shape = (vocabulary, vocabulary)
    bigram_VV = torch.randn(shape, generator=gen, dtype=torch.float64).mul_(2).exp_()
    triggers = 1 + torch.randperm(vocabulary - 1, generator=gen)[:num_triggers].sort().values
    bigram_VV[:, START] = 0
    bigram_VV[START, triggers] = 0
    bigram_VV /= bigram_VV.sum(1, keepdim=True)
    tokens_NT = torch.full((num_samples, length), START)
    for t in range(1, length):
        last_N = tokens_NT[:, t - 1]
        drawn_N = torch.multinomial(bigram_VV[last_N], 1, generator=gen)[:, 0]
        tokens_NT[:, t] = tokens_NT[:, t - 2].where(torch.isin(last_N, triggers), drawn_N)
    return Backcopy(tokens_NT, triggers, bigram_VV)
