"""How much of an MLP's output is lost where its small neurons are off, at rising thresholds.

Shapes: N tokens, H neurons, D width, G grid of thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from actkit.anatomy.mlp_weights import neuron_weights
from actkit.core.sites.site import Site
from actkit.read.network.ppl_sparsity._gating import Decoder, GatedPass

_QUANTILES = (0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 0.96, 0.99, 0.999)
_SAMPLE = 1 << 16  # magnitudes, evenly taken, whose quantiles are the grid


def errors(hidden_NH: Tensor, out_HD: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return ||sum of h_i w_i with |h_i| ||w_i|| <= t|| / ||sum of h_i w_i||, (G, N) float64."""
    size_NH = hidden_NH.abs() * out_HD.norm(dim=1)
    whole_N = (hidden_NH @ out_HD).norm(dim=1).double()
    tails = (hidden_NH.masked_fill(size_NH > t, 0) @ out_HD for t in thresholds)
    tail_GN = torch.stack([tail_ND.norm(dim=1).double() for tail_ND in tails])
    share_GN: Tensor = tail_GN / whole_N.clamp_min(torch.finfo(torch.float64).tiny)
    return share_GN


@dataclass
class LossCurve:
    """One layer's CETT at rising thresholds: quantiles of the first tokens' magnitudes."""

    grid_G: list[float] = field(default_factory=list)
    error_G: Tensor | float = 0.0
    num_tokens: int = 0
    most: float = 0.0

    def update(self, hidden_NH: Tensor, out_HD: Tensor) -> None:
        """Take the (N, H) activations of more tokens."""
        size_NH = hidden_NH.abs() * out_HD.norm(dim=1)
        if not self.num_tokens:
            some = size_NH[size_NH > 0]
            some = some[:: 1 + len(some) // _SAMPLE]
            levels = torch.tensor(_QUANTILES, device=some.device, dtype=some.dtype)
            self.grid_G = some.quantile(levels).tolist() if len(some) else [0.0]
        self.most = max(self.most, float(size_NH.amax()))
        self.num_tokens += len(hidden_NH)
        self.error_G = self.error_G + errors(hidden_NH, out_HD, self.grid_G).sum(1).cpu()

    def threshold(self, target: float) -> float:
        """Return where the curve, which ends with 1 at the largest magnitude, reaches a CETT."""
        if target >= 1:
            return inf
        from scipy.interpolate import PchipInterpolator

        cett_G = (torch.as_tensor(self.error_G) / self.num_tokens).tolist()
        rising = [(0.0, 0.0)]
        for error, threshold in zip([*cett_G, 1.0], [*self.grid_G, self.most], strict=True):
            if rising[-1][0] < error <= 1 and threshold > rising[-1][1]:
                rising.append((error, threshold))
        return float(PchipInterpolator(*zip(*rising, strict=True))(target)) if rising[1:] else 0.0


def curves(decoder: Decoder) -> tuple[dict[str, LossCurve], GatedPass]:
    """Return each layer's curve, and the dense pass in which it was read."""
    found = {name: LossCurve() for name in decoder.sites}

    def read(site: Site, hidden_NH: Tensor) -> None:
        if len(hidden_NH):
            wide = torch.promote_types(hidden_NH.dtype, torch.float32)
            out_HD = neuron_weights(decoder.model, site).to(wide)
            found[site.name].update(hidden_NH.to(wide), out_HD)

    return found, decoder.run(read=read)
