"""In-context regression on a mixture of a few known tasks and all tasks: the exact answers.

Shapes: B prompts, N points in a prompt, Q queries, D inputs, K discrete tasks.
"""

from dataclasses import dataclass
from math import log, pi
from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """Prompts of points of a linear task, and queries of the same task.

    Attributes:
        x_BND: Inputs of the points.
        y_BN: Their labels.
        query_BQD: Inputs whose labels are asked for.
        target_BQ: The answers, without noise; None if they are not known.
        discrete_B: bool, whether a prompt's task is a discrete one; None if not known.
    """

    x_BND: Tensor
    y_BN: Tensor
    query_BQD: Tensor
    target_BQ: Tensor | None = None
    discrete_B: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse tensors that do not belong together, and numbers that are none."""
        x, y, query = self.x_BND.shape, self.y_BN.shape, self.query_BQD.shape
        if len(x) != 3 or y != x[:2] or len(query) != 3 or query[::2] != x[::2]:
            raise InputError(
                "prompts need x (B, N, D), y (B, N) and queries (B, Q, D), "
                f"got {tuple(x)}, {tuple(y)} and {tuple(query)}"
            )
        given = (self.x_BND, self.y_BN, self.query_BQD)
        if num_nonfinite := sum(int((~t.isfinite()).sum()) for t in given):
            raise InputError(f"prompts must be finite, got {num_nonfinite} NaN or infinite")


@dataclass(frozen=True, slots=True, eq=False)
class TaskMixture:
    """Labels y = x . w + noise, where w is one of K known tasks, or Gaussian.

    Args:
        tasks_KD: The discrete tasks, one of which is drawn with probability `share`.
        share: Prior probability of the discrete family, in (0, 1).
        noise: Standard deviation of the labels' noise (> 0).
        scale: Standard deviation of each weight of a continuous task (> 0).

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> mixture = TaskMixture(torch.tensor([[1.0]]))
        >>> x_BND, y_BN = torch.ones(1, 1, 1), torch.ones(1, 1)
        >>> float(mixture.ridge(x_BND, y_BN)), float(mixture.discrete(x_BND, y_BN))
        (0.5, 1.0)
        >>> round(float(mixture.posterior(x_BND, y_BN)), 3)  # N(1; 1, 1) against N(1; 0, 2)
        0.645
    """

    tasks_KD: Tensor
    share: float = 0.5
    noise: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        sound = 0 < self.share < 1 and self.noise > 0 and self.scale > 0
        if not sound or self.tasks_KD.dim() != 2 or not self.tasks_KD.numel():
            raise InputError(
                "a mixture needs tasks (K, D), a share in (0, 1), noise and scale above 0, got "
                f"shape {tuple(self.tasks_KD.shape)}, {self.share}, {self.noise}, {self.scale}"
            )

    def draw(
        self, num: int, num_points: int, num_queries: int, share: float | None = None, seed: int = 0
    ) -> Prompts:
        """Draw prompts with standard normal inputs; with `share` 1 or 0 of one family alone.

        They have the tasks' own dtype.
        """
        gen = torch.Generator().manual_seed(seed)
        as_tasks: dict[str, Any] = {"generator": gen, "dtype": self.tasks_KD.dtype}
        num_tasks, width = self.tasks_KD.shape
        discrete_B = torch.rand(num, generator=gen) < (self.share if share is None else share)
        index_B = torch.randint(num_tasks, (num,), generator=gen)
        any_BD = self.scale * torch.randn(num, width, **as_tasks)
        task_BD = torch.where(discrete_B[:, None], self.tasks_KD[index_B], any_BD)
        x_BND = torch.randn(num, num_points, width, **as_tasks)
        query_BQD = torch.randn(num, num_queries, width, **as_tasks)
        noise_BN = self.noise * torch.randn(num, num_points, **as_tasks)
        y_BN = linear(x_BND, task_BD) + noise_BN
        return Prompts(x_BND, y_BN, query_BQD, linear(query_BQD, task_BD), discrete_B)

    def ridge(self, x_BND: Tensor, y_BN: Tensor) -> Tensor:
        """Return the (B, D) posterior mean of a continuous task."""
        eye_DD = torch.eye(x_BND.shape[2], dtype=x_BND.dtype, device=x_BND.device)
        gram_BDD = x_BND.mT @ x_BND + (self.noise / self.scale) ** 2 * eye_DD
        weights: Tensor = torch.linalg.solve(gram_BDD, (x_BND.mT @ y_BN[..., None])[..., 0])
        return weights

    def discrete(self, x_BND: Tensor, y_BN: Tensor) -> Tensor:
        """Return the (B, D) posterior mean of a discrete task."""
        return self._fit(x_BND, y_BN).softmax(-1) @ self.tasks_KD.to(x_BND)

    def posterior(self, x_BND: Tensor, y_BN: Tensor) -> Tensor:
        """Return the (B,) probability that a prompt's task is a discrete one."""
        num_points = x_BND.shape[1]
        log_tasks = log(len(self.tasks_KD)) + num_points / 2 * log(2 * pi * self.noise**2)
        discrete_B = self._fit(x_BND, y_BN).logsumexp(-1) - log_tasks
        eye_NN = torch.eye(num_points, dtype=x_BND.dtype, device=x_BND.device)
        cov_BNN = self.noise**2 * eye_NN + self.scale**2 * x_BND @ x_BND.mT
        root_BNN = torch.linalg.cholesky(cov_BNN)
        white_BN = torch.linalg.solve_triangular(root_BNN, y_BN[..., None], upper=False)[..., 0]
        log_volume_B = root_BNN.diagonal(dim1=1, dim2=2).log().sum(1)
        any_B = -white_BN.square().sum(1) / 2 - log_volume_B - num_points / 2 * log(2 * pi)
        odds_B: Tensor = log(self.share / (1 - self.share)) + discrete_B - any_B
        return odds_B.sigmoid()

    def weights(self, x_BND: Tensor, y_BN: Tensor) -> Tensor:
        """Return the (B, D) Bayes estimate g w_disc + (1 - g) w_ridge."""
        g_B1 = self.posterior(x_BND, y_BN)[:, None]
        return g_B1 * self.discrete(x_BND, y_BN) + (1 - g_B1) * self.ridge(x_BND, y_BN)

    def _fit(self, x_BND: Tensor, y_BN: Tensor) -> Tensor:
        """Return -sum (y - x . w_k)^2 / 2 s^2, (B, K)."""
        miss_BNK = y_BN[..., None] - x_BND @ self.tasks_KD.to(x_BND).mT
        return -miss_BNK.square().sum(1) / (2 * self.noise**2)


def linear(x_BND: Tensor, weight_BD: Tensor) -> Tensor:
    """Return x . w, (B, N)."""
    return (x_BND @ weight_BD[..., None])[..., 0]
