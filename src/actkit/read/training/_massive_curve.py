"""The curve along which massive activations grow in training, and its fit.

Shapes: C checkpoints.
"""

from dataclasses import dataclass
from math import exp, inf, nan
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from actkit.core.errors import InputError

_STARTS = 24  # each with a decay, a speed and an origin of its own
_MOST_DECAY = 10.0
_MOST_SPEED = 1e4  # units of x that the observed steps may span


class Parameters(NamedTuple):
    """The five numbers of f(t) = A exp(-lam x) log(x) + K with x = gamma t + t0."""

    A: float
    lam: float
    gamma: float
    t0: float
    K: float


@dataclass(frozen=True, slots=True)
class MassiveCurve:
    """A fitted curve f(t) = A exp(-lam x) log(x) + K, x = gamma t + t0, t in training steps.

    Attributes:
        A: Amplitude, a ratio (>= 0).
        lam: Decay per unit of x (>= 0); at 0 the curve climbs as a logarithm for ever.
        gamma: Units of x in one step (> 0).
        t0: x at step 0 (> 0).
        K: Where the ratio ends after endless training, if `lam` is above 0.
        r2: Share of the ratios' variance that the curve explains; NaN if they do not vary.
        t_peak: Step of the highest point; infinite without decay, NaN if it is before step 0.
        last_step: The last step that was fitted.
    """

    A: float
    lam: float
    gamma: float
    t0: float
    K: float
    r2: float
    t_peak: float
    last_step: float

    @property
    def kind(self) -> Literal["early peak", "log increase"]:
        """Return "log increase" if the curve still rose at the last step."""
        return "log increase" if self.t_peak > self.last_step else "early peak"

    @property
    def parameters(self) -> Parameters:
        """Return the five fitted numbers."""
        return Parameters(self.A, self.lam, self.gamma, self.t0, self.K)

    def at(self, steps_C: Tensor) -> Tensor:
        """Return the curve's ratio at any steps, float64."""
        return torch.as_tensor(_curve(steps_C.double().numpy(), self.parameters))


def _curve(t: Any, p: Parameters) -> Any:
    x = p.gamma * t + p.t0
    return p.A * np.exp(-p.lam * x) * np.log(x) + p.K


def peak_step(p: Parameters) -> float:
    """Return the step at which lam x log(x) = 1: infinite without decay, NaN before step 0.

    Example:
        >>> round(peak_step(Parameters(A=300, lam=0.25, gamma=0.2, t0=1.2, K=20)), 2)
        10.64
    """
    from scipy.special import lambertw

    if p.lam < 1e-300:
        return inf
    peak = (exp(min(lambertw(1 / p.lam).real, 700)) - p.t0) / p.gamma
    return peak if peak > 0 else nan


def fit_curve(steps_C: Tensor, ratios_C: Tensor, seed: int = 0) -> MassiveCurve:
    """Fit the five parameters by bounded least squares, from several starts; keep the best.

    For given lam, gamma and t0 the best A and K are those of a line, so only the three are
    searched: A >= 0, 0 <= lam <= 10, 1e-3 <= t0 <= 100, and gamma such that the steps span
    1e-3 to 1e4 units of x. A climb without decay fixes the curve, but not its five numbers one
    by one.

    Args:
        steps_C: (C,) training steps, at least 6 different ones, none negative.
        ratios_C: (C,) ratios.
        seed: Of the starts.

    Raises:
        InputError: Shapes differ, a value is not finite, or there are too few steps.
    """
    from scipy.optimize import least_squares

    steps_C, ratios_C = steps_C.double(), ratios_C.double()
    if steps_C.shape != ratios_C.shape or len(np.unique(steps_C)) <= len(Parameters._fields):
        raise InputError(
            "five parameters need at least 6 different steps and a ratio for each, got shapes "
            f"{tuple(steps_C.shape)} and {tuple(ratios_C.shape)}"
        )
    if not (steps_C.isfinite() & ratios_C.isfinite() & (steps_C >= 0)).all():
        raise InputError(
            f"steps must be at least 0 and ratios finite, got {steps_C.tolist()} and "
            f"{ratios_C.tolist()}"
        )
    t, y, last = steps_C.numpy(), ratios_C.numpy(), float(steps_C.max())

    def whole(free: Any) -> Parameters:
        lam, gamma, t0 = free[0], np.exp(free[1]) / last, np.exp(free[2])
        shape = _curve(t, Parameters(1.0, lam, gamma, t0, 0.0))
        off, spread = shape - shape.mean(), ((shape - shape.mean()) ** 2).sum()
        A = max(float(off @ y / spread), 0.0) if spread > 0 else 0.0
        return Parameters(
            A, float(lam), float(gamma), float(t0), float(y.mean() - A * shape.mean())
        )

    low = np.array([0, np.log(1e-3), np.log(1e-3)])
    high = np.array([_MOST_DECAY, np.log(_MOST_SPEED), np.log(100)])
    draws = np.random.default_rng(seed).uniform(size=(_STARTS, 3))
    draws[:, 0] = draws[:, 0] ** 4  # most decays are slow
    found = [
        least_squares(
            lambda f: _curve(t, whole(f)) - y, start, bounds=(low, high), x_scale=(0.1, 1, 1)
        )
        for start in low + draws * (high - low)
    ]
    best = whole(min(found, key=lambda f: f.cost).x)
    total = float(((y - y.mean()) ** 2).sum())
    rest = float(((_curve(t, best) - y) ** 2).sum())
    return MassiveCurve(*best, 1 - rest / total if total else nan, peak_step(best), last)
