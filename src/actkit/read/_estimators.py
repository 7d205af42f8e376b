"""Estimators of mutual information by the names of their methods, all in nats.

Shapes: N rows, D width, E width of the other side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import nan

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read._entropies import (
    adaptive_codes,
    entropy,
    fixed_codes,
    in_noise,
    jittered,
    kernel_bound,
    ksg,
    neighbour_content,
)

METHODS = ("ebab", "binning", "akde", "kraskov")


@dataclass(frozen=True, slots=True)
class Information:
    """What a layer T tells, in nats; divide by log(2) for bits.

    Attributes:
        x: I(T; X) with the input, of which every row is another value.
        x_lower: Lower bound of it; below `x` for "akde" alone.
        y: I(T; Y) with the target, NaN without one.
    """

    x: float
    x_lower: float
    y: float


@dataclass(frozen=True, slots=True)
class Estimator:
    """How rows are prepared, all at once, and what any of them together tell of the input.

    Attributes:
        prepare: Takes (N, D) activations, returns (N, D) codes or rows in units of the noise.
        content: Takes prepared rows, returns H(T) - H(T|X) in nats.
        lower: A lower bound of `content`, if it is an upper one.
        pair: I(X; Y) of (N, D) and (N, E), where it is not the sum of three contents.
    """

    prepare: Callable[[Tensor], Tensor]
    content: Callable[[Tensor], float]
    lower: Callable[[Tensor], float] | None = None
    pair: Callable[[Tensor, Tensor], float] | None = None

    def about_values(self, x_ND: Tensor, y_NE: Tensor) -> float:
        """Return I(X; Y) = H(X) + H(Y) - H(X, Y); what the noise adds cancels."""
        _check_same_rows(x_ND, y_NE)
        if self.pair is not None:
            return self.pair(x_ND, y_NE)
        x_ND, y_NE = self.prepare(x_ND), self.prepare(y_NE)
        return self.content(x_ND) + self.content(y_NE) - self.content(torch.cat([x_ND, y_NE], 1))

    def measure(self, acts_ND: Tensor, y: Tensor | None) -> Information:
        """Return what activations tell of their input and of labels (N,) or values (N, E)."""
        acts_ND = rows_of(acts_ND)
        rows_ND = self.prepare(acts_ND)
        about_x = self.content(rows_ND)
        lower = about_x if self.lower is None else self.lower(rows_ND)
        return Information(about_x, lower, self._about_y(acts_ND, y, rows_ND, about_x))

    def _about_y(self, acts_ND: Tensor, y: Tensor | None, rows_ND: Tensor, about_x: float) -> float:
        if y is None:
            return nan
        y = y.to(acts_ND.device)
        if y.is_floating_point():
            return self.about_values(acts_ND, rows_of(y[:, None] if y.dim() == 1 else y))
        _check_same_rows(acts_ND, y)
        if y.dim() != 1:
            raise InputError(f"labels must have shape (N,), got {tuple(y.shape)}")
        classes = [rows_ND[y == label] for label in torch.unique(y)]
        return about_x - sum(len(c) / len(rows_ND) * self.content(c) for c in classes)


def estimator(
    method: str,
    *,
    bin_width: float = 0.07,
    num_bins: int = 30,
    noise: float = 0.03,
    k: int = 3,
    seed: int = 0,
) -> Estimator:
    """Return one of `METHODS`; `mutual_information` says what they mean and take."""
    if min(bin_width, noise) <= 0 or num_bins < 1 or k < 1:
        raise InputError(
            "bin_width and noise must be positive, num_bins and k at least 1, "
            f"got {bin_width}, {noise}, {num_bins}, {k}"
        )
    scaled = partial(in_noise, noise=noise)
    known = {
        "ebab": Estimator(partial(adaptive_codes, num_bins=num_bins), entropy),
        "binning": Estimator(partial(fixed_codes, width=bin_width), entropy),
        "akde": Estimator(scaled, kernel_bound, partial(kernel_bound, spread=8)),
        "kraskov": Estimator(
            lambda acts_ND: jittered(scaled(acts_ND), 1.0, seed),
            partial(neighbour_content, k=k),
            pair=partial(ksg, k=k, seed=seed),
        ),
    }
    if method not in known:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    return known[method]


def rows_of(acts_ND: Tensor) -> Tensor:
    """Return (N, D) rows in float64; refuse other shapes, a single row and what is not finite."""
    if acts_ND.dim() != 2 or len(acts_ND) < 2 or not acts_ND.shape[1]:
        raise InputError(f"need at least 2 rows of shape (N, D), got {tuple(acts_ND.shape)}")
    num_bad = len(acts_ND) - int(acts_ND.isfinite().all(1).sum())
    if num_bad:
        raise InputError(f"rows must be finite, {num_bad} of {len(acts_ND)} hold NaN or infinity")
    return acts_ND.detach().double()


def _check_same_rows(acts_ND: Tensor, y: Tensor) -> None:
    if len(y) != len(acts_ND):
        raise InputError(f"each row needs its y, got {len(acts_ND)} rows and {len(y)} of y")


def by_binning(x_ND: Tensor, y_NE: Tensor) -> float:
    """Estimate with bins of width 0.07, as `mutual_information` has them for layers.

    Exact only for data that take few values. Continuous data that are wide beside a bin put every
    row into a bin of its own: the estimate then nears log N, whatever the truth.
    """
    return estimator("binning").about_values(rows_of(x_ND), rows_of(y_NE))


def by_ebab(x_ND: Tensor, y_NE: Tensor) -> float:
    """Estimate with N^(1/3) bins a side, each with equally many values.

    Sees no more than log(bins) for each column: too low for noiseless and strongly dependent
    data, and too high by about (bins - 1)^2 / 2N where one column a side is independent noise.
    """
    num_bins = max(2, round(len(x_ND) ** (1 / 3)))
    return estimator("ebab", num_bins=num_bins).about_values(rows_of(x_ND), rows_of(y_NE))


def by_akde(x_ND: Tensor, y_NE: Tensor) -> float:
    """Estimate with Gaussian kernels whose width is 0.03 of the largest size of a side.

    It is the information of data with noise of this width, so finite for noiseless data. Each row
    counts as its own neighbour, which makes estimates from few rows in many columns too high.
    """
    return estimator("akde").about_values(rows_of(x_ND), rows_of(y_NE))


def by_kraskov(x_ND: Tensor, y_NE: Tensor) -> float:
    """Estimate with 3 nearest neighbours.

    Nearly unbiased for noisy data, and about 0 for independent ones (it can be negative). For
    noiseless dependence the truth is infinite, and the estimate grows as log N.
    """
    return estimator("kraskov").about_values(rows_of(x_ND), rows_of(y_NE))


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "binning": by_binning,
    "ebab": by_ebab,
    "akde": by_akde,
    "kraskov": by_kraskov,
}
"""I(X; Y) in nats of continuous (N, D) and (N, E), by the name of the method."""
