"""How many MLP neurons a decoder needs for a token, at a perplexity that grows by 1 %.

Shapes: N tokens, H neurons, D width, G grid of thresholds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from typing import Any

import torch
from torch import Tensor

from actkit.anatomy.mlp_weights import neuron_weights
from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.read._base import ModelStatistic
from actkit.read.network.ppl_sparsity._cett import curves, errors
from actkit.read.network.ppl_sparsity._gating import Decoder, GatedPass, matched


@dataclass(frozen=True, slots=True)
class PplSparsity:
    """The sparsest gate of a kind at which perplexity grows by no more than was asked for.

    Attributes:
        kept: For each site the activation ratio, the share of a token's neurons that stay on, a
            mean over tokens.
        cutoffs: For each site what decides it: the magnitude |h_i| ||w_i|| above which a neuron
            stays on (CETT), that of |act(gate)| (FAT), or how many neurons stay on (top-k).
        strength: What was searched: the CETT, FAT's threshold, or the share that top-k drops.
        ratio: Perplexity under the gate / dense perplexity.
        dense_loss: Dense loss in nats per token.
        num_evaluations: Passes over the data under a gate.
        num_tokens: Tokens that were predicted in each pass.
    """

    kept: dict[str, float]
    cutoffs: dict[str, float]
    strength: float
    ratio: float
    dense_loss: float
    num_evaluations: int
    num_tokens: int

    @property
    def activation_ratio(self) -> float:
        """Return the mean activation ratio of the sites."""
        return sum(self.kept.values()) / len(self.kept)

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report."""
        return {
            "activation_ratio": self.activation_ratio,
            "least_kept": min(self.kept.values()),
            "most_kept": max(self.kept.values()),
            "strength": self.strength,
            "ppl_ratio": self.ratio,
            "dense_ppl": exp(self.dense_loss),
            "num_evaluations": self.num_evaluations,
            "num_tokens": self.num_tokens,
        }


def cett(hidden_NH: Tensor, out_HD: Tensor, threshold: float) -> float:
    """Return the cumulative error of tail truncation, a share of the MLP's output.

    It is what the neurons with |h_i| ||w_i|| <= threshold would have added, in length, a mean over
    tokens; 0 for tokens whose output is zero.

    Args:
        hidden_NH: What the down projection reads.
        out_HD: What each neuron writes.
        threshold: Magnitude, in the units of the residual stream.

    Raises:
        InputError: Shapes do not fit, or there is no token.

    Example:
        >>> cett(torch.tensor([[3.0, -4.0]]), torch.eye(2), threshold=3.5)
        0.6
    """
    if hidden_NH.dim() != 2 or not len(hidden_NH) or hidden_NH.shape[1:] != out_HD.shape[:1]:
        raise InputError(
            "a CETT needs (N >= 1, H) activations and (H, D) weights, got shapes "
            f"{tuple(hidden_NH.shape)} and {tuple(out_HD.shape)}"
        )
    return float(errors(hidden_NH, out_HD, [threshold])[0].mean())


def cett_thresholds(
    model: Model, data: Any, target: float, sites: str = "mlp_hidden.*", batch_size: int = 8
) -> dict[str, float]:
    """Return for each layer the magnitude up to which neurons may go for a CETT of `target`.

    Args:
        model: A decoder.
        data: As in `ppl_sparsity`.
        target: CETT in [0, 1]; at 1 nothing stays on and thresholds are infinite.
        sites: As in `ppl_sparsity`.
        batch_size: How many texts to run at once.
    """
    if not 0 <= target <= 1:
        raise InputError(f"a CETT lies in [0, 1], got {target}")
    layers, _ = curves(Decoder(model, data, sites, batch_size))
    return {name: curve.threshold(target) for name, curve in layers.items()}


