"""How a push of the stream at one site grows or fades on its way through the later layers.

Shapes: N rows, D width, K sites, R random directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import add
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.read._base import ModelStatistic

if TYPE_CHECKING:
    from actkit.core.run.recording import Recording
    from actkit.model import Model


LAST = Where(tokens="last")


@dataclass(frozen=True, slots=True)
class PerturbationResult:
    """Distances to the unperturbed path, as multiples of the distance at the perturbed site.

    Attributes:
        sites: Where the distance was measured.
        ratio_K: (K,) float64 mean ratio over the perturbed rows; below 1 the path comes back.
        random_RK: (R, K) the same for random directions of the same length.
        growth_K: (K,) mean length of the unperturbed states / that at the perturbed site.
        num_rows: Perturbed rows.
    """

    sites: tuple[str, ...]
    ratio_K: Tensor
    random_RK: Tensor
    growth_K: Tensor
    num_rows: int


@method(source="Fernando and Guitchounts 2025, arXiv:2502.12131", interface=ModelStatistic)
def perturbation_ratios(
    model: "Model",
    inputs: Any,
    site: str,
    delta: Tensor,
    later: str | Sequence[str],
    num_random: int = 4,
    seed: int = 0,
) -> PerturbationResult:
    """Push the last token's state at a site and follow the distance to its original path.

    As in the paper a state is moved and the network goes on from there: where later layers bring
    it back, as an attractor would, the ratio falls with the layers. Distances are in the full
    space, not in a reduced one.

    Args:
        model: The network.
        inputs: As in `Model.run`.
        site: Where to push.
        delta: (D,), or (B, D) one for each text: what is added there.
        later: Sites or patterns to follow; what lies before the push is at distance 0.
        num_random: How many random directions to compare with.
        seed: Of the random directions.

    Raises:
        InputError: The push moves no row at all, or a state by an infinite distance.

    Example:
        >>> import actkit as ak
        >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 2, bias=False))
        >>> _ = torch.nn.init.constant_(net[1].weight, 0.25)
        >>> push = torch.tensor([1.0, 1.0])
        >>> perturbation_ratios(ak.open(net), torch.ones(3, 2), "0:out", push, "1:out").ratio_K
        tensor([0.5000], dtype=torch.float64)
    """
    names = [site, *([later] if isinstance(later, str) else later)]
    plain = model.run(inputs, record=names)
    gen = torch.Generator().manual_seed(seed)
    shape = (num_random, *delta.shape)
    random = torch.randn(shape, generator=gen, dtype=torch.float64).to(delta)
    random *= delta.norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True)
    ratios = []
    for push in track([delta, *random], "perturbing"):
        pushed = model.run(inputs, record=names, edits=[add(site, push, where=LAST)])
        gap_KN = torch.stack([_rows(pushed, s) - _rows(plain, s) for s in plain]).norm(dim=-1)
        moved_N = gap_KN[0] > 0
        if not moved_N.any() or not gap_KN[0].isfinite().all():
            raise InputError(
                f"a push at {site} must move a state by a finite distance, got lengths of delta "
                f"up to {float(delta.norm(dim=-1).max()):.3g} and {int(moved_N.sum())} moved rows"
            )
        ratios.append((gap_KN[1:, moved_N] / gap_KN[0, moved_N]).mean(1))
    length_K = torch.stack([_rows(plain, s).norm(dim=-1)[moved_N].mean() for s in plain])
    return PerturbationResult(
        tuple(plain)[1:],
        ratios[0],
        torch.stack(ratios[1:]) if num_random else ratios[0].new_empty(0, len(ratios[0])),
        length_K[1:] / length_K[0],
        int(moved_N.sum()),
    )


def _rows(rec: "Recording", site: str) -> Tensor:
    return rec.flat(site)[0].double().cpu()
