"""Which eigenvalues of activations stand out from noise, by the Marchenko-Pastur law.

Shapes: N rows, D width, K eigenvalues, T tokens, W windows, F descriptors.
"""

from dataclasses import dataclass
from math import isqrt, log

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.maths.marchenko_pastur import MarchenkoPastur
from actkit.read._base import Statistic
from actkit.read._eigenvalues import eigenvalues
from actkit.read._sums import exp_entropy


@dataclass(frozen=True, slots=True)
class MPSpectrum:
    """A spectrum beside the law of noise that fits its bulk.

    Attributes:
        eigenvalues_D: (D,) float64 eigenvalues, largest first, squared units of the activations.
        law: The fitted law; `law.edges` and `law.variance` are in the same units.
        limit: What the largest eigenvalue of noise exceeds in 1 % of cases.
        strengths_K: For each outlier the variance of its direction above the noise, in units of
            the noise: l where the direction's own variance is sigma^2 (1 + l).
        entropy: Entropy of the eigenvalues' shares, nats.
        gap: (first - second eigenvalue) / first, in [0, 1].
        kl: KL divergence of the spectrum from the law, nats, over bins that are equally likely
            under the law; the outermost two are open, so it is finite: at most log(bins).
        wasserstein: Mean distance between an eigenvalue and the law's, in mean eigenvalues.
        num_rows: Rows that the eigenvalues come from.
    """

    eigenvalues_D: Tensor
    law: MarchenkoPastur
    limit: float
    strengths_K: Tensor
    entropy: float
    gap: float
    kl: float
    wasserstein: float
    num_rows: int

    @property
    def num_outliers(self) -> int:
        """Return the number of eigenvalues above `limit`."""
        return len(self.strengths_K)

    @property
    def share_outliers(self) -> float:
        """Return the share of the variance that the outliers hold."""
        values_D = self.eigenvalues_D
        return float(values_D[: self.num_outliers].sum() / values_D.sum())

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report."""
        low, high = self.law.edges
        return {
            "num_outliers": self.num_outliers,
            "share_outliers": self.share_outliers,
            "noise_variance": self.law.variance,
            "lower_edge": low,
            "upper_edge": high,
            "entropy": self.entropy,
            "gap": self.gap,
            "kl": self.kl,
            "wasserstein": self.wasserstein,
            "num_rows": self.num_rows,
        }


@method(source="Ettori 2026, arXiv:2602.22345, Marchenko-Pastur descriptors", interface=Statistic)
def mp_spectrum(given: Tensor, num_rows: int | None = None, *, centre: bool = True) -> MPSpectrum:
    """Fit the Marchenko-Pastur law to the bulk of a spectrum and say what lies outside.

    The noise's variance makes the law's median that of the bulk. Two things differ from the
    paper: the rows' mean is taken off, which would be an outlier by itself; and an outlier must
    exceed the edge by what chance explains in 99 % of finite samples (Johnstone 2001), not just
    the edge. Units of unequal variance are no outliers but widen the bulk: standardise them
    first to find correlations alone. If most eigenvalues are 0, so is the noise.

    Args:
        given: (N, D) activations, or the (D,) eigenvalues of their population covariance, as
            `Spectrum` has them.
        num_rows: With eigenvalues the number N of their rows.
        centre: Take the mean off the rows; with eigenvalues, whether it has been taken off.

    Raises:
        InputError: The shape does not fit, a value is not finite, a centred row is alone, or
            nothing varies.

    Example:
        >>> found = mp_spectrum(torch.tensor([9.0, 1.0, 1.0, 1.0]), num_rows=401)
        >>> found.num_outliers, found.law.ratio, round(found.law.variance, 1)
        (1, 0.01, 1.0)
    """
    eigen = eigenvalues(given, num_rows, centre)
    degrees = eigen.num_rows - centre
    if not degrees:
        raise InputError(f"need at least 2 rows to take off their mean, got {eigen.num_rows}")
    law = MarchenkoPastur.fit(eigen.values_D, degrees)
    limit = law.limit(degrees)
    values_K = eigen.values_D[:degrees]  # no more than these can differ from 0
    first, second = values_K.expand(2) if len(values_K) == 1 else values_K[:2]
    return MPSpectrum(
        eigenvalues_D=eigen.values_D,
        law=law,
        limit=limit,
        strengths_K=law.strength(values_K[values_K > limit]),
        entropy=log(exp_entropy(values_K)),
        gap=float((first - second) / first),
        kl=_kl(values_K, law),
        wasserstein=_wasserstein(values_K, law),
        num_rows=eigen.num_rows,
    )


def _kl(values_K: Tensor, law: MarchenkoPastur) -> float:
    num_bins = max(isqrt(len(values_K)), 2)
    bounds = law.quantile(torch.arange(1, num_bins) / num_bins)
    counts = torch.bincount(torch.searchsorted(bounds, values_K, right=True), minlength=num_bins)
    share = counts / len(values_K)
    return log(num_bins) - float(torch.special.entr(share).sum())


def _wasserstein(values_K: Tensor, law: MarchenkoPastur) -> float:
    count = len(values_K)
    expected_K = law.quantile((torch.arange(count, dtype=torch.float64) + 0.5) / count).flip(0)
    return float((values_K - expected_K).abs().mean() / values_K.mean())


def mp_descriptors(acts_TD: Tensor, window: int, stride: int = 1, leading: int = 4) -> Tensor:
    """Return what the spectra of sliding windows say, (W, F) float64, for `EigenTrack`.

    The F = leading + 6 columns: the leading eigenvalues as shares of the variance, log of the
    mean variance, entropy, gap, KL, Wasserstein distance and number of outliers.

    Args:
        acts_TD: (T, D) activations of one sequence, in order.
        window: Rows in a window (>= 2).
        stride: Rows from one window to the next (>= 1).
        leading: How many eigenvalues to give (1 to D).

    Raises:
        InputError: A size is out of range, or a window is refused by `mp_spectrum`.
    """
    if acts_TD.dim() != 2 or not 2 <= window <= len(acts_TD) or stride < 1:
        raise InputError(
            "need (T, D) activations, 2 <= window <= T and stride >= 1, got shape "
            f"{tuple(acts_TD.shape)}, {window=}, {stride=}"
        )
    if not 1 <= leading <= acts_TD.shape[1]:
        raise InputError(f"leading must be 1 to {acts_TD.shape[1]}, got {leading}")
    windows = acts_TD.unfold(0, window, stride).mT
    return torch.stack([_descriptor(mp_spectrum(acts_ND), leading) for acts_ND in windows])


def _descriptor(found: MPSpectrum, leading: int) -> Tensor:
    values_D = found.eigenvalues_D
    rest = (float(values_D.mean().log()), found.entropy, found.gap, found.kl, found.wasserstein)
    shares = values_D[:leading] / values_D.sum()
    return torch.cat([shares, torch.tensor([*rest, found.num_outliers]).to(shares)])
