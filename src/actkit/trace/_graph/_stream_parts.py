"""Finds the norms and maps around a decoder's stream, and proves that the stream is a sum.

Shapes: B batch, T tokens, D width, H heads, K head width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from actkit.anatomy.linear_map import bias_of, is_linear, weight_of
from actkit.core.errors import SiteError
from actkit.core.sites.dry_run import is_norm
from actkit.core.sites.site import Site
from actkit.model import Model

Read = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x * 1  # of its own in the graph of gradients


class StreamParts:
    """What flows in a run of a few tokens, and what it proves of norms and maps."""

    def __init__(self, model: Model, num_blocks: int) -> None:
        self._model, self._module = model, model.module
        named = model.module.named_modules()
        self._norms = [p for p, m in named if p and (is_norm(m) or isinstance(m, nn.Identity))]
        points = ("resid_pre", "attn_in", "q", "k", "v", "z", "attn_out", "mlp_in", "mlp_out")
        self._mid = {s.name for s in model.sites("resid_mid.*", refused=True) if not s.refused}
        sites = [f"{p}.{i}" for i in range(num_blocks) for p in (*points, "resid_post")]
        around = [f"{p}:{side}#0" for p in self._norms for side in ("in", "out")]
        (vocabulary,) = model.sites("logits")[0].unit_shape or (1,)
        tokens = (3 + 7 * torch.arange(10).view(2, 5)) % vocabulary
        self._rec = model.run(tokens, record=[*sites, *sorted(self._mid), *around])

    def norm(self, stream: str, read: str) -> Read:
        """Return the norm that makes what is read of the stream."""
        before, after = self._rec[stream].flatten(), self._rec[read].flatten()
        for path in self._norms:
            seen = [self._rec[f"{path}:{side}#0"].flatten() for side in ("in", "out")]
            if torch.equal(seen[0], before) and torch.equal(seen[1], after):
                # the method itself: hooks of a run that edits the norm's input stay out of it
                norm: Read = self._module.get_submodule(path).forward
                return norm
        if torch.equal(before, after):
            return same
        raise SiteError(f"edges need a norm that makes {read} of {stream}, but none was seen")

    def map(self, point: str, layer: int) -> tuple[Tensor, Tensor | None]:
        """Return a projection's weight by head, (D, H, K), and its bias, (H, K)."""
        (site,) = self._model.sites(f"{point}.{layer}")
        weight, bias = _linear(self._module, site)
        layout, read = site.place.layout, self._rec[f"attn_in.{layer}"]
        weight_DHK = layout.get(weight[None], 1)[0]
        bias_HK = None if bias is None else layout.get(bias[None, None], 1)[0, 0]
        made = torch.einsum("btd,dhk->bthk", read, weight_DHK)
        made = made if bias_HK is None else made + bias_HK
        _check(made, self._rec[site.name], f"{site.name} is more than one map of attn_in.{layer}")
        return weight_DHK, bias_HK

    def out_map(self, layer: int) -> Tensor:
        """Return the output projection's weight by head, (H, K, D), and check what is added."""
        (site,) = self._model.sites(f"z.{layer}")
        weight, bias = _linear(self._module, site)
        z, added = self._rec[site.name], self._rec[f"attn_out.{layer}"]
        made = z.flatten(2) @ weight if bias is None else z.flatten(2) @ weight + bias
        _check(made, added, f"a norm or a factor comes between {site.name} and attn_out.{layer}")
        return weight.reshape(*z.shape[2:], -1)

    def stream_of_mlp(self, layer: int) -> str:
        """Return the stream that the MLP reads, and check that the block adds to it."""
        before, mid = f"resid_pre.{layer}", f"resid_mid.{layer}"
        total = self._rec[before] + self._rec[f"attn_out.{layer}"] + self._rec[f"mlp_out.{layer}"]
        reason = "what attention and MLP return does not add up to the stream"
        _check(total, self._rec[f"resid_post.{layer}"], reason)
        if mid not in self._mid:
            return before
        _check(self._rec[before] + self._rec[f"attn_out.{layer}"], self._rec[mid], reason)
        return mid


def _linear(module: nn.Module, site: Site) -> tuple[Tensor, Tensor | None]:
    """Return the weight (in, out) and the bias of the map at a site."""
    owner = module.get_submodule(site.place.path)
    if not is_linear(owner):
        raise SiteError(f"edges need a linear map at {site.name}, got {type(owner).__name__}")
    return weight_of(owner).mT, bias_of(owner)


def _check(made: Tensor, seen: Tensor, reason: str) -> None:
    """Refuse a network whose stream is no sum of what its parts write."""
    tolerance = max(1e-4, 8 * torch.finfo(seen.dtype).eps)
    if (made - seen).norm() > tolerance * seen.norm():
        raise SiteError(f"edges need a stream that is the sum of heads and MLPs, but {reason}")
