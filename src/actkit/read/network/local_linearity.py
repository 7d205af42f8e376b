"""How well each block of a network is its own linear model around a state.

Shapes: B batch, T tokens, D width, S stages, E sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, add
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import last_tokens
from actkit.core.sweep.derivative import derivative
from actkit.read._base import ModelStatistic

if TYPE_CHECKING:
    from actkit.model import Model

LAST = Where(tokens="last")
BLOCKS = ("resid_pre.*", "resid_post.*")


@dataclass(frozen=True, slots=True)
class LocalLinearity:
    """Errors of first-order models, as shares of the change that they predict.

    Attributes:
        stages: Site that is moved and site that is read, of each stage.
        sizes: Lengths of the moves as shares of the state's, increasing.
        error_SE: |f(x + d) - f(x) - J d| / |J d|, mean over the rows, float64.
        slope_S: Of log error by log size; 1 where the rest is of second order.
    """

    stages: tuple[tuple[str, str], ...]
    sizes: tuple[float, ...]
    error_SE: Tensor
    slope_S: Tensor


@method(source="Skifstad et al. 2026, arXiv:2604.19018, section 5", interface=ModelStatistic)
def local_linearity(
    model: "Model",
    inputs: Any,
    stages: Sequence[tuple[str, str]] | None = None,
    sizes: Sequence[float] = (0.05, 0.1, 0.2),
    seed: int = 0,
) -> LocalLinearity:
    """Compare blocks with their Jacobians, along random moves of the last token's state.

    The paper compares Jacobians at different states; here their error is measured directly.

    Args:
        model: The network.
        inputs: As in `Model.run`.
        stages: Pairs of sites; each block of the stream if None.
        sizes: Lengths of the moves as shares of the state's length, at least 2.
        seed: Of the directions, one for each row and stage.

    Raises:
        InputError: The sizes are not different positive numbers, or a stage does not depend on
            what is moved.

    Example:
        >>> import actkit as ak
        >>> class Square(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x * x
        >>> m = ak.open(torch.nn.Sequential(torch.nn.Identity(), Square()))
        >>> found = local_linearity(m, torch.ones(1, 1, 1), [("0:out", "1:out")], (0.1, 0.2))
        >>> found.error_SE  # d^2 / (2 x d) = d / 2
        tensor([[0.0500, 0.1000]], dtype=torch.float64)
    """
    shares_E = torch.tensor(sorted(sizes), dtype=torch.float64)
    if len(set(sizes)) < 2 or not ((shares_E > 0) & shares_E.isfinite()).all():
        raise InputError(f"sizes must be at least 2 different positive numbers, got {sizes}")
    if stages is None:
        stages = list(zip(*([s.name for s in model.sites(p)] for p in BLOCKS), strict=True))
    gen = torch.Generator().manual_seed(seed)
    errors = [
        _errors(model, inputs, stage, shares_E.tolist(), gen)
        for stage in track(stages, "moving states")
    ]
    error_SE = torch.stack(errors)
    log_E = (shares_E.log() - shares_E.log().mean()).to(error_SE.device)
    slope_S = (error_SE.log() * log_E).sum(-1) / log_E.square().sum()
    return LocalLinearity(tuple(stages), tuple(shares_E.tolist()), error_SE, slope_S)


def _errors(
    model: "Model",
    inputs: Any,
    stage: tuple[str, str],
    sizes: Sequence[float],
    gen: torch.Generator,
) -> Tensor:
    """Return the (E,) mean relative errors of one stage."""
    start, end = stage
    rec = model.run(inputs, record=start)
    x_BD = last_tokens(rec[start], rec.rows_of(start))
    d_BD = torch.randn(x_BD.shape, generator=gen).to(x_BD)
    d_BD = d_BD / d_BD.norm(dim=-1, keepdim=True) * x_BD.norm(dim=-1, keepdim=True)

    def moved(size: float | Tensor) -> list[Edit]:
        return [add(start, d_BD, size, LAST)]

    def read(x: Tensor) -> Tensor:
        return last_tokens(x, rows).double()

    value, slope = derivative(model, inputs, moved, end)
    found = []
    for size in sizes:
        run = model.run(inputs, record=end, edits=moved(size))
        rows = run.rows_of(end)
        first_BD = size * read(slope)
        rest_BD = read(run[end]) - read(value) - first_BD
        found.append((rest_BD.norm(dim=-1) / first_BD.norm(dim=-1)).mean())
    errors_E = torch.stack(found)
    if not errors_E.isfinite().all():
        raise InputError(f"{end} must depend on what is moved at {start}, got errors {errors_E}")
    return errors_E
