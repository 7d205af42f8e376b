"""How the stream moves from layer to layer, taken as time: correlation, velocity, orbits.

Shapes: N rows, D width, S sites, P = S - 1 steps between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Self, final

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read._base import JointReading
from actkit.read._sums import added, mergeable, same_width
from actkit.read.streaming._joint import in_range, lengths, one_stream, usable_rows
from actkit.read.streaming.stream_dynamics._paths import reduced_paths as reduced_paths
from actkit.read.streaming.stream_dynamics._paths import rotations as rotations
from actkit.read.streaming.stream_dynamics._paths import turning_angles as turning_angles
from actkit.read.streaming.stream_dynamics._stream_sums import StreamSums

_CHUNK = 512  # rows at a time: a site's deviations and products stay in the cache


@dataclass(frozen=True, slots=True)
class StreamDynamicsResult:
    """What happens at each step from one site to the next; NaN where no row was usable.

    Attributes:
        correlation_PD: (P, D) float64 Pearson r over tokens between a unit at one site and
            the same unit at the next; NaN where a unit is constant.
        control_PD: The same between a unit and another one at the next site.
        cosine_P: Mean cosine between a token's states.
        velocity_P: Mean length of a token's step.
        acceleration: (P - 1,) change of the velocity from step to step.
        density_S: Share of the entries whose magnitude is above the threshold.
        path_SD: (S, D) mean state at each site.
        rotations_D: Rotations of each unit's mean path, as `rotations` gives them.
        turning: (S - 2,) `turning_angles` of the mean path.
        num_rows: Tokens that were used.
        num_nonfinite: Tokens that were left out since they hold NaN or infinity.
    """

    correlation_PD: Tensor
    control_PD: Tensor
    cosine_P: Tensor
    velocity_P: Tensor
    acceleration: Tensor
    density_S: Tensor
    path_SD: Tensor
    rotations_D: Tensor
    turning: Tensor
    num_rows: int
    num_nonfinite: int

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report; means over units and steps."""
        quarter = max(1, len(self.velocity_P) // 4)
        first, last = self.velocity_P[:quarter].mean(), self.velocity_P[-quarter:].mean()
        return {
            "correlation": float(self.correlation_PD.nanmean()),
            "control": float(self.control_PD.nanmean()),
            "cosine": float(self.cosine_P.mean()),
            "velocity": float(self.velocity_P.mean()),
            "velocity_last_to_first": float(last / first),
            "density_first": float(self.density_S[0]),
            "density_last": float(self.density_S[-1]),
            "rotations": float(self.rotations_D.nanmean()),
            "num_rows": self.num_rows,
            "num_nonfinite": self.num_nonfinite,
        }


@method(source="Fernando and Guitchounts 2025, arXiv:2502.12131")
@final
@dataclass(eq=False)
class StreamDynamics(JointReading):
    """Read how the residual stream moves from site to site: correlation, velocity, orbits.

    As in the paper, with layers as time: how well each unit's values correlate over tokens with
    its values at the next site, and with another unit's as a control; cosine and length of the
    tokens' steps; how many entries are large; and how each unit's mean path turns in its phase
    portrait. Mutual information, which needs all rows at once, is left out; so is the first
    token of a text, whose state is massive in many language models. A state of zero has cosine 0.

    Args:
        threshold: Magnitude above which an entry counts as dense (>= 0).
        leave_out: Units that are taken as zero, massive ones for example.
        skip_first: Leave out the first token of every text.
        seed: Of the control's partners: at each step one offset between units, the same for all.

    Raises:
        InputError: The threshold is negative.

    Example:
        >>> acts = [torch.tensor([[0.0, 1.0], [3.0, 1.0]]), torch.tensor([[0.0, 0.0], [6.0, 1.0]])]
        >>> reading = StreamDynamics(skip_first=False)
        >>> reading.update(acts, Rows.of(torch.ones(1, 2, dtype=torch.bool)).flat())
        >>> reading.result().velocity_P, reading.result().correlation_PD
        (tensor([2.], dtype=torch.float64), tensor([[1., nan]], dtype=torch.float64))
    """

    threshold: float = 1.0
    leave_out: tuple[int, ...] = ()
    skip_first: bool = True
    seed: int = 0
    _state: StreamSums | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the threshold."""
        if not self.threshold >= 0:
            raise InputError(f"threshold must be at least 0, got {self.threshold}")

    def update(self, acts: Sequence[Tensor], rows: Rows) -> None:
        """Take the (N, D) activations of the sites in order, and the (N,) rows.

        Raises:
            InputError: There are fewer than two sites, their shapes or rows do not fit, or a unit
                to leave out does not exist.
        """
        one_stream(acts, rows, least=2)
        width = acts[0].shape[1]
        if wrong := [u for u in self.leave_out if not 0 <= u < width]:
            raise InputError(f"units to leave out must be 0 to {width - 1}, got {wrong}")
        for start in range(0, max(len(rows), 1), _CHUNK):
            part = slice(start, start + _CHUNK)
            self._take([self._prepared(x[part]) for x in acts], rows[part])

    def _prepared(self, acts_ND: Tensor) -> Tensor:
        acts_ND = acts_ND.detach()
        acts_ND = acts_ND.cpu() if acts_ND.device.type == "mps" else acts_ND  # it has no float64
        acts_ND = acts_ND.to(torch.promote_types(acts_ND.dtype, torch.float32))
        if self.leave_out:
            units = torch.tensor(self.leave_out, device=acts_ND.device)
            acts_ND = acts_ND.index_fill(1, units, 0)
        return acts_ND

    def _take(self, acts: Sequence[Tensor], rows: Rows) -> None:
        length_SN = torch.stack([lengths(x) for x in acts])
        keep_N, num_nonfinite = usable_rows(rows, length_SN.isfinite().all(0), self.skip_first)
        width = acts[0].shape[1]
        if self._state is None:
            gen = torch.Generator().manual_seed(self.seed)
            shifts = torch.randint(1, max(width, 2), (len(acts) - 1,), generator=gen)
            self._state = StreamSums.empty(tuple(shifts.tolist()), width)
        same_width(len(self._state.mean_SD), len(acts), "number of sites")
        state = StreamSums.empty(self._state.shifts, width, num_nonfinite)
        if keep_N.any():
            if not in_range(length_SN[:, keep_N]):
                acts = [x.double() for x in acts]
            state.add(acts, length_SN, keep_N, self.threshold)
        self._state = self._state + state

    def merge(self, other: Self) -> Self:
        """Take in another reading's rows; return self."""
        mergeable(self, other)
        self._state = added(self._state, other._state)
        return self

    def result(self) -> StreamDynamicsResult:
        """Return the means and correlations over all rows so far."""
        state = self._state or StreamSums.empty((1,), 0)
        num = state.num_rows or nan
        squares_SD = state.squares_SD
        scale_2PD = (squares_SD[:-1] * state.partners(squares_SD)).sqrt()
        r_2PD = (state.products_2PD / scale_2PD).where(scale_2PD > 0, nan).clamp(-1, 1)
        cosine_P, velocity_P = state.paces_2P / num
        path_SD = state.mean_SD * (num / num)
        return StreamDynamicsResult(
            correlation_PD=r_2PD[0],
            control_PD=r_2PD[1],
            cosine_P=cosine_P,
            velocity_P=velocity_P,
            acceleration=velocity_P.diff(),
            density_S=state.dense_S / (num * (path_SD.shape[1] - len(self.leave_out))),
            path_SD=path_SD,
            rotations_D=rotations(path_SD),
            turning=turning_angles(path_SD),
            num_rows=state.num_rows,
            num_nonfinite=state.num_nonfinite,
        )
