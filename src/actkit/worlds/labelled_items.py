"""Noisy items with labels, and a last item whose label is asked: by context or by memory.

Shapes: B sequences, N pairs, T = 2 N + 1 positions, D width, K classes, L labels, C classes drawn.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from actkit.core.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class IclBatch:
    """Sequences x1 l1 ... xN lN x.

    Attributes:
        input_BTD: (B, T, D) vectors of items and labels in turn.
        class_BS: (B, N + 1) classes of the items; the last one is asked.
        label_BS: (B, N + 1) their labels; the last one is the answer.
    """

    input_BTD: Tensor
    class_BS: Tensor
    label_BS: Tensor

    @property
    def answers(self) -> Tensor:
        """Return the (B,) labels that are asked."""
        return self.label_BS[:, -1]

    @property
    def matches(self) -> Tensor:
        """Return which pairs show the class that is asked, (B, N) bool."""
        return self.class_BS[:, :-1] == self.class_BS[:, -1:]


@dataclass(frozen=True)
class IclData:
    """Draws sequences of items (mu_k + eps eta) / sqrt(1 + eps^2) with the labels of their classes.

    Means, labels' vectors and eta are N(0, I / D); class k has the label k modulo L.

    Args:
        num_classes: K, more than the context can show.
        num_labels: L (>= 2).
        pairs: N, of the context.
        burst: B, how often each class of a context stands in it, the asked one among them; 0:
            all classes once, the asked one absent.
        zipf: alpha of the ranks, p_k ~ k^-alpha, by which classes are drawn.
        noise: eps, of the items within a class.
        width: D.

    Raises:
        InputError: The numbers make no sequence.

    Example:
        >>> data = IclData(num_classes=9, num_labels=3, pairs=4, burst=2)
        >>> batch = data.draw(1)
        >>> batch.class_BS.tolist(), batch.label_BS.tolist(), tuple(batch.input_BTD.shape)
        ([[6, 6, 7, 7, 6]], [[0, 0, 1, 1, 0]], (1, 9, 32))
    """

    num_classes: int = 1024
    num_labels: int = 8
    pairs: int = 8
    burst: int = 4
    zipf: float = 0.0
    noise: float = 0.1
    width: int = 32

    def __post_init__(self) -> None:
        """Check the numbers."""
        whole = self.burst == 0 or (self.burst > 0 and self.pairs % self.burst == 0)
        enough = self.num_classes > self.pairs >= 1 and self.num_labels >= 2
        if not (whole and enough and self.noise >= 0 and self.width >= 1):
            raise InputError(
                "need more classes than pairs, 2 labels, a burst that divides the pairs, noise "
                f"of at least 0 and a width, got {self}"
            )

    @cached_property
    def means(self) -> Tensor:
        """Return the (K, D) means of the classes."""
        gen = torch.Generator().manual_seed(1)
        return self._vectors(gen, self.num_classes)

    @cached_property
    def label_vectors(self) -> Tensor:
        """Return the (L, D) vectors of the labels."""
        gen = torch.Generator().manual_seed(2)
        return self._vectors(gen, self.num_labels)

    def draw(self, num: int, seed: int = 0) -> IclBatch:
        """Draw sequences as they are trained on."""
        gen = torch.Generator().manual_seed(seed)
        class_BS = self._classes(num, self.burst, gen)
        return self._batch(self.means[class_BS], class_BS, class_BS % self.num_labels, gen)

    def in_weights(self, num: int, seed: int = 0) -> IclBatch:
        """Draw sequences whose asked class is not in the context."""
        gen = torch.Generator().manual_seed(seed)
        class_BS = self._classes(num, 0, gen)
        return self._batch(self.means[class_BS], class_BS, class_BS % self.num_labels, gen)

    def in_context(
        self, num: int, burst: int = 4, swapped: bool = False, seed: int = 0
    ) -> IclBatch:
        """Draw sequences whose labels are known from the context alone.

        Args:
            num: How many.
            burst: As `IclData.burst`, above 0 and with fewer classes than labels.
            swapped: Show trained classes, each with the label of the next one of the context;
                else classes that were never shown, with different labels drawn anew.
            seed: Of the draw.
        """
        num_shown = self.pairs // max(burst, 1)
        if burst < 1 or self.pairs % burst or num_shown > self.num_labels:
            raise InputError(
                f"the burst must divide {self.pairs} pairs into at most {self.num_labels} "
                f"classes, got {burst}"
            )
        gen = torch.Generator().manual_seed(seed)
        if swapped:
            shown_BC = self._ranked(num, num_shown, gen)
            mean_BCD = self.means[shown_BC]
            label_BC = shown_BC.roll(-1, 1) % self.num_labels
        else:
            shown_BC = self.num_classes + torch.arange(num * num_shown).view(num, num_shown)
            mean_BCD = self._vectors(gen, num, num_shown)
            label_BC = torch.rand(num, self.num_labels, generator=gen).argsort(1)[:, :num_shown]
        slot_BS = _slots(num, num_shown, burst, gen)
        mean_BSD = mean_BCD.gather(1, slot_BS[..., None].expand(-1, -1, self.width))
        return self._batch(mean_BSD, shown_BC.gather(1, slot_BS), label_BC.gather(1, slot_BS), gen)

    def _vectors(self, gen: torch.Generator, *shape: int) -> Tensor:
        """Draw (..., D) vectors from N(0, I / D)."""
        scale: float = self.width**-0.5
        return scale * torch.randn(*shape, self.width, generator=gen)

    def _classes(self, num: int, burst: int, gen: torch.Generator) -> Tensor:
        """Draw the (B, N + 1) classes of contexts and of the asked item."""
        if burst == 0:
            return self._ranked(num, self.pairs + 1, gen).roll(-1, 1)
        shown_BC = self._ranked(num, self.pairs // burst, gen)
        return shown_BC.gather(1, _slots(num, shown_BC.shape[1], burst, gen))

    def _ranked(self, num: int, count: int, gen: torch.Generator) -> Tensor:
        """Draw different classes one after the other by p_k ~ k^-alpha."""
        log_p_K = -self.zipf * torch.arange(1, self.num_classes + 1).log()
        gumbel_BK = -torch.empty(num, self.num_classes).exponential_(generator=gen).log()
        return (log_p_K + gumbel_BK).topk(count).indices

    def _batch(
        self, mean_BSD: Tensor, class_BS: Tensor, label_BS: Tensor, gen: torch.Generator
    ) -> IclBatch:
        eta_BSD = self._vectors(gen, *class_BS.shape)
        input_BTD = torch.empty(len(mean_BSD), 2 * self.pairs + 1, self.width)
        input_BTD[:, ::2] = (mean_BSD + self.noise * eta_BSD) / (1 + self.noise**2) ** 0.5
        input_BTD[:, 1::2] = self.label_vectors[label_BS[:, :-1]]
        return IclBatch(input_BTD, class_BS, label_BS)


def _slots(num: int, num_shown: int, burst: int, gen: torch.Generator) -> Tensor:
    """Return which of the shown classes stands where, (B, N + 1); the first one is asked."""
    slot_N = torch.arange(num_shown).repeat_interleave(burst)
    order_BN = torch.rand(num, len(slot_N), generator=gen).argsort(1)
    return torch.cat([slot_N[order_BN], torch.zeros(num, 1, dtype=torch.int64)], 1)
