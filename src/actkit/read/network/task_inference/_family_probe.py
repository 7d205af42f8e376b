"""A linear read-out of the family of a prompt's task.

Shapes: M rows, W width of a site.
"""

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from actkit.core.errors import InputError


@dataclass(eq=False)
class FamilyProbe:
    """A logistic regression on activations for whether a prompt's task is a discrete one.

    Args:
        penalty: Strength of the L2 penalty on the weights of standardised activations (> 0).
    """

    penalty: float = 1.0
    _fitted: Any = field(default=None, init=False, repr=False)

    def fit(self, acts_MW: Tensor, discrete_M: Tensor) -> Self:
        """Fit on (M, W) activations and (M,) bool labels; return self.

        Raises:
            InputError: Labels do not fit, or are all of one family.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if acts_MW.dim() != 2 or discrete_M.shape != acts_MW.shape[:1]:
            raise InputError(
                "a probe needs activations (M, W) and labels (M,), "
                f"got {tuple(acts_MW.shape)} and {tuple(discrete_M.shape)}"
            )
        num_discrete = int(discrete_M.sum())
        if num_discrete in (0, len(discrete_M)):
            raise InputError(
                "a probe needs prompts of both families, "
                f"got {num_discrete} discrete of {len(discrete_M)}"
            )
        regression = LogisticRegression(C=1 / self.penalty, max_iter=1000)
        self._fitted = make_pipeline(StandardScaler(), regression)
        self._fitted.fit(acts_MW.double().cpu().numpy(), discrete_M.bool().cpu().numpy())
        return self

    def posterior(self, acts_MW: Tensor) -> Tensor:
        """Return the (M,) probability of the discrete family.

        Raises:
            InputError: The probe is not fitted.
        """
        if self._fitted is None:
            raise InputError("a probe must be fitted before it is used")
        probs_MC = self._fitted.predict_proba(acts_MW.double().cpu().numpy())
        return torch.from_numpy(probs_MC[:, 1])
