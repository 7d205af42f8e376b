"""Numbers of distributions over the next token, from their log-probabilities, in nats.

They stay in the dtype that they come in and can be differentiated. Logits become log-probabilities
by `log_softmax(-1)`, in float32 or float64: half precision has 3 digits.

Shapes: V vocabulary (or a set of answers), x any dimensions before it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def kl(log_p_xV: Tensor, log_q_xV: Tensor) -> Tensor:
    """Return KL(p || q), (x): the mean of log p - log q under p.

    Rounding may bring it below 0 where p and q are nearly the same. Where p is 0, log p is infinite
    and the sum NaN, not 0: leave such tokens out before.

    Args:
        log_p_xV: Of the distribution under which the mean is taken, as the unedited network's.
        log_q_xV: Of the other; broadcast against it.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> kl(p.log(), q.log())  # log 2 - log 3 / 2
        tensor(0.1438)
    """
    divergence: Tensor = (log_p_xV.exp() * (log_p_xV - log_q_xV)).sum(-1)
    return divergence


def log_prob_of(log_p_xV: Tensor, token_x: Tensor) -> Tensor:
    """Return the log-probability of one token of each distribution, (x).

    Args:
        log_p_xV: Log-probabilities.
        token_x: Ids, on any device.

    Example:
        >>> log_prob_of(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([0])).exp()
        tensor([0.2500])
    """
    return log_p_xV.gather(-1, token_x.to(log_p_xV.device)[..., None])[..., 0]


def perplexity(losses_N: Tensor) -> float:
    """Return exp of the mean of tokens' losses (nats), which is 1 at least; NaN without any.

    Example:
        >>> perplexity(torch.tensor([2.0, 8.0]).log())  # the geometric mean
        4.0
    """
    return float(losses_N.mean().exp())


def log_odds(log_p_V: Tensor, toward: Sequence[int], away: Sequence[int] = ()) -> Tensor:
    """Return log P(toward) - log P(away), a scalar.

    Args:
        log_p_V: Log-probabilities of one distribution.
        toward: Ids, of which there must be one.
        away: Ids; without any, all tokens that are not `toward`.

    Example:
        >>> log_odds(torch.tensor([0.5, 0.25, 0.25]).log(), [0], [1]).exp()
        tensor(2.)
    """
    plus = log_p_V[list(toward)].logsumexp(-1)
    minus = log_p_V[list(away)].logsumexp(-1) if away else torch.log1p(-plus.exp())
    return plus - minus
