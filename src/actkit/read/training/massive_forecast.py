"""Forecast a layer's curve of massive activations from its network's architecture.

Shapes: L layers, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.read._base import Forecast
from actkit.read.training._massive_curve import Parameters

_LOGGED = 4  # of the five numbers, all but K, are at least 0


@method(source="Gallego-Feliciano et al. 2025, arXiv:2508.03616")
@dataclass(eq=False)
class MassiveForecast(Forecast):
    """Regress the five numbers of `MassiveCurve` on features of the layer and its network.

    As in the paper, A, lam, gamma and t0 are learnt as log(1 + value) and K after a Yeo-Johnson
    transform. Features are standardised; which ones is the caller's choice (the paper takes the
    layer's relative depth, width, heads, layers and ratios of them).

    Args:
        model: Kind of regression.
        seed: Of forest and boosting.

    Raises:
        InputError: The model is of another kind.

    Example:
        >>> depth_LF = torch.linspace(0, 1, 20)[:, None]
        >>> curves = [Parameters(A=1.0, lam=0.1, gamma=0.1, t0=1.0, K=k) for k in range(20)]
        >>> forecast = MassiveForecast("forest").fit(depth_LF, curves)
        >>> 7 < forecast.predict(torch.tensor([[0.5]]))[0].K < 12
        True
    """

    model: Literal["ridge", "forest", "boosting"] = "ridge"
    seed: int = 0
    _fitted: list[Any] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.model not in ("ridge", "forest", "boosting"):
            raise InputError(f"model must be ridge, forest or boosting, got {self.model!r}")

    def fit(self, features_LF: Tensor, curves: Sequence[Parameters]) -> Self:
        """Learn from (L, F) features and the L fitted curves' parameters.

        Raises:
            InputError: Shapes do not fit, or a value is not finite.
        """
        x, y = self._checked(features_LF, curves)
        self._fitted = [self._regression(k).fit(x, y[:, k]) for k in range(y.shape[1])]
        return self

    def predict(self, features_LF: Tensor) -> list[Parameters]:
        """Return the parameters that (L, F) features forecast.

        Raises:
            InputError: It was not fitted, or the number of features differs.
        """
        if not self._fitted or features_LF.shape[1:] != (self._fitted[0].n_features_in_,):
            held = self._fitted[0].n_features_in_ if self._fitted else 0
            raise InputError(f"fitted on {held} features, got shape {tuple(features_LF.shape)}")
        columns = [np.asarray(r.predict(np.asarray(features_LF.double()))) for r in self._fitted]
        return [Parameters(*map(float, row)) for row in zip(*columns, strict=True)]

    def cross_validated(
        self, features_LF: Tensor, curves: Sequence[Parameters], folds: int = 5
    ) -> Parameters:
        """Return for each number the R2 of forecasts for layers that were left out in folds.

        Raises:
            InputError: As in `fit`, or there are fewer than 2 layers for each fold.
        """
        from sklearn.metrics import r2_score
        from sklearn.model_selection import KFold, cross_val_predict

        x, y = self._checked(features_LF, curves)
        if not 2 <= folds <= len(x) / 2:
            raise InputError(f"need 2 to {len(x) // 2} folds of {len(x)} layers, got {folds}")
        split = KFold(folds, shuffle=True, random_state=self.seed)
        return Parameters(
            *(
                float(
                    r2_score(y[:, k], cross_val_predict(self._regression(k), x, y[:, k], cv=split))
                )
                for k in range(y.shape[1])
            )
        )

    def _checked(self, features_LF: Tensor, curves: Sequence[Parameters]) -> tuple[Any, Any]:
        y = torch.tensor(curves, dtype=torch.float64).reshape(-1, len(Parameters._fields))
        if features_LF.dim() != 2 or not len(y) or len(features_LF) != len(y):
            raise InputError(
                f"need (L, F) features and L curves, got shape {tuple(features_LF.shape)} and "
                f"{len(y)} curves"
            )
        if not (features_LF.isfinite().all() and y.isfinite().all()):
            raise InputError("features and parameters must be finite, got some that are not")
        return np.asarray(features_LF.double()), np.asarray(y)

    def _regression(self, index: int) -> Any:
        from sklearn.compose import TransformedTargetRegressor
        from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer, PowerTransformer, StandardScaler

        kinds: dict[str, Any] = {
            "ridge": Ridge(),
            "forest": RandomForestRegressor(random_state=self.seed),
            "boosting": GradientBoostingRegressor(random_state=self.seed),
        }
        logged = FunctionTransformer(np.log1p, np.expm1, check_inverse=False)
        return TransformedTargetRegressor(
            make_pipeline(StandardScaler(), kinds[self.model]),
            transformer=logged if index < _LOGGED else PowerTransformer("yeo-johnson"),
        )
