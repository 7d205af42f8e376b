"""Days of the week in SmolLM2: the curve passes Tuesday and Wednesday, a straight line does not."""

import numpy as np
import pytest

from actkit.model import Model
from actkit.steer.maps.manifold_steer import ManifoldSteer
from tests._evidence import Evidence

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SHARES = [k / 6 for k in range(7)]


def prompts(day: int) -> list[str]:
    """Return three texts that the day continues."""
    four, three, two, one = (DAYS[(day - k) % 7] for k in (4, 3, 2, 1))
    return [
        f"{three}, {two}, {one},",
        f"{four}, {three}, {two}, {one},",
        f"They met on {two}, {one},",
    ]


@pytest.mark.slow
@pytest.mark.paper("manifold-steering-reveals-shared")
def test_days_between_are_visited_in_order(smollm2: Model, evidence: Evidence) -> None:
    """Three days on from each day, at block 24 of 30, where the next day is settled."""
    answers = [smollm2.tokenizer(f" {day}")["input_ids"][-1] for day in DAYS]
    steer = ManifoldSteer("resid_post.24", cyclic=True, answers=answers)
    steer.fit(smollm2, {day: prompts(i) for i, day in enumerate(DAYS)})
    in_order, distance = np.zeros((2, 7)), np.zeros((2, 7))
    for i in range(7):
        want = [DAYS[(i + k) % 7] for k in range(4)]
        for linear in (False, True):
            path = steer.between(want[0], want[-1], linear)
            trace = path.trace(smollm2, prompts(i), SHARES)
            in_order[int(linear), i] = trace.visited == want
            distance[int(linear), i] = trace.distance_S.mean()
    share, off = in_order.mean(1), distance.mean(1)
    evidence("paths along the curve that visit the days between in order (share)",
             measured=share[0], at_least=0.8)  # fmt: skip
    evidence("straight paths that do (share)", measured=share[1], at_most=0.4)
    evidence("Hellinger distance of straight paths to the behaviour manifold, ratio to the curve's",
             measured=off[1] / off[0], at_least=1.5)  # fmt: skip
