"""Accuracy over training: when it comes, how high it gets, and how much of it goes again.

Shapes: S checkpoints.
"""

from dataclasses import dataclass
from math import nan, sqrt


@dataclass(frozen=True, slots=True)
class AccuracyCurve:
    """Accuracy on one probe over training.

    Attributes:
        steps: The S steps of the checkpoints, in their order.
        accuracy: Share of right answers at each, in [0, 1].
        chance: The accuracy of guessing.
        num_sequences: How many questions an accuracy is a mean over.

    Example:
        >>> curve = AccuracyCurve((100, 300, 900), (0.5, 0.9, 0.6), chance=0.5, num_sequences=400)
        >>> curve.onset, curve.peak_step, round(curve.transience, 2)
        (300, 300, 0.75)
    """

    steps: tuple[int, ...]
    accuracy: tuple[float, ...]
    chance: float
    num_sequences: int

    @property
    def sigma(self) -> float:
        """Return the standard error of the accuracy of guessing."""
        return sqrt(self.chance * (1 - self.chance) / self.num_sequences)

    @property
    def onset(self) -> int | None:
        """Return the first step above chance by more than three sigma, None if there is none."""
        bar = self.chance + 3 * self.sigma
        return next((s for s, a in zip(self.steps, self.accuracy, strict=True) if a > bar), None)

    @property
    def peak(self) -> float:
        """Return the highest accuracy."""
        return max(self.accuracy)

    @property
    def peak_step(self) -> int:
        """Return the first step with the highest accuracy: where to stop early to keep it."""
        return self.steps[self.accuracy.index(self.peak)]

    @property
    def transience(self) -> float:
        """Return (peak - final) / (peak - chance): 0 if all stays, 1 if all is lost again.

        NaN if the accuracy was never above chance by more than three sigma.
        """
        if self.onset is None:
            return nan
        return (self.peak - self.accuracy[-1]) / (self.peak - self.chance)
