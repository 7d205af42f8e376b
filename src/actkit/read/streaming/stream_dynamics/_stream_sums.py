"""Sums over rows of how a stream moves, from which means and correlations follow.

Shapes: N rows, D width, S sites, P = S - 1 steps between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.read._sums import same_width
from actkit.read.streaming._joint import lengths

_NEAR = 32  # rows whose mean the sums are taken about


@dataclass(slots=True)
class StreamSums:
    """Sums over rows in float64; deviations are about the rows' own mean, as Chan et al. add them.

    `products_2PD` are of a unit with the same unit at the next site, and with another one, which
    lies `shifts` further; `paces_2P` are the sums of cosines and of steps.
    """

    shifts: tuple[int, ...]
    num_rows: int
    num_nonfinite: int
    mean_SD: Tensor
    squares_SD: Tensor
    products_2PD: Tensor
    paces_2P: Tensor
    dense_S: Tensor

    @classmethod
    def empty(cls, shifts: tuple[int, ...], width: int, num_nonfinite: int = 0) -> "StreamSums":
        steps = len(shifts)
        sizes = (steps + 1, width), (steps + 1, width), (2, steps, width), (2, steps), (steps + 1,)
        return cls(shifts, 0, num_nonfinite, *(torch.zeros(s, dtype=torch.float64) for s in sizes))

    def add(self, acts: Sequence[Tensor], length_SN: Tensor, keep_N: Tensor, floor: float) -> None:
        """Take rows into an empty state."""
        self.num_rows = int(keep_N.sum())
        device = acts[0].device
        near, out = keep_N.nonzero()[:_NEAR, 0].to(device), (~keep_N).nonzero()[:, 0].to(device)
        before_ND = sum_before_D = torch.empty(0)
        for s, x_ND in enumerate(acts):
            near_D = x_ND[near].mean(0)
            off_ND = (x_ND - near_D).index_fill_(0, out, 0)
            sum_D = off_ND.sum(0).cpu().double()
            self.mean_SD[s] = near_D.cpu() + sum_D / self.num_rows
            self.squares_SD[s] = off_ND.square().sum(0).cpu() - sum_D.square() / self.num_rows
            self.dense_S[s] = x_ND.abs().gt_(floor).sum(1).cpu()[keep_N].sum()
            for k, shift in enumerate((0, self.shifts[s - 1]) if s else ()):
                product_D = (before_ND * off_ND.roll(-shift, 1)).sum(0).cpu()
                both_D = sum_before_D * sum_D.roll(-shift) / self.num_rows
                self.products_2PD[k, s - 1] = product_D - both_D
            if s:
                step_N = lengths(x_ND - acts[s - 1])[keep_N]
                one_N, next_N = length_SN[s - 1 : s + 1, keep_N]
                dot_N = (one_N.square() + next_N.square() - step_N.square()) / 2
                cosine_N = (dot_N / (one_N * next_N)).nan_to_num(0).clamp(-1, 1)
                self.paces_2P[:, s - 1] = torch.stack([cosine_N.sum(), step_N.sum()])
            before_ND, sum_before_D = off_ND, sum_D

    def partners(self, values_SD: Tensor) -> Tensor:
        """Return each unit's partners at the next site, (2, P, D): itself, and another."""
        own_PD = values_SD[1:]
        rolled = [x_D.roll(-shift) for x_D, shift in zip(own_PD, self.shifts, strict=True)]
        return torch.stack([own_PD, torch.stack(rolled)])

    def __add__(self, other: "StreamSums") -> "StreamSums":
        same_width(self.mean_SD.shape[1], other.mean_SD.shape[1])
        same_width(len(self.mean_SD), len(other.mean_SD), "number of sites")
        num_rows = self.num_rows + other.num_rows
        share = other.num_rows / max(num_rows, 1)
        step_SD, weight = other.mean_SD - self.mean_SD, share * self.num_rows
        return StreamSums(
            self.shifts,
            num_rows,
            self.num_nonfinite + other.num_nonfinite,
            self.mean_SD + share * step_SD,
            self.squares_SD + other.squares_SD + weight * step_SD.square(),
            self.products_2PD + other.products_2PD + weight * step_SD[:-1] * self.partners(step_SD),
            self.paces_2P + other.paces_2P,
            self.dense_S + other.dense_S,
        )
