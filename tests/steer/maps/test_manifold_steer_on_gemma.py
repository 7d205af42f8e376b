"""Days of the week in Gemma-3-270M: the curve passes the days between, a straight line does not."""

import numpy as np
import pytest

from actkit.model import Model
from actkit.steer.maps.manifold_steer import ManifoldSteer
from tests.steer.maps.test_manifold_steer_on_smollm2 import DAYS, SHARES, prompts


@pytest.mark.slow
def test_days_between_are_visited_in_order(gemma: Model) -> None:
    """Three days on from each day, at block 14 of 18, as deep as SmolLM2's block 24."""
    own = gemma.tokenizer
    answers = [own(f" {day}", add_special_tokens=False)["input_ids"][-1] for day in DAYS]
    steer = ManifoldSteer("resid_post.14", cyclic=True, answers=answers)
    steer.fit(gemma, {day: prompts(i) for i, day in enumerate(DAYS)})
    in_order, distance = np.zeros((2, 7)), np.zeros((2, 7))
    for i in range(7):
        want = [DAYS[(i + k) % 7] for k in range(4)]
        for linear in (False, True):
            path = steer.between(want[0], want[-1], linear)
            trace = path.trace(gemma, prompts(i), SHARES)
            in_order[int(linear), i] = trace.visited == want
            distance[int(linear), i] = trace.distance_S.mean()
    assert in_order.mean(1).tolist() == [1, 0]
    ratio = distance[1].mean() / distance[0].mean()
    assert ratio >= 1.5
    assert ratio == pytest.approx(2.27, abs=0.1)
