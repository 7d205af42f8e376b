"""How much a layer tells of its input and of the target, by estimators that adapt to it.

Shapes: N rows, D width, E width of the target.
"""

from typing import Any

from torch import Tensor

from actkit.catalog import method
from actkit.read._base import Statistic
from actkit.read._estimators import Information, estimator

__all__ = ["Information", "mutual_information"]


@method(
    source="Chelombiev et al. 2019, arXiv:1902.09037, section 3; Kraskov et al. 2004, PRE 69",
    interface=Statistic,
)
def mutual_information(
    acts_ND: Tensor, y: Tensor | None = None, method: str = "ebab", **settings: Any
) -> Information:
    """Estimate I(T; X) and I(T; Y) of a layer T in nats, where every row is another input X.

    A deterministic layer of a continuous input tells infinitely much of it, so each method sees
    T through a coarser eye. "ebab" and "binning" count distinct rows of bins: I(T; X) = H(bins),
    at most log N. "akde" adds Gaussian noise and bounds the information from above (Kullback and
    Leibler) and from below (Bhattacharyya), at most log N too. "kraskov" adds the same noise and
    takes entropies from nearest neighbours; it takes X for continuous and is not bound by log N.
    I(T; Y) for labels is I(T; X) less its mean within the classes; for values it is the
    information of the pair, and with "kraskov" that of Kraskov et al. without noise.

    Differs from the paper: the noise's standard deviation, not its variance, is in proportion to
    the largest activation, so that no unit of measurement matters; zero has no bin of its own.
    The authors publish no estimate by nearest neighbours: it stands beside theirs.

    Args:
        acts_ND: Activations of one layer, finite, at least 2 rows.
        y: (N,) integer or bool labels, or floating (N,) or (N, E) values.
        method: "ebab", bins of equally many distinct levels of all units; "binning", bins of one
            width; "akde", kernels as wide as a share of the largest activation; "kraskov".
        settings: `num_bins` of "ebab" (30), `bin_width` of "binning" (0.07), `noise` of "akde"
            and "kraskov" as a share of the largest |activation| (0.03), neighbours `k` (3) and
            `seed` of "kraskov".

    Returns:
        I(T; X), its lower bound (for "akde"; else the same) and I(T; Y), NaN without y.

    Raises:
        InputError: The method is unknown, a setting is out of its bounds, or shapes do not fit;
            rows are not finite; a class has no more than k rows for "kraskov".

    Example:
        >>> import torch
        >>> acts_ND = torch.tensor([[0.0], [0.0], [5.0], [9.0]])
        >>> found = mutual_information(acts_ND, torch.tensor([0, 0, 1, 1]))
        >>> round(found.x / 0.6931, 2), round(found.y / 0.6931, 2)  # bits
        (1.5, 1.0)
    """
    return estimator(method, **settings).measure(acts_ND, y)
