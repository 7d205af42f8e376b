"""The bilinear form by which a head compares two vectors of the stream.

With the scales s of the norm frozen, x~ = (x / s, 1) and rotary positions i and j,

    score(i, j) = factor * (x~_i Q) R_(i-j) (x~_j K)^T

Shapes: T tokens, H heads, G key-value heads, K head width, D width, E = D + 1.
"""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from actkit.anatomy.norm import FrozenNorm, attention_norm
from actkit.core.errors import InputError
from actkit.core.run.recording import Recording
from actkit.model import Model
from actkit.trace._attribution import head_inputs

SIDES = ("resid_pre", "attn_in", "attn_scores")
"""What a run must record of a layer whose form is asked."""


@dataclass(frozen=True, eq=False)
class QueryKey:
    """The form of the heads of one layer, on one prompt.

    Attributes:
        q_HEK: From extended stream to queries; norm gain and biases are folded in.
        k_GEK: From extended stream to keys, which H / G heads share.
        turn_TKK: Rotation between a query and a key that lies T tokens back.
        factor: What the product is multiplied with.
        x_TE: The extended stream.
        scale_T1: The norm's scale at each token.
    """

    q_HEK: Tensor
    k_GEK: Tensor
    turn_TKK: Tensor
    factor: float
    x_TE: Tensor
    scale_T1: Tensor

    def group(self, head: int) -> int:
        """Return the key-value head that serves a head."""
        return head * len(self.k_GEK) // len(self.q_HEK)

    def svd(self, head: int, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return U (E, K), S (K,) and V (E, K) of the form of one head at one distance."""
        left_EK, left_KK = torch.linalg.qr(self.q_HEK[head] @ self.turn_TKK[offset])
        right_EK, right_KK = torch.linalg.qr(self.k_GEK[self.group(head)])
        u, s, vh = torch.linalg.svd(self.factor * left_KK @ right_KK.mT)
        return left_EK @ u, s, right_EK @ vh.mT


def query_key(model: Model, rec: Recording, layer: int) -> QueryKey:
    """Return the form of a layer's heads, checked against the scores that were recorded.

    Args:
        model: The network.
        rec: A run of one prompt that recorded `SIDES` of the layer.
        layer: Which.

    Raises:
        InputError: Scores are no such form: norms of queries and keys, soft caps, position biases.
    """
    norm = attention_norm(model, rec, layer)
    x_TD, y_TD = (rec[f"{side}.{layer}"][0].float() for side in ("resid_pre", "attn_in"))
    scale_T1 = norm.scale(x_TD, y_TD)
    x_TE = torch.cat([x_TD / scale_T1, torch.ones_like(scale_T1)], 1)
    q_HEK, k_GEK = (_extended(model, norm, f"{point}.{layer}") for point in "qk")
    turn_TKK = _rotations(model, layer, len(x_TE), q_HEK.shape[-1], like=x_TE)
    told_HTT = rec[f"attn_scores.{layer}"][0].float()
    seen_TT = torch.ones_like(told_HTT[0], dtype=torch.bool).tril()
    q_HTK = torch.einsum("te,hek,tkm->htm", x_TE, q_HEK, turn_TKK)
    k_GTK = torch.einsum("te,gek,tkm->gtm", x_TE, k_GEK, turn_TKK)
    q_GRTK = q_HTK.view(len(k_GEK), -1, *q_HTK.shape[1:])
    made = (q_GRTK @ k_GTK[:, None].mT).view_as(told_HTT)[:, seen_TT]
    told = told_HTT[:, seen_TT]
    factor = float((made * told).sum() / (made * made).sum().clamp_min(1e-12))
    error = float((factor * made - told).norm())
    bound = max(1e-3, 8 * torch.finfo(rec[f"attn_in.{layer}"].dtype).eps)
    if not error <= bound * float(told.norm()):
        raise InputError(
            f"attention scores must be a bilinear form of the stream, in layer {layer} they are "
            f"off by {error:.2g} on a size of {float(told.norm()):.2g}: norms of queries and keys, "
            "soft caps and position biases are none"
        )
    return QueryKey(q_HEK, k_GEK, turn_TKK, factor, x_TE, scale_T1)


def _extended(model: Model, norm: FrozenNorm, site: str) -> Tensor:
    """Return a projection by head, (H, D + 1, K), that reads the stream through the norm."""
    weight_DHK, bias_HK = head_inputs(model, model.sites(site)[0])
    weight_HDK, shift_HK = (
        weight_DHK.transpose(0, 1),
        torch.einsum("d,dhk->hk", norm.shift_D, weight_DHK),
    )
    return torch.cat([norm.read(weight_HDK.mT).mT, (shift_HK + bias_HK)[:, None]], 1)


def _rotations(model: Model, layer: int, num_tokens: int, width: int, like: Tensor) -> Tensor:
    """Return what rotary embedding multiplies (row) queries with at each position, (T, K, K)."""
    eye_TKK = torch.eye(width).to(like).repeat(num_tokens, 1, 1)
    rotary: list[Any] = [
        m for m in model.module.modules() if "rotaryembedding" in type(m).__name__.lower()
    ]
    if not rotary:
        return eye_TKK
    positions = torch.arange(num_tokens, device=like.device)[None]
    own: dict[str, Any] = {}
    if "layer_type" in signature(rotary[0].forward).parameters:
        # Gemma 3 turns by other angles in windows than in full attention
        config: Any = model.module.config
        own["layer_type"] = config.get_text_config().layer_types[layer]
    with torch.no_grad():
        cos, sin = (x[0, :, None].float() for x in rotary[0](like[None], positions, **own))
    turned, rest = eye_TKK[..., : cos.shape[-1]], eye_TKK[..., cos.shape[-1] :]
    first, second = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)
