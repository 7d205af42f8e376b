"""Numbers of next-token distributions against sums over the vocabulary in plain Python."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from actkit.maths.next_token import kl, log_odds, log_prob_of, perplexity


def log_probs(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=gen, dtype=torch.float64)).to(dtype).log_softmax(-1)


def test_kl_is_the_sum_over_the_vocabulary_and_not_the_other_way_round() -> None:
    p, q = log_probs(4, 9, seed=0), log_probs(4, 9, seed=1)
    for found, a, b in zip(kl(p, q).tolist(), p.tolist(), q.tolist(), strict=True):
        expected = math.fsum(math.exp(x) * (x - y) for x, y in zip(a, b, strict=True))
        assert found == pytest.approx(expected, rel=1e-12)
    assert (kl(p, q) - kl(q, p)).abs().min() > 0.01


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_kl_is_that_of_torch_and_keeps_the_dtype(dtype: torch.dtype, within: float) -> None:
    p, q = log_probs(2, 3, 50, seed=2, dtype=dtype), log_probs(3, 50, seed=3, dtype=dtype)
    expected = kl_divergence(Categorical(logits=p), Categorical(logits=q.expand_as(p)))
    assert kl(p, q).dtype == dtype
    torch.testing.assert_close(kl(p, q), expected, rtol=within, atol=within)


def test_kl_of_a_distribution_from_itself_is_zero() -> None:
    p = log_probs(5, 20, seed=4)
    assert torch.equal(kl(p, p), torch.zeros(5, dtype=torch.float64))


def test_its_gradient_with_respect_to_the_logits_of_q_is_q_less_p() -> None:
    p, logits = log_probs(7, seed=5), log_probs(7, seed=6).requires_grad_()
    (found,) = torch.autograd.grad(kl(p, logits.log_softmax(-1)), logits)
    torch.testing.assert_close(found, (logits.softmax(-1) - p.exp()).detach())


def test_log_prob_of_each_token() -> None:
    p = log_probs(2, 3, 5, seed=7)
    token = torch.tensor([[0, 4, 2], [1, 1, 3]])
    expected = [[float(p[i, j, token[i, j]]) for j in range(3)] for i in range(2)]
    assert log_prob_of(p, token).tolist() == expected


def test_perplexity_of_a_uniform_distribution_is_its_size() -> None:
    losses = -log_prob_of(torch.zeros(6, 11).double().log_softmax(-1), torch.arange(6))
    assert perplexity(losses) == pytest.approx(11, rel=1e-12)
    assert math.isnan(perplexity(torch.empty(0)))


@pytest.mark.parametrize(("toward", "away"), [([0], [1]), ([2, 3], [0, 1, 4]), ([5, 1], [])])
def test_log_odds_are_those_of_summed_probabilities(toward: list[int], away: list[int]) -> None:
    p = log_probs(6, seed=8)
    others = away or [i for i in range(6) if i not in toward]
    plus, minus = (math.fsum(math.exp(p[i]) for i in side) for side in (toward, others))
    assert float(log_odds(p, toward, away)) == pytest.approx(math.log(plus / minus), abs=1e-12)
