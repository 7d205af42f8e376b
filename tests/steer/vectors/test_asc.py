"""Compression of answers: the vector, the derivative of the KL, and lengths with SmolLM2."""

import pytest
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import EditError, InputError, ModelError
from actkit.core.sweep.derivative import derivative
from actkit.model import Model
from actkit.steer._gain import kl_bounded_gain, logit_variance
from actkit.steer.vectors.asc import ASC
from tests.core import tiny

PAIRS = [("w1 w2 w3", "w1 w2 w4 w9"), ("w9 w3", "w8 w4 w2"), ("w5 w5 w5 w3", "w6 w4")]


def test_vector_points_from_verbose_to_concise() -> None:
    model = tiny.model()
    asc = ASC().fit(model, PAIRS)
    for layer in range(tiny.LAYERS):
        site = f"resid_post.{layer}"
        ends = [[model.run(t, record=site)[site][0, -1] for t in pair] for pair in PAIRS]
        expected = torch.stack([concise - verbose for concise, verbose in ends]).mean(0)
        torch.testing.assert_close(asc.vectors_[layer], expected, rtol=1e-4, atol=1e-5)


def test_derivative_equals_central_differences() -> None:
    model = tiny.model()
    edits = ASC(layers=(0, 2)).fit(model, PAIRS).edits
    value, slope = derivative(model, tiny.PROMPTS, edits)
    torch.testing.assert_close(value, logits(model, tiny.PROMPTS, []), rtol=1e-4, atol=1e-4)
    up, down = (logits(model, tiny.PROMPTS, edits(s)).double() for s in (1e-2, -1e-2))
    moved = (up - down) / 2e-2
    assert (slope - moved).norm() < 1e-3 * moved.norm()
    assert not slope[:, :-1].any(), "only the last token is steered"


def test_variance_is_the_quadratic_form_of_the_fisher_matrix() -> None:
    model = tiny.model()
    edits = ASC(layers=1).fit(model, PAIRS).edits
    found = logit_variance(model, edits, tiny.PROMPTS, batch_size=2)
    for i, prompt in enumerate(tiny.PROMPTS):
        value, slope = (x[0, -1].double() for x in derivative(model, prompt, edits))
        p = value.softmax(-1)
        fisher = torch.diag(p) - torch.outer(p, p)
        torch.testing.assert_close(found[i], slope @ fisher @ slope, rtol=1e-4, atol=1e-8)


def test_what_has_no_bound_is_refused() -> None:
    model = tiny.model()
    asc = ASC().fit(model, PAIRS)
    with pytest.raises(InputError, match="eps must be a positive number of nats, got 0"):
        kl_bounded_gain(model, asc.edits, tiny.PROMPTS, 0)
    same = ASC().fit(model, [("w1 w2", "w1 w2")])
    with pytest.raises(InputError, match=r"must move the logits.* variance of 0"):
        kl_bounded_gain(model, same.edits, tiny.PROMPTS)
    with pytest.raises(EditError, match="needs edits that add, got scale"):
        kl_bounded_gain(model, lambda s: [ak.scale("resid_post.1", s[:, None])], tiny.PROMPTS)
    with pytest.raises(InputError, match="pairs"):
        asc.fit(model, {"positive": ["w1"], "negative": ["w2", "w3"]})


class Fused(nn.Module):
    """Attention by a kernel that has no forward derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, D) from (B, T, D)."""
        x = self.before(x)[:, None]
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out: Tensor = kernel(x, x, x)[0]
        return out[:, 0]


def test_attention_without_a_forward_derivative_is_named() -> None:
    with pytest.raises(ModelError, match="need attention 'eager' or 'sdpa', got None"):
        derivative(ak.open(Fused()), tiny.uneven(2, 3, 8), lambda s: [add("before:out", s)])


def test_the_derivative_of_a_site_keeps_its_shape() -> None:
    model = ak.open(nn.Sequential(nn.Identity(), nn.Linear(8, 5)))
    x = tiny.uneven(2, 3, 8)
    value, slope = derivative(model, x, lambda s: [add("0:out", s)], "1:out")
    assert torch.equal(value, model.module(x))
    torch.testing.assert_close(slope, model.module[1].weight.sum(1).expand(2, 3, 5))  # type: ignore[index]


def add(site: str, strengths: Tensor) -> ak.Edit:
    return ak.add(site, torch.ones(8), strengths)


def logits(model: Model, prompts: list[str], edits: list[ak.Edit]) -> Tensor:
    found = model.run(prompts, edits=edits, logits=True).logits
    assert found is not None
    return found
