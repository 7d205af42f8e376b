"""How strong a vector may be: the strength at which the next token's distribution moves by eps.

Shapes: B batch, T tokens, N prompts, V vocabulary.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.sweep.derivative import Strengthened, derivative
from actkit.core.sweep.stream import batches
from actkit.model import Model


def logit_variance(model: Model, edits: Strengthened, prompts: Any, batch_size: int = 8) -> Tensor:
    """Return the (N,) variance, over each prompt's next token, of the logits' derivative.

    Half of it times the squared strength is the KL divergence to second order, in nats.

    Args:
        model: The network.
        edits: Gives edits that add, of (B,) strengths: `edits` of a fitted steerer, say.
        prompts: Inputs; what follows their last token is looked at.
        batch_size: How many prompts to run at once.
    """
    found = []
    for group in track(list(batches(prompts, batch_size)), "differentiating"):
        logits_BTV, slope_BTV = derivative(model, group, edits)
        u_BV = slope_BTV[:, -1].double()
        p_BV = logits_BTV[:, -1].double().softmax(-1)
        mean_B1 = (p_BV * u_BV).sum(-1, keepdim=True)  # u^T F u, with F = diag(p) - p p^T
        found.append((p_BV * (u_BV - mean_B1).square()).sum(-1))
    return torch.cat(found)


def kl_bounded_gain(
    model: Model, edits: Strengthened, prompts: Any, eps: float = 0.05, batch_size: int = 8
) -> float:
    """Return the strength whose mean KL from the bare next-token distribution is about eps.

    KL(p_0 || p_gamma) is gamma^2 / 2 * Var_p(J v) to second order, J v by one forward-mode
    derivative for each batch. For every way of steering whose edits add.

    Args:
        model: The network.
        edits: As in `logit_variance`.
        prompts: As in `logit_variance`; a few dozen that are like those to come.
        eps: The mean KL divergence, in nats (> 0).
        batch_size: How many prompts to run at once.

    Raises:
        InputError: eps is not positive, or the edits move no logits, so that nothing bounds them.
        EditError: An edit does not add.

    Example:
        >>> import actkit as ak
        >>> m = ak.open(torch.nn.Sequential(torch.nn.Identity()))
        >>> push = torch.tensor([1.0, -1.0])  # two words of probability 1/2: variance 1
        >>> round(kl_bounded_gain(m, lambda s: [ak.add("0:out", push, s)], torch.zeros(1, 1, 2)
        ...                       , eps=0.02), 6)
        0.2
    """
    if not 0 < eps < float("inf"):
        raise InputError(f"eps must be a positive number of nats, got {eps}")
    mean = float(logit_variance(model, edits, prompts, batch_size).mean())
    if not 0 < mean < float("inf"):
        raise InputError(f"edits must move the logits to be bounded, got a variance of {mean}")
    return sqrt(2 * eps / mean)
