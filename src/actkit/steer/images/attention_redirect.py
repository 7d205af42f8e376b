"""Redirect self-attention away from an object, so that a diffusion network paints it over.

Shapes: B batch, T image tokens, D width, H heads, K head width, Y and X pixels.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, scaled_dot_product_attention

from actkit.catalog import method
from actkit.core.digest import digest
from actkit.core.edits.controller import Controller
from actkit.core.edits.edit import Edit
from actkit.core.errors import EditError, InputError
from actkit.core.run.context import ForwardContext
from actkit.core.run.tensor_path import get, main_output, put
from actkit.model import Model
from actkit.steer._base import Steerer, Strength

PARTS = {"q": "to_q:out", "k": "to_k:out", "v": "to_v:out", "z": "to_out.0:in"}
"""Where a layer's queries, keys, values and mixed values are, below its own path."""


@dataclass(frozen=True, eq=False)
class Redirect(Controller):
    """Keep queries, keys and values of one layer; put in what attention without the object gives.

    Attributes:
        part: Which of `PARTS` it sees.
        mask: (1 or B, Y, X), 1 on the object.
        heads: Number of heads.
        suppress: Factor on the logits of the object's queries.
    """

    identifier: ClassVar[str] = "attention_redirect.redirect"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.attention_redirect:Redirect",)
    part: str
    mask: Tensor
    heads: int
    suppress: float

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Return x, or the redirected z."""
        if self.part != "z":
            memory[self.part] = x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)
            return x
        q, k, v = (memory.pop(part) for part in "qkv")
        self._check(x, scaled_dot_product_attention(q, k, v))
        object_BT = self._tokens(x.shape[1])
        dose_B1 = torch.as_tensor(self.dose(x), device=x.device).reshape(-1, 1).to(x)
        factor_BT = torch.where(object_BT, 1 - dose_B1 * (1 - self.suppress), 1.0)
        bias_BT = torch.where(object_BT, torch.log1p(-dose_B1), 0.0)
        new = scaled_dot_product_attention(
            q * factor_BT[:, None, :, None], k, v, attn_mask=bias_BT[:, None, None]
        )
        acts_B = object_BT.any(-1, keepdim=True) & (dose_B1 > 0)
        return torch.where(acts_B[..., None], new.transpose(1, 2).flatten(2), x)

    def _tokens(self, num_tokens: int) -> Tensor:
        """Return which tokens of the layer's grid touch the object, (1 or B, T)."""
        height, width = self.mask.shape[-2:]
        rows = round((num_tokens * height / width) ** 0.5)
        if rows * (columns := num_tokens // max(rows, 1)) != num_tokens:
            raise EditError(
                f"the tokens must be a grid of the mask's shape {height} x {width}, "
                f"got {num_tokens} tokens"
            )
        object_BT = adaptive_max_pool2d(self.mask, (rows, columns)).flatten(1) > 0
        if object_BT.all(-1).any():
            raise EditError(f"the mask must leave background, got all of {rows} x {columns} tokens")
        return object_BT

    def _check(self, x: Tensor, plain: Tensor) -> None:
        """Refuse a layer that does something else between its projections."""
        difference = (plain.transpose(1, 2).flatten(2) - x).abs().max()
        if not difference <= 0.02 * x.abs().max():
            raise EditError(
                "a layer to redirect must be softmax(q k / sqrt K) v of its projections, "
                f"without norms or rotations: here that differs by up to {difference:.3g}"
            )


@method(source="Sun et al. 2025, Attentive Eraser, AAAI; github.com/Anonym0u3/AttentiveEraser")
@dataclass
class AttentionRedirect(Steerer):
    """Self-attention in which nothing attends to the tokens of an object.

    With an object's mask at hand, no token attends to the object's tokens (logits of -inf), and
    the logits of the object's own queries are scaled down, so that they mix all of the background
    and do not copy what looks alike. Other tokens get, in a layer, what they would get if the
    object's had any other values. At a strength a < 1 the object's keys keep the share 1 - a of
    their weight, and the factor is 1 - a (1 - suppress).

    The layers are found by their names, and their attention is computed again from what their
    projections return, beside the network's own kernel; networks without the points
    `attn_scores`, such as those of diffusers, have no other place for it. Layers that do more
    than softmax(q k / sqrt K) v in between are refused.

    Differs from the published code: logits are suppressed in all steps that the edits act in, not
    in the first 9 of 50 only, and strengths between 0 and 1 are ours. Choose the steps and the
    late layers as there: `dataclasses.replace(edit, where=ak.Where(steps=slice(0, 40)))`.

    Args:
        attention: Pattern of the self-attention modules, which have `heads`, `to_q`, `to_k`,
            `to_v` and `to_out.0`; diffusers' name of them by default. In a UNet those of the
            decoder: `up_blocks.*.attn1`.
        suppress: Factor on the logits of the object's queries, in (0, 1].

    Attributes:
        heads_: Number of heads of each layer, by its path.
        mask_: (1 or B, Y, X) of 0 and 1.

    Raises:
        InputError: `suppress` is out of its range, the mask is none or leaves no background, or a
            layer has no number of heads.
        EditError: The strength is not in [0, 1]; in a run, the layer or its grid does not fit.

    Example:
        >>> import actkit as ak
        >>> net = torch.nn.ModuleDict({"attn1": torch.nn.ModuleDict({"to_q": torch.nn.Identity()})})
        >>> net["attn1"].heads = 2
        >>> redirect = AttentionRedirect("attn1").fit(ak.open(net), torch.tensor([[0, 1, 0, 0]]))
        >>> redirect.heads_, redirect.about_["data"]["share"]
        ({'attn1': 2}, 0.25)
    """

    grid: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75, 1.0)
    attention: str = "*.attn1"
    suppress: float = 0.3
    heads_: dict[str, int] = field(init=False, repr=False, default_factory=dict)
    mask_: Tensor = field(init=False, repr=False, default_factory=lambda: torch.zeros(1, 1, 1))

    def _learn(self, model: Model, data: Any) -> dict[str, Any]:
        """Find the layers; the data are the mask, (Y, X) or one for each row, (B, Y, X)."""
        if not 0 < self.suppress <= 1:
            raise InputError(f"suppress must be in (0, 1], got {self.suppress}")
        mask = torch.as_tensor(data)
        if mask.dim() not in (2, 3) or ((mask != 0) & (mask != 1)).any():
            raise InputError(
                f"a mask must be (Y, X) or (B, Y, X) of 0 and 1, got {mask.dtype} of shape "
                f"{tuple(mask.shape)}"
            )
        self.mask_ = mask.reshape(-1, *mask.shape[-2:]).float()
        if self.mask_.flatten(1).all(-1).any():
            raise InputError(f"a mask must leave background, got {tuple(mask.shape)} of it full")
        self.heads_ = {}
        for site in model.sites(f"{self.attention}.{PARTS['q']}"):
            path = site.name.removesuffix(f".{PARTS['q']}")
            heads = getattr(model.module.get_submodule(path), "heads", None)
            if not isinstance(heads, int):
                raise InputError(f"a layer must say how many heads it has, got {heads} at {path}")
            self.heads_[path] = heads
        return {"share": float(self.mask_.mean()), "sha256": digest(self.mask_)}

    def _act(self, strength: Strength) -> list[Edit]:
        outside = (doses := torch.as_tensor(strength)).min() < 0 or doses.max() > 1
        if outside:
            raise EditError(f"the strength of a redirection must be in [0, 1], got {strength}")
        if not self.mask_.any():
            return []
        name = f"redirect {digest([self.mask_, self.suppress])[:12]}"
        return [
            Edit(
                f"{path}.{site}",
                Redirect(
                    part, self.mask_, heads, self.suppress, strength=strength, key=f"{name} {path}"
                ),
            )
            for path, heads in self.heads_.items()
            for part, site in PARTS.items()
        ]


