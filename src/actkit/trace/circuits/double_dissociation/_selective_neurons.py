"""Units whose mean activation differs between two kinds of prompts.

Shapes: N prompts, D units.
"""

from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.run.recording import last_tokens
from actkit.model import Model


def selective_neurons(
    model: Model, first: Any, second: Any, site: str, level: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Test each unit for a difference of its mean activation between two kinds of prompts.

    Welch's t-test at the last token, and the false discovery rate of Benjamini and Hochberg. It
    says that a unit tells the tasks apart, not that it serves one.

    Args:
        model: The network.
        first: Prompts of one kind, two or more.
        second: Prompts of the other kind.
        site: Where the units are, for example "mlp_hidden.3".
        level: Expected share of false ones among the chosen, in (0, 1).

    Returns:
        (D,) differences, first less second, and (D,) bool, which are chosen. Units that are
        constant are never chosen.

    Raises:
        InputError: There are fewer than two prompts of a kind, or the level is no share.
    """
    from scipy.stats import false_discovery_control

    if not 0 < level < 1:
        raise InputError(f"the level must lie in (0, 1), got {level}")
    recs = [model.run(side, record=site) for side in (first, second)]
    x_ND, y_ND = (last_tokens(r[site], r.rows_of(site)).double().cpu() for r in recs)
    if min(len(x_ND), len(y_ND)) < 2:
        raise InputError(f"need 2 prompts of a kind, got {len(x_ND)} and {len(y_ND)}")
    p_D = torch.from_numpy(false_discovery_control(_welch(x_ND, y_ND).numpy()))
    return x_ND.mean(0) - y_ND.mean(0), p_D <= level


def _welch(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    """Return the two-sided p-value of each unit, 1 where neither varies nor differs."""
    from scipy.stats import ttest_ind

    varies_D = (x_ND.var(0) + y_ND.var(0)) > 0
    p_D = torch.ones(x_ND.shape[1], dtype=torch.float64)
    if varies_D.any():
        found = ttest_ind(x_ND[:, varies_D].numpy(), y_ND[:, varies_D].numpy(), equal_var=False)
        p_D[varies_D] = torch.from_numpy(found.pvalue)
    return p_D
