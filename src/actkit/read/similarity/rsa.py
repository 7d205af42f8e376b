"""How alike the distances between rows are in two representations: similarity analysis (RSA).

Shapes: N rows, D and E widths, L sets.
"""

from collections.abc import Iterator
from math import nan

import numpy as np
import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.maths.statistics import spearman
from actkit.read._base import Similarity
from actkit.read._paired_sums import Source, Sums, blocks, check_rows, in_step, joint_sums, varied

METRICS = ("correlation", "cosine", "dot", "sqeuclidean")
_ROUNDING = 1e-12  # a share of its terms below which a variance is the rounding of zero


@method(
    source="Kriegeskorte et al. 2008, Frontiers in Systems Neuroscience 2:4", interface=Similarity
)
def rsa(
    x: Source,
    y: Source,
    metric: str = "correlation",
    ranks: bool = False,
    num_samples: int = 1000,
    seed: int = 0,
) -> float:
    """Return the correlation of two representations' dissimilarities over all pairs of rows.

    As in the paper, without its randomisation test. Every dissimilarity here is a polynomial of
    the rows (after they are normalised), so Pearson's correlation over all N (N - 1) / 2 pairs
    follows exactly from sums of products that stream: time is N (D + E)^2 and memory
    24 (D + E)^2 bytes. Spearman's, which the paper prefers, needs the pairs themselves: it is
    taken over all pairs of `num_samples` rows drawn at random, over all rows if they are fewer.

    Args:
        x: (N, D) tensor, array, memory map or column of a store, or an iterable of its blocks of
            rows. Any dtype; the sums are float64.
        y: (N, E), the same rows.
        metric: "correlation" (1 - the correlation of two rows over units, the paper's), "cosine",
            "dot" (the negative product) or "sqeuclidean".
        ranks: Take Spearman's correlation instead of Pearson's.
        num_samples: Rows whose pairs are ranked (>= 3).
        seed: Of the rows that are ranked.

    Returns:
        In [-1, 1].

    Raises:
        InputError: The metric is unknown; there are fewer than 3 rows; the rows do not match,
            hold NaN or infinity, or have no direction (zero, or for "correlation" equal in all
            units); or all dissimilarities of one representation are equal.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])  # squared distances 1, 9, 4
        >>> y = torch.tensor([[0.0], [2.0], [6.0]])
        >>> round(rsa(x, y, "sqeuclidean"), 6)
        1.0
    """
    if metric not in METRICS:
        raise InputError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if num_samples < 3:
        raise InputError(f"num_samples must be at least 3, got {num_samples}")
    if len({tuple(s.shape)[:1] for s in (x, y) if hasattr(s, "shape")}) > 1:
        raise InputError(f"rows must match, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    prepared = _prepared(x, metric), _prepared(y, metric)
    if ranks:
        x_ND, y_NE = _drawn(*prepared, num_samples, seed)
        value = _spearman(x_ND, y_NE, metric)
    else:
        value = _pearson(joint_sums(*prepared, least=3), metric)
    return varied(value, "RSA")


def _prepared(source: Source, metric: str) -> Iterator[Tensor]:
    """Yield blocks of rows; for a metric of angles they are scaled to unit norm."""
    for block_ND in blocks(source):
        if metric not in ("correlation", "cosine"):
            yield block_ND
            continue
        size_N = block_ND.norm(dim=1)
        if metric == "correlation":
            block_ND = block_ND - block_ND.mean(1, keepdim=True)
        norm_N = block_ND.norm(dim=1)
        if lost := int((norm_N <= 1e-14 * size_N).sum()):
            raise InputError(f"{metric} needs rows with a direction, {lost} have none")
        yield block_ND / norm_N[:, None]


def _pearson(sums: Sums, metric: str) -> float:
    """Return the correlation over pairs i < j from sums over single rows."""
    n, num_pairs = sums.num_rows, sums.num_rows * (sums.num_rows - 1) / 2
    if metric == "sqeuclidean":  # |z_i|^2 + |z_j|^2 - 2 z_i.z_j, from the mean
        cross_WW, fourth_LL, t_L = sums.cross_WW, sums.fourth_LL, sums.squares()
        first_L = n * t_L
        other_LL = n * fourth_LL + t_L.outer(t_L)
        second_LL = other_LL + 2 * sums.per_set(sums.per_set(cross_WW.square()).T)
    else:  # x_i.x_j, from zero
        cross_WW, _, fourth_LL = sums.about(torch.zeros_like(sums.mean_W))
        first_L = sums.per_set((n * sums.mean_W).square() - cross_WW.diagonal()) / 2
        second_LL = (sums.per_set(sums.per_set(cross_WW.square()).T) - fourth_LL) / 2
    cov_LL = second_LL - first_L.outer(first_L) / num_pairs
    if (cov_LL.diagonal() <= _ROUNDING * second_LL.diagonal()).any():
        return nan
    return float(cov_LL[0, 1] / cov_LL.diagonal().prod().sqrt())


def _drawn(x: Source, y: Source, num_samples: int, seed: int) -> list[Tensor]:
    """Return rows drawn at random from all, each with the same chance, in one pass."""
    gen = np.random.default_rng(seed)
    held: list[Tensor] = []
    keys_N = torch.empty(0, dtype=torch.float64)
    num_rows = num_nonfinite = 0
    for parts in in_step(x, y):
        num_rows += len(parts[0])
        finite_N = parts[0].isfinite().all(1) & parts[1].isfinite().all(1)
        num_nonfinite += len(finite_N) - int(finite_N.sum())
        keys_N = torch.cat([keys_N, torch.from_numpy(gen.random(len(parts[0])))])
        held = [torch.cat(pair) for pair in zip(held, parts, strict=True)] if held else parts
        keep_N = keys_N.argsort()[:num_samples]
        keys_N, held = keys_N[keep_N], [rows[keep_N.to(rows.device)] for rows in held]
    check_rows(num_rows, num_nonfinite, 3)
    return held


def _spearman(x_ND: Tensor, y_NE: Tensor, metric: str) -> float:
    """Return the rank correlation of the dissimilarities over all pairs of the rows."""
    i, j = torch.triu_indices(len(x_ND), len(x_ND), 1, device=x_ND.device)
    pairs = []
    for acts_ND in (x_ND, y_NE):
        if metric == "sqeuclidean":
            values_P = torch.nn.functional.pdist(acts_ND)
        else:
            values_P = -(acts_ND @ acts_ND.T)[i, j]
        if values_P.max() - values_P.min() <= _ROUNDING * values_P.abs().max():
            return nan
        pairs.append(values_P)
    return spearman(*pairs)
