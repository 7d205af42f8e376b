import numpy as np
import pytest
import torch

from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read.streaming.sinks import Sinks
from tests.contract import probs, rows


def test_means_equal_a_loop_over_queries() -> None:
    probs_NHS, of = probs(49, 3, dtype=torch.float32), rows(49)
    probs_NHS[:, 1] = 0
    probs_NHS[:, 1, 0] = 1  # head 1 looks at nothing but the first token
    reading = Sinks(min_position=2)
    for index_N in torch.split(torch.arange(49), [1, 20, 28]):
        reading.update(probs_NHS[index_N], of[index_N])
    result = reading.result()
    queries = [i for i in range(49) if of.position[i] >= 2]
    for h in range(3):
        sums = np.zeros(4)
        capacity = 0.0
        for i in queries:
            p, at = probs_NHS[i, h].double().numpy(), int(of.position[i])
            seen = p[p > 0]
            sums += [p[0], p[at - 1], p[at], -(seen * np.log(seen)).sum()]
            capacity += np.log(at + 1)
        means = sums / len(queries)
        found = (result.first_H, result.previous_H, result.self_H, result.entropy_H)
        np.testing.assert_allclose([float(x_H[h]) for x_H in found], means, rtol=1e-5, atol=1e-7)
        assert float(result.spread_H[h]) == pytest.approx(sums[3] / capacity, rel=1e-5, abs=1e-7)
    assert result.num_rows == len(queries)
    assert result.share_sinks == float((result.first_H > 0.3).double().mean()) >= 1 / 3


@pytest.mark.parametrize("window", [4, 64])
def test_even_attention_has_a_spread_of_one(window: int) -> None:
    place = torch.arange(32)
    seen_NS = (place <= place[:, None]) & (place > place[:, None] - window)
    probs_NHS = (seen_NS / seen_NS.sum(1, keepdim=True))[:, None].expand(-1, 2, -1)
    reading = Sinks()
    reading.update(probs_NHS, Rows.of(torch.ones(1, 32, dtype=torch.bool)).flat())
    torch.testing.assert_close(reading.result().spread_H, torch.ones(2, dtype=torch.float64))
    assert reading.result().num_rows == 24


def test_a_key_that_does_not_exist_has_no_mass() -> None:
    reading = Sinks(
        min_position=0
    )  # position 0 has no previous token, position 5 no key of its own
    probs_NHS = torch.full((6, 1, 4), 0.25)
    reading.update(probs_NHS, Rows.of(torch.ones(1, 6, dtype=torch.bool)).flat())
    result = reading.result()
    assert result.previous_H.tolist() == [0.25 * 4 / 6] and result.self_H.tolist() == [0.25 * 4 / 6]


def test_a_query_that_looks_at_nothing_adds_no_entropy() -> None:
    probs_NHS = torch.tensor([[[0.5, 0.5]], [[0.0, 0.0]]], dtype=torch.float64)
    reading = Sinks(min_position=0)
    reading.update(probs_NHS, Rows.of(torch.ones(1, 2, dtype=torch.bool)).flat())
    assert reading.result().spread_H.tolist() == [pytest.approx(1)]
    assert reading.result().entropy_H.tolist() == [pytest.approx(np.log(2) / 2)]


def test_scores_are_refused() -> None:
    scores_NHS = torch.linspace(-3, 2, 24).reshape(3, 2, 4)
    with pytest.raises(InputError, match=r"attn_probs, not attn_scores.*got -3 to 2.*\(3, 2, 4\)"):
        Sinks(min_position=0).update(scores_NHS, rows(3))


def test_another_number_of_heads_is_refused_but_not_of_keys() -> None:
    reading = Sinks(min_position=0)
    reading.update(probs(9, 3), rows(9))
    reading.update(probs(30, 3), rows(30))
    assert reading.result().num_rows == 39
    with pytest.raises(InputError, match="number of heads: it holds 3, got 2"):
        reading.update(probs(9, 2), rows(9))
    with pytest.raises(InputError, match="3 axes"):
        reading.update(torch.zeros(9, 3), rows(9))
    with pytest.raises(InputError, match="got -1"):
        Sinks(min_position=-1)


def test_texts_that_are_too_short_give_nan() -> None:
    reading = Sinks()
    reading.update(probs(5), rows(5))
    result = reading.result()
    assert result.num_rows == 0 and result.first_H.isnan().all() and np.isnan(result.share_sinks)
    assert Sinks().result().num_rows == 0
