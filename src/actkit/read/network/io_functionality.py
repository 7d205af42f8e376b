"""Class gated neurons by how what they write is related to what they read, from weights alone.

Shapes: N neurons of a layer, D width of the residual stream.
"""

from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor, nn

from actkit.anatomy.mlp_weights import every_site, neuron_weights
from actkit.anatomy.norm import norm_gain
from actkit.catalog import method
from actkit.core.errors import InputError, SiteError
from actkit.core.progress import track
from actkit.core.sites.dry_run import is_norm
from actkit.core.sites.site import Site
from actkit.model import Model
from actkit.read._base import ModelStatistic

CLASSES = {
    "enrichment": (1, 1),
    "conditional enrichment": (1, 0),
    "proportional change": (0, 1),
    "orthogonal output": (0, 0),
    "conditional depletion": (-1, 0),
    "depletion": (-1, 1),
}
"""Each class with the sign of cos(in, out) and whether |cos(gate, out)| is large."""


@dataclass(frozen=True, slots=True)
class NeuronClasses:
    """What the neurons of one layer do.

    Attributes:
        cosines_N3: (N, 3) float32 cos(in, out), cos(gate, out) and cos(gate, in); NaN where a
            neuron's weights are zero.
        class_N: (N,) int64 index into `CLASSES`; -1 where a cosine is NaN.
        atypical_N: (N,) bool, cos(gate, in) is not what the other two would lead to expect.
        chance: |cosine| that 95 % of random directions of this width stay below.
    """

    cosines_N3: Tensor
    class_N: Tensor
    atypical_N: Tensor
    chance: float

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of neurons in each class."""
        return {name: int((self.class_N == i).sum()) for i, name in enumerate(CLASSES)}

    def neurons(self, name: str) -> list[int]:
        """Return the neurons of a class, or those that are "atypical" in any.

        Raises:
            InputError: There is no such class.
        """
        if name != "atypical" and name not in CLASSES:
            raise InputError(f"a class is one of {', '.join(CLASSES)} or atypical, got {name!r}")
        chosen_N = self.atypical_N if name == "atypical" else self.class_N == [*CLASSES].index(name)
        found: list[int] = chosen_N.nonzero()[:, 0].tolist()
        return found

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report; cosines of in and out weights."""
        cosine_N = self.cosines_N3[:, 0]
        cosine_N = cosine_N[~cosine_N.isnan()].double()
        return {
            **{name.replace(" ", "_"): n for name, n in self.counts.items()},
            "num_atypical": int(self.atypical_N.sum()),
            "num_zero": int((self.class_N < 0).sum()),
            "median_cosine": float(cosine_N.quantile(0.5)) if len(cosine_N) else nan,
            "mean_cosine": float(cosine_N.mean()),
            "share_beyond_chance": float((cosine_N.abs() > self.chance).double().mean()),
        }


def neuron_classes(
    gate_ND: Tensor, in_ND: Tensor, out_ND: Tensor, threshold: float = 0.5
) -> NeuronClasses:
    """Return the classes of neurons act(gate . x) (in . x) out, from one row of each a neuron.

    Args:
        gate_ND: What the gates read.
        in_ND: What the neurons' linear parts read.
        out_ND: What the neurons write.
        threshold: |cosine| above which two directions count as aligned.

    Raises:
        InputError: The three are not alike, D is below 2, or a weight is not finite.

    Example:
        >>> x = torch.eye(4)
        >>> neuron_classes(x[[0, 0]], x[[0, 1]], x[[0, 2]]).neurons("enrichment")
        [0]
    """
    shapes = [tuple(w.shape) for w in (gate_ND, in_ND, out_ND)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][1] < 2:
        raise InputError(f"weights must be three of one shape (N, D >= 2), got {shapes}")
    cosines_N3 = _cosines(*(w.detach() for w in (gate_ND, in_ND, out_ND)))
    a1_N, a2_N, a3_N = (cosines_N3.sign() * (cosines_N3.abs() > threshold)).unbind(1)
    class_N = torch.full_like(a1_N, -1, dtype=torch.long)
    for i, (sign, aligned) in enumerate(CLASSES.values()):
        class_N[(a1_N == sign) & (a2_N.abs() == aligned)] = i
    class_N[cosines_N3.isnan().any(1)] = -1
    atypical_N = (a3_N != a1_N * a2_N) & (class_N >= 0)
    return NeuronClasses(cosines_N3, class_N, atypical_N, chance_cosine(shapes[0][1]))