@dataclass(frozen=True)
class RedirectionGuidance:
    """Predictions of a denoiser that lead away from an object: e + g (e_redirected - e).

    Call it in place of the network in the first steps (in the paper 40 of 50), and put the
    background back after each step.

    Args:
        model: The denoiser.
        redirect: Fitted on the object's mask.
        scale: g; 0 gives the network's own prediction bit by bit, 1 the redirected one. The paper
            takes 3 to 9.

    Example:
        >>> import actkit as ak
        >>> m = ak.open(torch.nn.Sequential(torch.nn.Identity()))
        >>> redirect = AttentionRedirect()
        >>> redirect.mask_ = torch.tensor([[[0.0, 1.0]]])
        >>> guide = RedirectionGuidance(m, redirect)
        >>> guide.with_background(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[7.0, 8.0]]]]))
        tensor([[[[7., 2.]]]])
    """

    model: Model
    redirect: AttentionRedirect
    scale: float = 5.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network returns, its prediction guided."""
        module = self.model.module
        output = module(*args, **kwargs)
        with self.model.edited(self.redirect.edits()):
            redirected = module(*args, **kwargs)
        at = main_output(output)
        eps, eps_redirected = (get(o, at, "the prediction") for o in (output, redirected))
        return put(output, at, torch.lerp(eps, eps_redirected, self.scale))

    def with_background(self, x: Tensor, original: Tensor) -> Tensor:
        """Return x on the object and the original, noised as x is, elsewhere; both (B, C, Y, X)."""
        mask = adaptive_max_pool2d(self.redirect.mask_.to(x.device), tuple(x.shape[-2:]))
        return torch.where(mask[:, None] > 0, x, original)
