"""AtP*: attribution patching that neither saturated attention nor cancellation can blind.

Shapes: B pairs, T tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, apply
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.model import Model
from actkit.trace._base import Localizer
from actkit.trace._gradients import product, sides, signed_gap, with_metric
from actkit.trace._parts import Part, Parts
from actkit.trace._task import Trial
from actkit.trace.nodes.atp_star._attention_patterns import NEEDED, Effect, pattern_effects


@method(source="Kramár et al. 2024, arXiv:2403.00745, section 3.1")
@dataclass
class AtPStar(Localizer):
    """Score each part by attribution patching with the QK fix and GradDrop.

    The QK fix: for queries and keys the attention pattern is computed again with the patched ones,
    and only what follows the pattern is linear, (A_patched - A) dM/dA. GradDrop: there are as many
    gradients as blocks, each without what one block adds to the stream; a score is the mean size
    of its products with them, so that a direct effect no longer hides behind an indirect one of
    the other sign. Scores are then sizes, never negative. Three forward passes, and one backward
    pass for each block.
    Differs from the paper: scores are shares of the gap. Keys that serve several query heads are
    one part, whose effect is the sum over these heads. A part of the stream itself is dropped by
    no block, so its mean is over all of them.

    Args:
        parts: As in `AttributionPatching`; `Parts("q", ("position", "head"))` and "k" are fixed.
        direction: "denoise" or "noise".
        grad_drop: False leaves it out: one gradient, and signed scores.

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> AtPStar("heads")(Model(reader(at=(1, 1))), first).values
        tensor([[0., 0., 0.],
                [0., 1., 0.]])
    """

    unit: ClassVar[str] = "share of the gap"
    parts: str | Parts = "heads"
    direction: Literal["denoise", "noise"] = "denoise"
    grad_drop: bool = True

    def __post_init__(self) -> None:
        """Refuse unknown directions."""
        sides(self.direction)

    def _score(self, trial: Trial, parts: Parts) -> list[Tensor]:
        names = [site.name for site in parts.sites(trial.model)]
        gate = _Gate(trial.model)
        if self.grad_drop and gate.num_blocks < 2:
            raise InputError("GradDrop needs at least 2 blocks, got 1; set grad_drop=False")
        edits = gate.edits() if self.grad_drop else []
        inputs, effects, values = self._linear(trial, parts, names, edits)
        gap = signed_gap(trial, sides(self.direction)[1])
        found: list[list[Tensor]] = [[] for _ in names]
        for dropped in track(range(gate.num_blocks), "backward") if self.grad_drop else [None]:
            gate.dropped = dropped
            gradients = torch.autograd.grad(values.sum(), inputs, retain_graph=True)
            for name, effect, gradient, kept in zip(names, effects, gradients, found, strict=True):
                if Part(name).layer != dropped or parts.point.startswith("resid"):
                    x = effect(gradient).float() / gap
                    kept.append(torch.stack([parts.summed(row[None]) for row in x]))
        of_pairs = [torch.stack(f) for f in found]  # gradients x pairs x ...
        return [(x.abs() if self.grad_drop else x).mean((0, 1)) for x in of_pairs]

    def _linear(
        self, trial: Trial, parts: Parts, names: list[str], edits: list[Edit]
    ) -> tuple[list[Tensor], list[Effect], Tensor]:
        """Return where gradients are taken, what each says of the parts there, and the metric."""
        side, onto = sides(self.direction)
        if parts.point in ("q", "k"):
            layers = [Part(name).layer for name in names]
            base, values = with_metric(
                trial, onto, [f"{p}.{i}" for i in layers for p in NEEDED], edits
            )
            effects = pattern_effects(trial, parts, self.direction, base, layers)
            return [base[f"attn_probs.{i}"] for i in layers], effects, values
        source = trial.source(side, names)
        base, values = with_metric(trial, onto, names, edits)
        plain: list[Effect] = [partial(product, source, base, name) for name in names]
        return [base[name] for name in names], plain, values


class _Gate:
    """Lets no gradient pass through what one block adds to the stream; values stay as they are."""

    def __init__(self, model: Model) -> None:
        self.num_blocks = len(model.sites("attn_out.*"))
        self.dropped: int | None = None

    def edits(self) -> list[Edit]:
        return [
            apply(f"{point}.{block}", partial(self._watch, block))
            for block in range(self.num_blocks)
            for point in ("attn_out", "mlp_out")
        ]

    def _watch(self, block: int, x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(  # type: ignore[no-untyped-call]
                lambda g: torch.zeros_like(g) if self.dropped == block else g
            )
        return x
