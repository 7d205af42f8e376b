"""How the activation ratio of a decoder's MLPs changes with training data and with its shape.

Shapes: N measured networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.read._base import Statistic

Numbers = NDArray[np.float64]
Values = Sequence[float] | Numbers


@dataclass(frozen=True, slots=True)
class RatioLaw:
    """A fitted law A(D) of the activation ratio; call it to predict.

    Attributes:
        kind: "silu" for A0 - c D^-alpha, "relu" for A0 + exp(b - c D^alpha).
        limit: A0, the ratio that endless data lead to.
        c: Factor of the power.
        alpha: Exponent.
        b: Offset in the exponent; 0 for "silu".
        rmse: Root of the mean squared error of the fit, in ratio.
    """

    kind: str
    limit: float
    c: float
    alpha: float
    b: float
    rmse: float

    def __call__(self, data: float | Values) -> Numbers:
        """Return the predicted activation ratio for amounts of data."""
        amount = np.asarray(data, dtype=np.float64)
        if self.kind == "silu":
            return np.asarray(self.limit - self.c * amount**-self.alpha)
        return np.asarray(self.limit + np.exp(self.b - self.c * amount**self.alpha))

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report."""
        return {
            "limit": self.limit,
            "c": self.c,
            "alpha": self.alpha,
            "b": self.b,
            "rmse": self.rmse,
        }


@method(
    source="Luo et al. 2024, arXiv:2411.02335, laws of activation ratio and data",
    interface=Statistic,
)
def activation_ratio_law(
    data_N: Values, ratio_N: Values, kind: Literal["silu", "relu"] = "silu"
) -> RatioLaw:
    """Return the power law that the activation ratio follows over training data.

    For SiLU the ratio rises to its limit, A(D) = A0 - c / D^alpha; for ReLU it falls to it,
    A(D) = A0 + exp(b - c D^alpha). As in the paper by least squares. What enters linearly (A0 and
    c, or A0 and e^b) is solved for; the rest is searched from a grid of starts, so the fit needs
    no first guess.

    Args:
        data_N: Amounts of training data, > 0, in any unit; c and b are in that unit.
        ratio_N: Activation ratios, of `ppl_sparsity` for example.
        kind: "silu" or "relu".

    Raises:
        InputError: Unequal lengths, too few different amounts (4, or 5 for "relu"), or values that
            are not finite or not positive.

    Example:
        >>> law = activation_ratio_law([1, 4, 16, 64], [0.1, 0.3, 0.4, 0.45])  # 0.5 - 0.4 / D^0.5
        >>> round(law.limit, 3), round(law.c, 3), round(law.alpha, 3)
        (0.5, 0.4, 0.5)
    """
    from scipy.optimize import least_squares

    if kind not in ("silu", "relu"):
        raise InputError(f"a law is of 'silu' or 'relu', got {kind!r}")
    data, ratio = _checked(data_N, ratio_N, least=4 if kind == "silu" else 5)
    unit = float(np.exp(np.log(data).mean()))  # in it, powers stay near 1

    def curve(shape: Numbers) -> Numbers:
        power = (data / unit) ** np.exp(shape[0])
        curved = -1 / power if kind == "silu" else np.exp(np.exp(shape[1]) * (1 - power))
        return np.asarray(curved)

    def misses(shape: Numbers) -> Numbers:
        return _line(curve(shape), ratio)[2]

    steps = np.linspace(np.log(0.02), np.log(3.0), 12)
    rates = [0.0] if kind == "silu" else np.log([0.1, 0.3, 1.0, 3.0, 10.0])
    starts = [np.array([step, rate][: 1 + (kind == "relu")]) for step in steps for rate in rates]
    starts = sorted(starts, key=lambda start: float(np.square(misses(start)).sum()))[:4]
    fits = [least_squares(misses, start, xtol=1e-12, ftol=1e-12, gtol=1e-12) for start in starts]
    best = min(fits, key=lambda fit: float(fit.cost))
    limit, slope, miss = _line(curve(best.x), ratio)
    alpha, rmse = float(np.exp(best.x[0])), float(np.sqrt(np.square(miss).mean()))
    if kind == "silu":
        return RatioLaw(kind, limit, slope * unit**alpha, alpha, 0.0, rmse)
    rate = float(np.exp(best.x[1]))
    if slope <= 0:
        raise InputError("a ReLU law falls with data, the given ratios rise")
    return RatioLaw(kind, limit, rate / unit**alpha, alpha, float(np.log(slope)) + rate, rmse)


@dataclass(frozen=True, slots=True)
class ShapeLaw:
    """A line up to a bottleneck, flat beyond it: A = intercept + slope * min(x, bottleneck).

    Attributes:
        slope: Ratio for each unit of width / depth.
        intercept: Of the line.
        bottleneck: Width / depth from which on the ratio stays; the largest one if it never does.
        rmse: Root of the mean squared error of the fit, in ratio.
    """

    slope: float
    intercept: float
    bottleneck: float
    rmse: float


def width_depth_law(shape_N: Values, ratio_N: Values) -> ShapeLaw:
    """Return the line that the activation ratio follows over width / depth, below a bottleneck.

    Args:
        shape_N: Width of the stream / number of blocks, > 0.
        ratio_N: Activation ratios.

    Raises:
        InputError: As in `activation_ratio_law`, below 4 different shapes.

    Example:
        >>> law = width_depth_law([10, 20, 40, 80, 160], [0.1, 0.2, 0.4, 0.5, 0.5])
        >>> round(law.slope, 4), round(law.bottleneck, 2)
        (0.01, 50.0)
    """
    from scipy.optimize import minimize_scalar

    shape, ratio = _checked(shape_N, ratio_N, least=4)
    corners = np.unique(shape)

    def cost(bottleneck: float) -> float:
        return float(np.square(_line(np.minimum(shape, bottleneck), ratio)[2]).sum())

    # the cost is smooth between two shapes, and a line needs two of them below its end
    spans = pairwise(corners[1:])
    fits = [minimize_scalar(cost, bounds=span, method="bounded") for span in spans]
    ends = [*(float(fit.x) for fit in fits), *map(float, corners[1:])]
    best = min(ends, key=cost)
    intercept, slope, miss = _line(np.minimum(shape, best), ratio)
    return ShapeLaw(slope, intercept, best, float(np.sqrt(np.square(miss).mean())))


def _line(x: Numbers, y: Numbers) -> tuple[float, float, Numbers]:
    """Return intercept, slope and what is left of y after a straight line in x."""
    centred = x - x.mean()
    slope = float(centred @ y / max(centred @ centred, np.finfo(float).tiny))
    intercept = float(y.mean() - slope * x.mean())
    return intercept, slope, y - intercept - slope * x


def _checked(x_N: Values, ratio_N: Values, least: int) -> tuple[Numbers, Numbers]:
    x, ratio = (np.asarray(v, dtype=np.float64) for v in (x_N, ratio_N))
    if x.ndim != 1 or x.shape != ratio.shape or len(np.unique(x)) < least:
        raise InputError(
            f"a law needs as many ratios as amounts, {least} of them different, got shapes "
            f"{x.shape} and {ratio.shape} with {len(np.unique(x))} different"
        )
    if not (np.isfinite(x).all() and np.isfinite(ratio).all() and (x > 0).all()):
        raise InputError(
            f"a law needs finite ratios and amounts > 0, got {x.tolist()} and {ratio.tolist()}"
        )
    return x, ratio
