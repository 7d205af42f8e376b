"""Hold a feature at a setpoint in every layer, by optimal linear feedback on the measured state.

Shapes: B batch, D width, K sites, J later sites.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.controller import StrengthOperation
from actkit.core.edits.edit import Edit, add, apply
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.run.recording import last_tokens
from actkit.core.sweep.stream import batches
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._states import chosen_layers, states
from actkit.steer.controllers.lqr._pullback import pullbacks
from actkit.steer.controllers.lqr._riccati import Plan, open_loop, riccati

LAST = Where(tokens="last")


@dataclass(frozen=True, eq=False)
class Regulate(StrengthOperation):
    """Add u = s push - F^T F (x - centre): towards the setpoint, and back from where x strayed.

    Example:
        >>> one = torch.ones(1)
        >>> Regulate(push=one * 3, centre=one * 2, factor=one[None])(torch.tensor([[[6.0]]]))
        tensor([[[5.]]])
    """

    identifier: ClassVar[str] = "lqr.regulate"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.lqr:Regulate",)
    push: Tensor
    centre: Tensor
    factor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return x + u, x itself in rows of strength 0."""
        dose = self.dose(x)
        feedback = ((x - self.centre) @ self.factor.mT) @ self.factor
        return x + (dose != 0) * (dose * self.push - feedback)


@dataclass(frozen=True, slots=True)
class Tracking:
    """How near edits bring a feature to its setpoints.

    Attributes:
        features_KB: Measured, at each site before the edits there.
        setpoints_K: Where they should be.
        effort_B: Sum over the sites of |u|^2, what the edits add at the last token.
    """

    features_KB: Tensor
    setpoints_K: Tensor
    effort_B: Tensor

    def rms(self, sites: slice = slice(None)) -> float:
        """Return the root mean square error over sites and rows."""
        error_KB = self.features_KB - self.setpoints_K[:, None]
        return float(error_KB[sites].square().mean().sqrt())


