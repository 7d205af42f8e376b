"""What happens to samples that a network cannot take: named and left out, or named and raised."""

from collections.abc import Callable
from typing import Any, NamedTuple

from actkit.core.errors import InputError
from actkit.core.progress import note
from actkit.core.run.inputs import Batch

POLICIES = ("raise", "skip")
NAMED = 3
"""How many samples that were left out are named in words."""

Encode = Callable[[Any], Batch]


class Skipped(NamedTuple):
    """A sample that was left out: its index in the data, and why."""

    sample: int
    reason: str


class OnBad:
    """A policy for one pass over data.

    Args:
        policy: "raise", the first bad sample ends the pass; "skip", it is left out.

    Attributes:
        skipped: What was left out.
    """

    def __init__(self, policy: str = "raise") -> None:
        """Check the word."""
        if policy not in POLICIES:
            raise InputError(f"on_bad must be one of {', '.join(POLICIES)}, got {policy!r}")
        self._skips = policy == "skip"
        self.skipped: list[Skipped] = []

    def encoded(self, encode: Encode, group: list[Any], first: int) -> list[tuple[Batch, int]]:
        """Return batches of a group's good samples, each with the index of its first sample.

        Samples keep their numbers, so what lies between two bad ones is a batch of its own.

        Raises:
            InputError: A sample is bad and must not be left out; the message names it.
        """
        try:
            return [(encode(group), first)]
        except InputError:
            if not any(self._reason(encode, sample) for sample in group):
                raise  # every sample is good, and together they are not
        runs: list[tuple[list[Any], int]] = [([], first)]
        for index, sample in enumerate(group, first):
            reason = self._reason(encode, sample)
            if reason:
                self._leave_out(index, reason)
                runs.append(([], index + 1))
            else:
                runs[-1][0].append(sample)
        return [(encode(own), start) for own, start in runs if own]

    def whole(self, encode: Encode, batch: Any, first: int) -> list[tuple[Batch, int]]:
        """Return a batch of the user's own, nothing if it is bad and left out.

        Raises:
            InputError: It is bad and must not be left out.
        """
        try:
            return [(encode(batch), first)]
        except InputError as error:
            self._leave_out(first, str(error))
            return []

    def tell(self) -> None:
        """Say how many samples were left out, and name the first of them."""
        if self.skipped:
            named = "; ".join(f"sample {s.sample}: {s.reason}" for s in self.skipped[:NAMED])
            more = ", ..." if len(self.skipped) > NAMED else ""
            note(f"samples left out: {len(self.skipped)} ({named}{more})")

    def _leave_out(self, index: int, reason: str) -> None:
        if not self._skips:
            raise InputError(f"sample {index}: {reason}; on_bad='skip' leaves such samples out")
        self.skipped.append(Skipped(index, reason))

    def _reason(self, encode: Encode, sample: Any) -> str:
        """Return why a sample cannot be taken, nothing if it can."""
        try:
            encode([sample])
        except InputError as error:
            return str(error)
        return ""
