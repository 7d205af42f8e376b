"""Integrated information of a few binary units by IIT 3.0: how far a system exceeds its parts.

Shapes: T times, S = 2^n states, n units; state s holds unit i's value in bit i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.read._base import Statistic
from actkit.read.information.big_phi._iit import Array, PhiConcept, System, Units, moved, splits

__all__ = ["BigPhi", "PhiConcept", "big_phi", "binarise", "mean_big_phi", "transition_matrix"]

MOST = 4
"""Most units; the work grows as 18^n."""


@dataclass(frozen=True, slots=True)
class BigPhi:
    """The integrated information of a system in a state.

    Attributes:
        phi: How far the constellation of concepts moves under the least cut.
        cut: The cut: no connection from the first units to the second ones.
        concepts: The constellation of the whole system.
    """

    phi: float
    cut: tuple[Units, Units]
    concepts: tuple[PhiConcept, ...]


@method(
    source="Oizumi, Albantakis and Tononi 2014, PLoS Comput. Biol. 10(5): e1003588",
    interface=Statistic,
)
def big_phi(tpm_Sn: Tensor, state: Sequence[int], units: Sequence[int] | None = None) -> BigPhi:
    """Return the integrated information of at most 4 binary units in a state.

    As in the paper. Of purviews with equal phi the larger one is taken, of those of one size the
    first. A connection is whatever changes a unit's probability, so none need be given.

    Args:
        tpm_Sn: Probability that each unit is on after each state, the state-by-node form; state s
            has unit i on if bit i of s is 1. Given its past, each unit is independent of others.
        state: The current value, 0 or 1, of each unit.
        units: The subsystem, all units if None; the others are held at their state, and the
            result numbers the subsystem's units from 0.

    Raises:
        InputError: Shapes do not fit, a probability is not in [0, 1], the subsystem has fewer
            than 2 or more than 4 units, or no past state can lead to its state.

    Example: Two units that copy each other.
        >>> swap_Sn = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> big_phi(swap_Sn, (1, 0)).phi
        1.0
    """
    whole = _system(tpm_Sn, tuple(state), range(len(state)) if units is None else units)
    constellation = whole.constellation()
    cuts = [(a, b) for a, b in splits(whole.units) if a and b]
    phi, cut = min(
        (moved(constellation, whole.cut(a, b).constellation(), whole), (a, b)) for a, b in cuts
    )
    return BigPhi(phi, cut, tuple(concept for concept, _ in constellation))


def _system(tpm_Sn: Tensor, state: Units, units: Sequence[int]) -> System:
    """Return the subsystem: for each unit P(on) by the past values of all its units."""
    num = len(state)
    tpm = tpm_Sn.detach().cpu().double().numpy()
    if tpm.shape != (2**num, num) or not set(state) <= {0, 1}:
        raise InputError(
            f"need a (2^n, n) matrix and a state of n values 0 or 1, got shape {tpm.shape} "
            f"and state {state}"
        )
    if not ((tpm >= 0) & (tpm <= 1)).all():
        raise InputError(f"probabilities must be in [0, 1], got {tpm.min()} to {tpm.max()}")
    if not 2 <= len(set(units)) == len(units) <= MOST or not set(units) <= set(range(num)):
        raise InputError(f"need 2 to {MOST} of the {num} units, got {tuple(units)}")
    held = tuple(slice(None) if i in units else state[i] for i in range(num))
    # the last axis of a reshaped array is the lowest bit, unit 0
    on: list[Array] = [tpm[:, i].reshape((2,) * num).transpose()[held] for i in sorted(units)]
    system = System(on, tuple(state[i] for i in sorted(units)))
    if not system.reachable():
        raise InputError(f"a past state must be able to lead to the state, got {state}")
    return system


def binarise(series_Tn: Tensor) -> Tensor:
    """Return whether each unit is above its median over time, (T, n) int64.

    Raises:
        InputError: The shape does not fit, or a value is not finite.

    Example:
        >>> binarise(torch.tensor([[5.0], [9.0], [7.0]])).tolist()
        [[0], [1], [0]]
    """
    if series_Tn.dim() != 2 or not len(series_Tn) or not series_Tn.isfinite().all():
        raise InputError(
            f"need finite series of shape (T, n), got {tuple(series_Tn.shape)} with "
            f"{int((~series_Tn.isfinite()).sum())} values that are not"
        )
    return (series_Tn > series_Tn.median(0).values).long()


def transition_matrix(bits_Tn: Tensor) -> Tensor:
    """Return the share of times at which each unit is on after each state, (S, n).

    States that the series never leaves have 0.5 throughout.

    Example:
        >>> transition_matrix(torch.tensor([[0], [1], [1], [0]])).tolist()
        [[1.0], [0.5]]
    """
    if bits_Tn.dim() != 2 or len(bits_Tn) < 2:
        raise InputError(f"need at least 2 times of shape (T, n), got {tuple(bits_Tn.shape)}")
    num = bits_Tn.shape[1]
    states_T = _states(bits_Tn)
    left_S = torch.bincount(states_T[:-1], minlength=2**num)[:, None]
    on_Sn = torch.zeros(2**num, num, dtype=torch.float64, device=bits_Tn.device)
    on_Sn.index_add_(0, states_T[:-1], bits_Tn[1:].double())
    return torch.where(left_S > 0, on_Sn / left_S, 0.5)


def mean_big_phi(series_Tn: Tensor) -> float:
    """Return the mean big phi over the times of a series of 2 to 4 units but the first.

    Units are on above their median; transitions are those of the series itself.
    """
    bits_Tn = binarise(series_Tn)
    tpm_Sn = transition_matrix(bits_Tn)
    visited, counts = torch.unique(bits_Tn[1:], dim=0, return_counts=True)
    found = [big_phi(tpm_Sn, state).phi for state in visited.tolist()]
    phis = torch.tensor(found, device=counts.device)
    return float((phis * counts).sum() / counts.sum())


def _states(bits_Tn: Tensor) -> Tensor:
    return (bits_Tn.long() << torch.arange(bits_Tn.shape[1], device=bits_Tn.device)).sum(1)
