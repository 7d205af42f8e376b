"""Sequences that copying and memory both solve, and probes that only one of them solves.

Shapes: B sequences, T tokens, K shots, C classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Questions to which only one strategy knows the answers.

    Attributes:
        inputs: B sequences, as `Model.run` takes them; the answer is read at the last token.
        answer_B: (B,) int64, the right entry of the logits.
        choices: The entries of the logits between which the network chooses.
        copy_BT: (B, T) float, +1 where the answer stands in the context, -1 at its other
            labels, 0 elsewhere; None if there is nothing to copy.
    """

    inputs: Any
    answer_B: Tensor
    choices: tuple[int, ...]
    copy_BT: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse a probe that cannot be answered."""
        known = torch.isin(self.answer_B.cpu(), torch.tensor(self.choices))
        if not len(known) or not known.all() or len(set(self.choices)) != len(self.choices):
            raise InputError(
                "a probe needs questions, and answers among its choices, each once: got shape "
                f"{tuple(self.answer_B.shape)} with {int((~known).sum())} others and choices "
                f"{self.choices}"
            )

    @property
    def chance(self) -> float:
        """Return the accuracy of guessing."""
        return 1 / len(self.choices)


@dataclass(frozen=True, slots=True)
class BurstyTask:
    """Sequences x1 l1 x2 l2 ... xK lK x of exemplars with their labels, and a last exemplar.

    All are token ids: the labels come first, then the exemplars, class by class, at last those
    of classes that training never shows. These can only be told apart if the network's input
    vectors of exemplars are fixed, for example a frozen embedding.

    Args:
        num_classes: Classes of the training sequences; class c has the label c modulo
            `num_labels`, always.
        num_labels: Labels (>= 2).
        num_held_out: Classes that training never shows.
        num_exemplars: Exemplars, and so tokens, of each class.
        shots: K, pairs in the context; even.
        burst: How often a training context shows the last exemplar's class, and how often one
            other class; the rest are classes that appear once.

    Raises:
        InputError: The numbers leave a sequence without enough classes.

    Example:
        >>> task = BurstyTask(num_classes=12, num_labels=12, shots=2, burst=1)
        >>> token_BT, answer_B = task.train(1)
        >>> [int(t) - 12 for t in token_BT[0, ::2]], token_BT[0, 1::2].tolist(), int(answer_B)
        ([7, 1, 7], [7, 1], 7)
    """

    num_classes: int = 64
    num_labels: int = 32
    num_held_out: int = 16
    num_exemplars: int = 1
    shots: int = 8
    burst: int = 3

    def __post_init__(self) -> None:
        """Check that there are enough classes."""
        enough = self.num_classes > self.shots and self.num_held_out >= 2 and self.num_labels >= 2
        if not enough or self.num_exemplars < 1 or self.shots % 2 or 2 * self.burst > self.shots:
            raise InputError(
                "a bursty task needs more classes than shots, an even number of shots, room for "
                f"two bursts, 2 labels, 2 held-out classes and 1 exemplar, got {self}"
            )

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens."""
        return self.num_labels + (self.num_classes + self.num_held_out) * self.num_exemplars

    def train(self, num: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Draw `num` bursty sequences: (B, T) tokens and (B,) answers."""
        gen = torch.Generator().manual_seed(seed)
        num_rest = self.shots - 2 * self.burst
        drawn_BC = self._classes(num, 2 + num_rest, gen)
        repeats = torch.tensor([self.burst, self.burst] + num_rest * [1])
        context_BK = _shuffled(drawn_BC.repeat_interleave(repeats, 1), gen)
        query_B = drawn_BC[:, 0]
        token_BT = self._tokens(context_BK, context_BK % self.num_labels, query_B, gen)
        return token_BT, query_B % self.num_labels

    def in_context(self, num: int, seed: int = 0, held_out: bool = True) -> Probe:
        """Draw contexts of two classes whose labels, 0 and 1, are drawn for each sequence.

        Args:
            num: Number of sequences.
            seed: Of the draw.
            held_out: Show classes that training never shows; else the trained ones, whose
                labels in memory are wrong here.
        """
        gen = torch.Generator().manual_seed(seed)
        drawn_BC = self._classes(num, 2, gen, held_out)
        slot_BK = _shuffled(torch.arange(self.shots).expand(num, -1) % 2, gen)
        first_B1 = torch.randint(2, (num, 1), generator=gen)
        label_BK = slot_BK ^ first_B1
        token_BT = self._tokens(drawn_BC.gather(1, slot_BK), label_BK, drawn_BC[:, 0], gen)
        copy_BT = torch.zeros(token_BT.shape)
        copy_BT[:, 1::2] = 1 - 2.0 * slot_BK
        return Probe(token_BT, first_B1[:, 0], (0, 1), copy_BT)

    def in_weights(self, num: int, seed: int = 0) -> Probe:
        """Draw trained classes with their labels, each once; the last exemplar's is not shown.

        To copy a label at random is right a little less often than chance, since the last
        exemplar's class is left out: in (C / L - 1) / (C - 1) of all sequences with L labels.
        """
        gen = torch.Generator().manual_seed(seed)
        drawn_BC = self._classes(num, self.shots + 1, gen)
        context_BK, query_B = drawn_BC[:, 1:], drawn_BC[:, 0]
        token_BT = self._tokens(context_BK, context_BK % self.num_labels, query_B, gen)
        return Probe(token_BT, query_B % self.num_labels, tuple(range(self.num_labels)))

    def _classes(
        self, num: int, count: int, gen: torch.Generator, held_out: bool = False
    ) -> Tensor:
        """Draw `count` different classes for each sequence."""
        size = self.num_held_out if held_out else self.num_classes
        drawn_BC = torch.rand(num, size, generator=gen).topk(count).indices
        return drawn_BC + self.num_classes * held_out

    def _tokens(
        self, context_BK: Tensor, label_BK: Tensor, query_B: Tensor, gen: torch.Generator
    ) -> Tensor:
        shown_BK = torch.cat([context_BK, query_B[:, None]], 1)
        which_BK = torch.randint(self.num_exemplars, shown_BK.shape, generator=gen)
        token_BT = torch.empty(len(shown_BK), 2 * self.shots + 1, dtype=torch.int64)
        token_BT[:, ::2] = self.num_labels + shown_BK * self.num_exemplars + which_BK
        token_BT[:, 1::2] = label_BK
        return token_BT


def _shuffled(x_BK: Tensor, gen: torch.Generator) -> Tensor:
    """Shuffle each row."""
    return x_BK.gather(1, torch.rand(x_BK.shape, generator=gen).argsort(1))