def _cosines(gate_ND: Tensor, in_ND: Tensor, out_ND: Tensor) -> Tensor:
    """Return the (N, 3) cosines, in float32 at least, on the CPU."""
    units = []
    for weight_ND in (gate_ND, in_ND, out_ND):
        if number := int((~weight_ND.isfinite()).sum()):
            raise InputError(f"weights must be finite, {number} of {weight_ND.numel()} are not")
        weight_ND = weight_ND.to(torch.promote_types(weight_ND.dtype, torch.float32))
        units.append(weight_ND / weight_ND.norm(dim=1, keepdim=True))  # 0 / 0 is NaN: no direction
    gate_ND, in_ND, out_ND = units
    pairs = ((in_ND, out_ND), (gate_ND, out_ND), (gate_ND, in_ND))
    return torch.stack([(a * b).sum(1) for a, b in pairs], 1).cpu()


def chance_cosine(width: int, level: float = 0.95) -> float:
    """Return the |cosine| that a share `level` of pairs of random directions stay below.

    The cosine c of random directions has (1 + c) / 2 of the distribution Beta((D - 1) / 2).

    Example:
        >>> round(chance_cosine(576), 4), round(chance_cosine(3), 4)
        (0.0816, 0.95)
    """
    from scipy.stats import beta

    half = (width - 1) / 2
    return float(2 * beta.ppf((1 + level) / 2, half, half) - 1)


@method(source="Gerstner & Schuetze 2025, arXiv:2505.17936", interface=ModelStatistic)
def io_functionality(
    model: Model, sites: str = "mlp_gate.*", threshold: float = 0.5
) -> dict[str, NeuronClasses]:
    """Return what the neurons of each gated MLP do, from enrichment to depletion.

    A neuron adds act(w_gate . x) (w_in . x) w_out to the stream. As in the paper: w_in is the row
    of the up projection, the gain of the norm before the MLP is folded into w_gate and w_in, and a
    neuron is atypical if the thresholded cos(w_gate, w_in) is not the product of the other two.
    Beyond it, the gain of a norm between MLP and stream (Gemma 2, OLMo 2) is folded into w_out.
    No data are needed; the network is not run.

    Args:
        model: A network with gated MLPs. Experts are refused: which of them writes is up to data.
        sites: The gates to look at; those of one stack of several are "encoder.mlp_gate.*".
        threshold: |cosine| above which two directions count as aligned.

    Raises:
        SiteError: The network, or one of its blocks, has no gated MLP.
        InputError: Its weights cannot be read.

    Example:
        >>> import actkit as ak
        >>> found = io_functionality(ak.open("smollm2"), "mlp_gate.9")["mlp_gate.9"]
        >>> found.counts["conditional enrichment"], found.counts["conditional depletion"]
        (304, 55)
    """
    gates = every_site(model, sites)
    if wrong := [s.name for s in gates if "mlp_gate." not in s.name]:
        raise SiteError(f"functionality is read at gates, mlp_gate.*, got {wrong[0]}")
    return {
        site.name: neuron_classes(*_folded(model, site), threshold)
        for site in track(gates, "classing neurons")
    }


def _folded(model: Model, gate: Site) -> tuple[Tensor, Tensor, Tensor]:
    """Return the (N, D) weights of gate, in and out, with the gains of the norms around them."""
    block = gate.name.rpartition("mlp_gate")[::2]
    up, down = (model.sites(point.join(block))[0] for point in ("mlp_pre", "mlp_hidden"))
    gate_ND, in_ND, out_ND = (neuron_weights(model, site).float() for site in (gate, up, down))
    # attention and MLP side by side share a norm, the only one that their block holds
    before = _module(model, "resid_mid".join(block)) or _module(model, "resid_pre".join(block))
    after = _module(model, "mlp_out".join(block))
    norms = [m for m in (before, *(before.children() if before else ())) if m and is_norm(m)]
    if len(norms) > 1:
        raise InputError(f"one norm must stand before an MLP, before {gate.name} are {len(norms)}")
    if norms:
        gain_D = norm_gain(norms[0], in_ND.shape[1]).to(in_ND)
        gate_ND, in_ND = gate_ND * gain_D, in_ND * gain_D
    if after and is_norm(after):
        out_ND = out_ND * norm_gain(after, out_ND.shape[1]).to(out_ND)
    return gate_ND, in_ND, out_ND


def _module(model: Model, name: str) -> nn.Module | None:
    """Return the module at which a site lies, None if the network lacks the site."""
    try:
        return model.module.get_submodule(model.sites(name)[0].place.path)
    except SiteError:
        return None