@method(source="Luo et al. 2024, arXiv:2411.02335, PPL-p% sparsity", interface=ModelStatistic)
def ppl_sparsity(
    model: Model, data: Any, p: float = 0.01, sites: str = "mlp_hidden.*", batch_size: int = 8
) -> PplSparsity:
    """Return the share of MLP neurons that a decoder needs if its perplexity may grow by p.

    In each layer a neuron is off where the length of what it writes, |h_i| ||w_i||, is at most
    the layer's threshold. The thresholds are such that all layers have the same CETT, the length
    of what is lost over the length of the output, and it is the CETT that is searched. As in the
    paper but for the search: the paper finds the threshold of each CETT anew among 65,536; here
    the CETT is measured once, in the dense pass, at 10 quantiles of the magnitudes, and
    interpolated, and Brent's method takes the place of bisection until the growth of perplexity
    is right to a tenth of itself. Each evaluation is one run of the network, the dense pass costs
    about three more. Memory does not grow with the data.

    Args:
        model: A decoder whose MLPs are gated or plain; the network is not changed.
        data: Texts, or lists of token ids, of at least 3 tokens, that can be read several times.
            The first token of each is counted nowhere.
        p: Share by which perplexity may grow (> 0).
        sites: The MLPs' neurons; other layers stay dense.
        batch_size: How many texts to run at once.

    Raises:
        SiteError: The network, or one of its blocks, has no such site (experts), or no logits.
        InputError: The data cannot be read again or are too short, or weights cannot be read.

    Example:
        >>> import actkit as ak
        >>> found = ppl_sparsity(ak.open("smollm2"), ["One, two, three, four, five."], p=0.5)
        >>> 1.4 < found.ratio < 1.6
        True
    """
    decoder = Decoder(model, data, sites, batch_size)
    layers, dense = curves(decoder)
    norm_H = {n: neuron_weights(model, s).float().norm(dim=1) for n, s in decoder.sites.items()}

    def off(name: str, cutoff: float, h_BTH: Tensor, _: Tensor | None) -> Tensor:
        size_BTH: Tensor = h_BTH.float().abs() * norm_H[name]
        return size_BTH <= cutoff

    def cutoffs(target: float) -> dict[str, float]:
        return {name: curve.threshold(target) for name, curve in layers.items()}

    return _sparsest(decoder, dense, p, off, cutoffs, start=0.05, limit=1.0)


def fat(
    model: Model, data: Any, p: float = 0.01, sites: str = "mlp_hidden.*", batch_size: int = 8
) -> PplSparsity:
    """Return what `ppl_sparsity` does for one threshold of all layers on |act(gate)|.

    An MLP without a gate is thresholded on its |activations|. Arguments and errors are those of
    `ppl_sparsity`.
    """
    decoder = Decoder(model, data, sites, batch_size, ups=True)

    def off(_: str, cutoff: float, h_BTH: Tensor, up_BTH: Tensor | None) -> Tensor:
        return h_BTH.abs() < (cutoff if up_BTH is None else cutoff * up_BTH.abs())

    def cutoffs(strength: float) -> dict[str, float]:
        return dict.fromkeys(decoder.sites, strength)

    return _sparsest(decoder, decoder.run(), p, off, cutoffs, start=0.05, limit=1e6)


def topk(
    model: Model, data: Any, p: float = 0.01, sites: str = "mlp_hidden.*", batch_size: int = 8
) -> PplSparsity:
    """Return what `ppl_sparsity` does for the same number of neurons in all layers and tokens.

    Those with the largest |act(gate)| stay on, in MLPs without a gate the largest |activations|;
    each token has its own, where the authors' code ranks all tokens of a batch together. Arguments
    and errors are those of `ppl_sparsity`.
    """
    decoder = Decoder(model, data, sites, batch_size, ups=True)

    def off(_: str, cutoff: float, h_BTH: Tensor, up_BTH: Tensor | None) -> Tensor:
        gate_BTH = (h_BTH if up_BTH is None else h_BTH / up_BTH).abs().nan_to_num(0)
        kept_BTK = gate_BTH.topk(int(cutoff), dim=-1, sorted=False).indices
        return torch.ones_like(h_BTH, dtype=torch.bool).scatter(-1, kept_BTK, False)

    def cutoffs(strength: float) -> dict[str, float]:
        widths = ((name, site.unit_shape) for name, site in decoder.sites.items())
        return {name: round((1 - strength) * shape[0]) for name, shape in widths if shape}

    return _sparsest(decoder, decoder.run(), p, off, cutoffs, start=0.25, limit=1.0)


def _sparsest(
    decoder: Decoder,
    dense: GatedPass,
    p: float,
    off: Callable[[str, float, Tensor, Tensor | None], Tensor],
    cutoffs: Callable[[float], dict[str, float]],
    **search: float,
) -> PplSparsity:
    """Return the strength, between 0 and a limit, whose gate lets perplexity grow by p."""

    def run(strength: float) -> GatedPass:
        cut = cutoffs(strength)
        return decoder.run(lambda name, h, up: off(name, cut[name], h, up))

    strength, passes = matched(run, dense, p, **search)
    found = passes[strength]
    return PplSparsity(
        kept=found.shares,
        cutoffs=cutoffs(strength),
        strength=strength,
        ratio=exp(found.mean - dense.mean),
        dense_loss=dense.mean,
        num_evaluations=len(passes) - 1,
        num_tokens=dense.num_tokens,
    )
