"""Find the depth at which the context takes over from what pretraining alone would say.

Shapes: B rows, T tokens, L layers, N rows that are asked, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import Rows
from actkit.model import Model
from actkit.trace._attribution import columns, lens
from actkit.trace._base import Analysis


@dataclass(frozen=True, eq=False)
class Rift:
    """How each layer weighs the context against the prior, as the logit lens reads it.

    Attributes:
        context_LN: Probability of the token that the context tells.
        prior_LN: Probability of the token that pretraining alone tells.
        top_LN: Whether the context's token is the most probable of all.
        prior_N: The prior's tokens.
    """

    context_LN: Tensor
    prior_LN: Tensor
    top_LN: Tensor
    prior_N: Tensor

    @property
    def mixing(self) -> Tensor:
        """Return the mixing score of each layer, (L,): the share of top tokens from the context."""
        return self.top_LN.float().mean(1)

    @property
    def layer(self) -> int | None:
        """Return the first layer from which on the context outweighs the prior; None if none."""
        ahead_L = self.context_LN.mean(1) > self.prior_LN.mean(1)
        behind = (~ahead_L).nonzero()[:, 0]
        first = int(behind[-1]) + 1 if len(behind) else 0
        return first if first < len(ahead_L) else None

    @property
    def depth(self) -> float | None:
        """Return that layer as a share of all; 1 is the last."""
        return None if self.layer is None else (self.layer + 1) / len(self.context_LN)


@method(source="Dutta et al. 2024, arXiv:2402.18312, section 6", interface=Analysis)
def functional_rift(
    model: Model,
    inputs: Any,
    context: Tensor,
    prior: Tensor | None = None,
    start: int | None = None,
) -> Rift:
    """Follow through the layers whether a token's state predicts by context or by pretraining.

    As in the paper, with the logit lens (final norm and unembedding) after every block; the prior
    is a bigram's. The rift is the layer from which on the context's mean probability stays larger.

    Args:
        model: A decoder.
        inputs: B prompts.
        context: Ids of the tokens that the context tells to come next: (B,) after each prompt's
            last token, or (B, T) after every token, -1 where nothing is asked.
        prior: Ids of the same shape that pretraining tells; if None, what the network itself
            finds most probable after the token alone.
        start: Id of the token that stands before the token alone; the tokenizer's own if None.

    Raises:
        InputError: Shapes do not fit, or nothing is asked.

    Example:
        >>> from actkit.worlds import reader
        >>> m = Model(reader(at=(1, 0)))  # the first token comes again, from layer 1 on
        >>> found = functional_rift(m, torch.tensor([[3, 1, 2]]), torch.tensor([3]),
        ...                         prior=torch.tensor([4]))
        >>> found.layer, found.depth, found.mixing
        (1, 1.0, tensor([0., 1.]))
    """
    sites = [site.name for site in model.sites("resid_post.*")]
    rec = model.run(inputs, record=sites)
    context = context.to(rec.rows.valid.device)
    index = _asked(rec.rows, context)
    context_N = context if context.dim() == 1 else context[index]
    if prior is None:
        prior_N = bigram_prior(model, rec.rows.token[index], start)
    else:
        if prior.shape != context.shape:
            raise InputError(
                f"prior and context must be alike, got {tuple(prior.shape)} and "
                f"{tuple(context.shape)}"
            )
        prior = prior.to(context.device)
        prior_N = prior if prior.dim() == 1 else prior[index]
    rows_N = torch.arange(len(context_N), device=context_N.device)
    told, known, top = [], [], []
    for site in track(sites, "reading layers"):
        p_NV = lens(model, rec[site][index]).exp()
        told.append(p_NV[rows_N, context_N])
        known.append(p_NV[rows_N, prior_N])
        top.append(p_NV.argmax(-1) == context_N)
    return Rift(torch.stack(told), torch.stack(known), torch.stack(top), prior_N)


def bigram_prior(model: Model, tokens_N: Tensor, start: int | None = None) -> Tensor:
    """Return the (N,) most probable tokens after each token alone, behind a start token."""
    start = getattr(model.tokenizer, "bos_token_id", None) if start is None else start
    unique, back_N = torch.unique(tokens_N, return_inverse=True)
    first = [] if start is None else [torch.full_like(unique, start)]
    logits = model.run(torch.stack([*first, unique], 1), logits=True).logits
    return torch.as_tensor(logits)[:, -1].argmax(-1)[back_N]


def _asked(rows: Rows, context: Tensor) -> tuple[Tensor, ...]:
    """Return the index of the rows that are asked."""
    if context.shape == rows.valid.shape[:1]:
        return columns(rows, -1)
    if context.shape != rows.valid.shape:
        raise InputError(
            f"context must be of shape {tuple(rows.valid.shape[:1])} or {tuple(rows.valid.shape)}, "
            f"got {tuple(context.shape)}"
        )
    asked_BT = (context >= 0).to(rows.valid.device) & rows.valid
    if not asked_BT.any():
        raise InputError(f"context must tell a token somewhere, got -1 at all {asked_BT.numel()}")
    return asked_BT.nonzero(as_tuple=True)
