"""Attention with a learned key and value bias, so that no token must serve as one.

Shapes: B batch, H heads, T queries, S keys, K head width.
"""

from typing import final

import torch
from torch import Tensor, nn

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.nn._base import Layer


@method(source="Sun et al. 2024, arXiv:2402.17762, section 4.3")
@final
class KVBiasAttention(Layer):
    """Attention over the keys and one more, learned key k' with its value v', for each head.

    Networks with massive activations use a token as such a bias; trained with an explicit one
    they do not grow them. As in the paper; k' and v' start at zero, which is softmax with one
    extra logit of zero.

    Args:
        heads: Number of heads H (>= 1).
        head_width: Width K of one head (>= 1).

    Raises:
        InputError: A size is below 1, or queries of other sizes are given.

    Example:
        >>> attend = KVBiasAttention(heads=1, head_width=2)
        >>> one = torch.ones(1, 1, 1, 2)
        >>> attend(torch.zeros_like(one), one, one)  # half of the attention rests on v' = 0
        tensor([[[[0.5000, 0.5000]]]], grad_fn=<UnsafeViewBackward0>)
    """

    def __init__(self, heads: int, head_width: int) -> None:
        """Start with biases of zero."""
        super().__init__()
        if heads < 1 or head_width < 1:
            raise InputError(f"heads and head_width must be at least 1, got {heads}, {head_width}")
        self.key_H1K = nn.Parameter(torch.zeros(heads, 1, head_width))
        self.value_H1K = nn.Parameter(torch.zeros(heads, 1, head_width))

    def forward(
        self, query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, causal: bool = False
    ) -> Tensor:
        """Return softmax(q [k; k']^T / sqrt(K)) [v; v'], (B, H, T, K).

        Args:
            query_BHTK: Queries.
            key_BHSK: Keys.
            value_BHSK: Values.
            causal: Hide keys after each query; the bias is always seen.
        """
        batch, heads, num_queries, width = query_BHTK.shape
        if (heads, width) != (self.key_H1K.shape[0], self.key_H1K.shape[2]):
            raise InputError(
                f"queries must have {self.key_H1K.shape[0]} heads of width "
                f"{self.key_H1K.shape[2]}, got shape {tuple(query_BHTK.shape)}"
            )
        keys = torch.cat([key_BHSK, self.key_H1K.expand(batch, -1, -1, -1)], 2)
        values = torch.cat([value_BHSK, self.value_H1K.expand(batch, -1, -1, -1)], 2)
        logits: Tensor = query_BHTK @ keys.mT / width**0.5
        if causal:
            num_keys = key_BHSK.shape[2]
            seen = torch.ones(num_queries, num_keys + 1, dtype=torch.bool, device=logits.device)
            seen = seen.tril(num_keys - num_queries)
            seen[:, -1] = True
            logits = logits.masked_fill(~seen, -torch.inf)
        output: Tensor = logits.softmax(-1) @ values
        return output