@method(source="Skifstad et al. 2026, arXiv:2604.19018, section 4")
@dataclass
class LQR(ContrastSteerer):
    """Steer by a finite-horizon linear quadratic regulator over the layers.

    The last token's state is a linear time-varying system over the layers, whose matrices are
    Jacobians averaged over a few examples; what it measures at a layer corrects the error of that
    model. Strength 1 puts every setpoint at the mean of the positive side, -1 at that of the
    negative one; near 0 the feature is held midway, at 0 nothing is done. The cost sees the
    feature alone, so that no square matrix is needed; the paper's code prices the whole state.

    Args:
        control_cost: r, the price of |u|^2 in squared deviations of the feature (> 0).
        layers: Where control may act, of those before the last; all of them if None.
        feedback: Act on the measured state; if not, add what is best from the mean state on.
        sites: The sites in order, one for each layer.
        num_calibration: How many examples of a side the Jacobians are averaged over.

    Attributes:
        sites_: Names of the K sites.
        means_: (K, D) midway between the sides.
        directions_: (K, D) unit vectors from the negative to the positive side.
        halves_: (K,) half the distance between the sides.
        pulled_: Of each site but the last (J, D), as `pullbacks` gives them.

    Example:
        >>> import actkit as ak
        >>> m = ak.open(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity()))
        >>> sides = {"positive": [torch.ones(1, 1, 1)], "negative": [-torch.ones(1, 1, 1)]}
        >>> lqr = LQR(control_cost=1.0, sites=["0:out", "1:out"]).fit(m, sides)
        >>> m.run(torch.zeros(1, 1, 1), edits=lqr.edits(1.0)).output.item()  # half of the way
        0.5
    """

    control_cost: float = 1.0
    layers: int | Sequence[int] | None = None
    feedback: bool = True
    sites: str | Sequence[str] = "resid_post.*"
    num_calibration: int = 4
    sites_: list[str] = field(init=False, repr=False, default_factory=list)
    means_: Tensor = field(init=False, repr=False, default_factory=lambda: torch.empty(0, 0))
    directions_: Tensor = field(init=False, repr=False, default_factory=lambda: torch.empty(0, 0))
    halves_: Tensor = field(init=False, repr=False, default_factory=lambda: torch.empty(0))
    pulled_: list[Tensor] = field(init=False, repr=False, default_factory=list)

    def tracking(
        self, model: Model, inputs: Any, edits: Sequence[Edit], strength: float = 1.0
    ) -> Tracking:
        """Measure how near any edits bring the feature to the setpoints of a strength.

        Args:
            model: The network.
            inputs: As in `Model.run`.
            edits: Those of this method, or others to compare with.
            strength: Of the setpoints.
        """
        before: list[Tensor] = []

        def watch(x: Tensor) -> Tensor:
            before.append(x)
            return x

        watched = [apply(site, watch) for site in self.sites_]
        rec = model.run(inputs, record=self.sites_, edits=[*watched, *edits])
        pairs = [
            [last_tokens(x, rec.rows_of(site)).double() for x in (old, rec[site])]
            for old, site in zip(before, self.sites_, strict=True)
        ]
        features = [old @ v for (old, _), v in zip(pairs, self.directions_, strict=True)]
        effort_B = sum((new - old).square().sum(-1) for old, new in pairs)
        centre_K = (self.means_ * self.directions_).sum(-1)
        return Tracking(
            torch.stack(features), centre_K + strength * self.halves_, torch.as_tensor(effort_B)
        )

    def _contrast(self, model: Model, examples: Examples) -> None:
        if not 0 < self.control_cost < float("inf"):
            raise InputError(f"control_cost must be positive, got {self.control_cost}")
        if self.num_calibration < 1:
            raise InputError(f"num_calibration must be at least 1, got {self.num_calibration}")
        sides = [states(model, own, self.sites) for own in (examples.positive, examples.negative)]
        self.sites_ = list(sides[0])
        if len(self.sites_) < 2:
            raise InputError(f"control over layers needs at least 2 sites, got {self.sites_}")
        positive_KD, negative_KD = (
            torch.stack([x_ND.double().mean(0) for x_ND in side.values()]) for side in sides
        )
        gap_KD = positive_KD - negative_KD
        self.halves_ = gap_KD.norm(dim=-1) / 2
        if not (self.halves_.isfinite().all() and self.halves_.any()):
            raise InputError(f"the sides must differ by finite gaps, got {2 * self.halves_}")
        self.means_ = (positive_KD + negative_KD) / 2
        self.directions_ = torch.nn.functional.normalize(gap_KD, dim=-1)
        few = [*islice(examples.positive, self.num_calibration)]
        few += islice(examples.negative, self.num_calibration)
        self.pulled_ = pullbacks(model, list(batches(few, 8)), self.sites_, self.directions_)

    def _act(self, strength: Strength) -> list[Edit]:
        known = dict.fromkeys(range(len(self.pulled_)))
        chosen = list(known) if self.layers is None else chosen_layers(self.layers, known)
        plans = riccati(self.pulled_, self.halves_, self.control_cost, chosen)
        if not self.feedback:
            pushes = open_loop(self.pulled_, plans)
            return [add(self.sites_[k], pushes[k].float(), strength, LAST) for k in chosen]
        return [Edit(self.sites_[k], self._regulate(k, plans[k], strength), LAST) for k in chosen]

    def _regulate(self, k: int, plan: Plan, strength: Strength) -> Regulate:
        values_J, vectors_JJ = torch.linalg.eigh(plan.gain_JJ)
        root_JJ = values_J.clamp_min(0).sqrt()[:, None] * vectors_JJ.mT
        push_D, factor_JD = plan.drive_J @ plan.pulled_JD, root_JJ @ plan.pulled_JD
        parts = (push_D.float(), self.means_[k].float(), factor_JD.float())
        return Regulate(*parts, strength=strength)
