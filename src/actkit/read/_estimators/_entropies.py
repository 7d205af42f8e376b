"""Entropies of rows: by bins, by Gaussian kernels and by nearest neighbours, all in nats.

Shapes: N rows, D width, E width of the other side, M rows of a block.
"""

from math import e, log, pi

import torch
from torch import Tensor

from actkit.core.errors import InputError

_BLOCK = 1 << 22  # squared distances that are held at once, 32 MB
_JITTER = 1e-10  # standard deviations; Kraskov et al. break ties so
_STREAM = 0x1F0A1157  # keeps the noise apart from data that were drawn with a seed as small


def fixed_codes(acts_ND: Tensor, width: float) -> Tensor:
    """Return the bin of each entry; bins of one width start at 0."""
    return (acts_ND / width).floor()


def adaptive_codes(acts_ND: Tensor, num_bins: int) -> Tensor:
    """Return the bin of each entry; every bin holds equally many of all units' distinct values."""
    levels = torch.unique(acts_ND)
    first = torch.arange(1, num_bins, device=levels.device) * len(levels) // num_bins
    return torch.bucketize(acts_ND.contiguous(), levels[first], right=True)


def entropy(codes_ND: Tensor) -> float:
    """Return the entropy of the shares of equal rows."""
    counts = torch.unique(codes_ND, dim=0, return_counts=True)[1]
    return float(torch.special.entr(counts.double() / len(codes_ND)).sum())


def in_noise(acts_ND: Tensor, noise: float) -> Tensor:
    """Return the rows in units of sigma = noise * max |t|; zeros stay zeros."""
    sigma = noise * acts_ND.abs().max()
    return acts_ND / sigma if sigma > 0 else acts_ND


def kernel_bound(rows_ND: Tensor, spread: float = 2) -> float:
    """Return -1/N sum_i log 1/N sum_j exp(-|t_i - t_j|^2 / spread), noise of variance 1.

    The information that rows with Gaussian noise carry is at most this with a spread of 2, and at
    least this with a spread of 8.
    """
    num = len(rows_ND)
    rows_ND = rows_ND - rows_ND.mean(0)  # distances are exact near the origin
    total = 0.0
    for part_MD in torch.split(rows_ND, max(1, _BLOCK // num)):
        kernel_MN = torch.cdist(part_MD, rows_ND).square_().div_(-spread).exp_()
        total -= float(kernel_MN.mean(1).log().sum())
    return total / num


def neighbour_content(rows_ND: Tensor, k: int) -> float:
    """Return the entropy by Kozachenko and Leonenko less that of Gaussian noise of variance 1."""
    from scipy.special import digamma

    num, width = rows_ND.shape
    log_side = float((2 * _to_neighbour(rows_ND, k)).log().mean())
    return float(digamma(num) - digamma(k) + width * (log_side - log(2 * pi * e) / 2))


def ksg(x_ND: Tensor, y_NE: Tensor, k: int = 3, seed: int = 0) -> float:
    """Return I(X; Y) = psi(k) + psi(N) - <psi(n_x + 1) + psi(n_y + 1)>.

    Kraskov, Stoegbauer and Grassberger 2004, Phys. Rev. E 69, eq. 8: n_x and n_y count the rows
    that are strictly nearer in X, in Y, than the k-th neighbour in both (largest difference of
    any column). Columns are scaled to unit variance, and noise of 1e-10 breaks ties, as there.
    """
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    x_ND, y_NE = (jittered(_standard(v), _JITTER, seed + i) for i, v in enumerate((x_ND, y_NE)))
    near_N = _to_neighbour(torch.cat([x_ND, y_NE], 1), k)
    inside_N = torch.nextafter(near_N, torch.zeros_like(near_N)).numpy()
    nearer = 0.0
    for rows_ND in (x_ND, y_NE):
        points = rows_ND.cpu().numpy()
        num_N = cKDTree(points).query_ball_point(points, inside_N, p=torch.inf, return_length=True)
        nearer += digamma(num_N).mean()  # the row itself is counted, which is the + 1
    return float(digamma(k) + digamma(len(x_ND)) - nearer)


def _to_neighbour(rows_ND: Tensor, k: int) -> Tensor:
    """Return each row's distance (largest difference of any column) to its k-th neighbour."""
    from scipy.spatial import cKDTree

    if len(rows_ND) <= k:
        raise InputError(f"need more than k = {k} rows, in each class too, got {len(rows_ND)}")
    points = rows_ND.cpu().numpy()
    return torch.from_numpy(cKDTree(points).query(points, [k + 1], p=torch.inf)[0][:, 0])


def _standard(rows_ND: Tensor) -> Tensor:
    std_D = rows_ND.std(0)
    return (rows_ND - rows_ND.mean(0)) / std_D.where(std_D > 0, 1)


def jittered(rows_ND: Tensor, size: float, seed: int) -> Tensor:
    gen = torch.Generator().manual_seed(_STREAM + seed)
    jitter_ND = torch.randn(rows_ND.shape, dtype=rows_ND.dtype, generator=gen)
    return rows_ND + size * jitter_ND.to(rows_ND.device)
