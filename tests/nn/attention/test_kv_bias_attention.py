import pytest
import torch

from actkit.core.errors import InputError
from actkit.nn.attention.kv_bias_attention import KVBiasAttention


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gen = torch.manual_seed(0)
    shapes = ((2, 3, 5, 7), (2, 3, 6, 7), (2, 3, 6, 7))
    q, k, v = (0.3 + torch.randn(s, dtype=torch.float64, generator=gen) for s in shapes)
    return q, k, v


def test_a_bias_of_zero_is_softmax_with_one_more_logit_of_zero() -> None:
    q, k, v = _inputs()
    logits = q @ k.mT / 7**0.5
    weights = logits.exp() / (1 + logits.exp().sum(-1, keepdim=True))
    attend = KVBiasAttention(3, 7).double()
    torch.testing.assert_close(attend(q, k, v), weights @ v)


def test_a_learned_bias_equals_a_loop_over_queries_and_causality_hides_later_keys() -> None:
    q, k, v = _inputs()
    attend = KVBiasAttention(3, 7).double()
    torch.nn.init.normal_(attend.key_H1K)
    torch.nn.init.normal_(attend.value_H1K)
    found = attend(q, k, v, causal=True)
    for b, h, t in ((0, 0, 0), (1, 2, 3), (0, 1, 4)):
        seen = t + 2  # six keys for five queries: query t sees keys up to t + 1
        keys = torch.cat([k[b, h, :seen], attend.key_H1K[h]])
        values = torch.cat([v[b, h, :seen], attend.value_H1K[h]])
        brute = (keys @ q[b, h, t] / 7**0.5).softmax(0) @ values
        torch.testing.assert_close(found[b, h, t], brute)


def test_a_bias_far_away_gives_plain_attention() -> None:
    q, k, v = _inputs()
    q = q.abs()
    attend = KVBiasAttention(3, 7).double()
    torch.nn.init.constant_(attend.key_H1K, -1e6)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend(q, k, v), plain)


def test_other_sizes_are_refused_with_both_named() -> None:
    with pytest.raises(InputError, match=r"3 heads of width 7, got shape \(2, 3, 5, 6\)"):
        KVBiasAttention(3, 7)(*(x[..., :6] for x in _inputs()))
    with pytest.raises(InputError, match="at least 1, got 0, 7"):
        KVBiasAttention(0, 7)
