"""Is a direction real? What its parts inside and outside of the next map's sight do alone.

Shapes: B pairs, T tokens, D width, O outputs of the next map, J directions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.anatomy.linear_map import is_linear, weight_of
from actkit.core.edits.edit import Edit, swap
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.sites.site import Site
from actkit.model import Model
from actkit.trace._subspace import SubspaceEffect, effects, orthonormal, subspace_edits
from actkit.trace._task import Task, Trial, as_trial

TINY = 1e-5
"""A part of a unit direction that is shorter than this is none."""
LEAST = 0.05
"""A smaller effect is none."""


@dataclass(frozen=True, eq=False)
class Illusion:
    """What patching a direction, its parts and the whole activation does.

    Attributes:
        direction: Patching the direction itself.
        row: Patching its part in the row space of the next map, normalised: what the rest of the
            network sees of it. None if it has none.
        null: Patching its part in the null space, normalised; has no effect. None if none.
        full: Patching the whole activation.
        share_row: Squared length of the part in the row space, of 1.
        spread_row: How far clean and corrupt activations differ along the part in the row space,
            mean square, against a direction of average spread; small if it is dormant.
        spread_null: The same of the part in the null space.
        illusory: Whether the direction has an effect that the part that is seen does not have.
    """

    direction: SubspaceEffect
    row: SubspaceEffect | None
    null: SubspaceEffect | None
    full: SubspaceEffect
    share_row: float
    spread_row: float
    spread_null: float
    illusory: bool

    def table(self) -> str:
        """Return effect and interchange accuracy of each patch, one a line."""
        told = (
            ("direction", self.direction),
            ("row space", self.row),
            ("null space", self.null),
            ("everything", self.full),
        )
        lines = [f"{n:12} {e.effect:+8.3f} {e.accuracy:9.2f}" for n, e in told if e is not None]
        return "\n".join([f"{'patched':12} {'effect':>8} {'accuracy':>9}", *lines])


def illusion_test(
    model: Model,
    task: Task | Trial,
    site: str,
    direction: Tensor,
    where: Where | None = None,
    readout: Tensor | None = None,
    share: float = 0.5,
) -> Illusion:
    """Test whether a direction works through a pathway that is otherwise dormant.

    The direction is split into what the next linear map sees and what it does not, v = v_row +
    v_null. If the feature lay along v, v_row alone would work; an illusion needs both: v_null,
    which is correlated with the feature and not connected, moves v_row, which is connected and
    does not vary.

    Args:
        model: The network.
        task: Pairs of prompts with a metric.
        site: What the next linear map reads: "mlp_hidden.8", "z.9.6", "path:in".
        direction: (D,).
        where: Which tokens are patched; all if None.
        readout: (O, D), the next map; the weight of the linear module that reads the site if
            None. It should be the map into the stream: a map to one number has a line for its row
            space, and no direction on it is dormant.
        share: Below which share of the direction's effect the row part's must lie to call it an
            illusion; an effect below 0.05 is none.

    Raises:
        InputError: The direction is zero or no vector, the readout does not fit, or is unknown.
    """
    trial = as_trial(model, task)
    v_JD = orthonormal(direction)
    source, base = trial.source("clean", [site]), trial.record("corrupt", [site])
    if direction.shape != source[site].shape[-1:]:
        raise InputError(
            f"a direction must be one of width {source[site].shape[-1]} at {site}, "
            f"got shape {tuple(direction.shape)}"
        )
    weight_OD = _readout(model, site) if readout is None else readout.detach()
    if weight_OD.dim() != 2 or weight_OD.shape[1] != v_JD.shape[1]:
        raise InputError(f"a readout must be (O, {v_JD.shape[1]}), got {tuple(weight_OD.shape)}")
    row_JD = _in_row_space(v_JD, weight_OD)
    parts = {"row": row_JD, "null": v_JD - row_JD}
    known = {name: x / x.norm() for name, x in parts.items() if x.norm() > TINY}
    variants: dict[str, list[Edit]] = {
        name: subspace_edits(site, source, x, where)
        for name, x in {"direction": v_JD, **known}.items()
    }
    variants["full"] = [swap(site, source, where)]
    found = dict(zip(variants, effects(trial, list(variants.values())), strict=True))
    whole = found["direction"].effect
    seen = found["row"].effect if "row" in found else 0.0
    difference = (source[site] - base[site]).to(v_JD.dtype)
    return Illusion(
        found["direction"],
        found.get("row"),
        found.get("null"),
        found["full"],
        share_row=float(row_JD.norm()) ** 2,
        spread_row=_spread(difference, known.get("row")),
        spread_null=_spread(difference, known.get("null")),
        illusory=abs(whole) > LEAST and seen / whole < share,
    )


def rank_one_edit(weight_OD: Tensor, direction: Tensor, source_D: Tensor, base_D: Tensor) -> Tensor:
    """Return the weight that does to one activation what patching along a direction does.

    W' = W + W (v v^T (u_source - u_base)) v^T / (v^T u_base), so that W' u_base = W u_patched.

    Raises:
        InputError: The activation has nothing along the direction.

    Example:
        >>> v, ones = torch.tensor([1.0, 0.0]), torch.ones(2)
        >>> rank_one_edit(torch.eye(2), v, 3 * ones, ones) @ ones
        tensor([3., 1.])
    """
    v_D = orthonormal(direction)[0].to(weight_OD.dtype)
    if (along := v_D @ base_D).abs() <= TINY * base_D.norm():
        raise InputError(f"the activation must have a part along the direction, got {float(along)}")
    written_O = weight_OD @ v_D * (v_D @ (source_D - base_D))
    edited: Tensor = weight_OD + torch.outer(written_O, v_D) / along
    return edited


def _in_row_space(v_JD: Tensor, weight_OD: Tensor) -> Tensor:
    _, sizes, rows = torch.linalg.svd(weight_OD.double(), full_matrices=False)
    rows = rows[sizes > sizes.max() * 1e-6]
    inside: Tensor = v_JD.double() @ rows.mT @ rows
    return inside.to(v_JD.dtype)


def _spread(difference: Tensor, v_JD: Tensor | None) -> float:
    if v_JD is None:
        return 0.0
    average = difference.pow(2).sum(-1).mean() / difference.shape[-1]
    return float((difference @ v_JD.mT).pow(2).mean() / average)


def _readout(model: Model, name: str) -> Tensor:
    """Return the (O, D) weight of the linear module whose input the site is."""
    site: Site = model.sites(name)[0]
    module = model.module.get_submodule(site.place.path)
    if site.place.side != "in" or not is_linear(module):
        raise InputError(f"{name} is not the input of a linear map; give its readout (O, D)")
    weight_OD = weight_of(module)
    if site.head is None:
        return weight_OD
    width = weight_OD.shape[1] // (site.place.layout.heads or 1)
    return weight_OD[:, site.head * width : (site.head + 1) * width]
