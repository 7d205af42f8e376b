"""Hooks, kernels and checkpoints of others: what they show, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask, sdpa_mask

import actkit as ak
from actkit.core.errors import EditError, SiteError
from actkit.model import Model
from tests.core import tiny

SITE = "resid_post.1"
VECTOR = 4 * tiny.uneven(tiny.WIDTH, seed=11)


@pytest.fixture
def m() -> Model:
    return tiny.model()


# ---- outputs that transformers collects with hooks that stay ---------------------------------


@pytest.mark.parametrize("site", [SITE, "attn_out.1", "mlp_out.0", "resid_pre.1"])
@pytest.mark.parametrize("before", [False, True], ids=["first", "used-before"])
def test_hidden_states_show_the_edit_each_time(m: Model, site: str, before: bool) -> None:
    net: Any = m.module
    inputs = m.encode(tiny.PROMPTS).kwargs
    want = m.run(tiny.PROMPTS, ["resid_post.1"], [ak.add(site, VECTOR)])["resid_post.1"]
    with torch.no_grad():
        if before:
            net(**inputs, output_hidden_states=True)
        for _ in range(3):
            with m.edited([ak.add(site, VECTOR)]):
                shown = net(**inputs, output_hidden_states=True).hidden_states[2]
            assert torch.equal(shown, want)
        plain = net(**inputs, output_hidden_states=True).hidden_states[2]
    assert not torch.equal(plain, want)


def test_attentions_show_the_edit_each_time() -> None:
    m = tiny.model(attn_implementation="eager")
    net: Any = m.module
    inputs = m.encode(tiny.PROMPTS).kwargs
    with torch.no_grad():
        plain = net(**inputs, output_attentions=True).attentions[1]
        for _ in range(2):
            with m.edited([ak.scale("attn_probs.1", 0.5)]):
                shown = net(**inputs, output_attentions=True).attentions[1]
            assert_close(shown, plain * 0.5)


def test_a_hook_of_the_users_own_comes_before_what_is_read(m: Model) -> None:
    handle = m.module.get_submodule("model.layers.1.mlp").register_forward_hook(
        lambda _, __, out: out * 2
    )
    doubled = m.run(tiny.PROMPTS, record="mlp_out.1")["mlp_out.1"]
    handle.remove()
    assert_close(doubled, 2 * m.run(tiny.PROMPTS, record="mlp_out.1")["mlp_out.1"])


# ---- blocks that run again during backward ---------------------------------------------------


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of torch
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_through_checkpoints_are_refused(m: Model, reentrant: bool) -> None:
    net: Any = m.module
    net.train()
    # the name changed in transformers 5.23
    old, new = "gradient_checkpointing_{}", "activation_checkpointing_{}"
    name = new if hasattr(net, new.format("enable")) else old
    getattr(net, name.format("enable"))({"use_reentrant": reentrant})
    for call in (
        lambda: m.run(tiny.PROMPTS, edits=[ak.add(SITE, VECTOR)], logits=True, grad=True),
        lambda: m.run(tiny.PROMPTS, record=SITE, grad=True),
        lambda: m.sweep(tiny.PROMPTS, [[ak.add(SITE, VECTOR)]], lambda x: x[:, 0, 0], grad=True),
    ):
        with tiny.untouched(net), pytest.raises(EditError, match="gradient_checkpointing_disable"):
            call()
    with (
        pytest.raises(EditError, match="blocks again during backward"),
        m.edited([ak.add(SITE, VECTOR)]),
    ):
        net(**m.encode(tiny.PROMPTS).kwargs)
    m.run(tiny.PROMPTS, record=SITE)  # without gradients nothing runs again
    getattr(net, name.format("disable"))()
    m.run(tiny.PROMPTS, record=SITE, grad=True)


class Checkpointed(nn.Module):
    """A network of the user's own that checkpoints its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        x = self.one(x)
        x = checkpoint(lambda y: torch.tanh(self.two(y)), x, use_reentrant=False)
        return torch.as_tensor(self.three(x))


def test_checkpoints_of_the_users_own_are_seen() -> None:
    m, x = Model(Checkpointed()), tiny.uneven(3, 4)
    with pytest.raises(EditError, match="inside a checkpoint"):
        m.run(x, edits=[ak.add("two:out", torch.ones(4))], grad=True)
    with pytest.raises(EditError, match="inside a checkpoint"):
        m.run(x, record="two:out", grad=True)
    m.run(x, record="two:out")
    rec = m.run(x, record=["one:out", "three:out"], grad=True)
    rec["three:out"].sum().backward()  # type: ignore[no-untyped-call]


# ---- kernels --------------------------------------------------------------------------------


def flash_like(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Take a (B, S) mask of keys, or none, and be causal by itself, as flash attention is."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    seen = torch.ones(query.shape[2], key.shape[2]).tril(key.shape[2] - query.shape[2]).bool()
    seen = seen[None, None].expand(len(query), 1, -1, -1)
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None].bool()
    scores = (query @ key.mT) * (scaling or 1.0)
    weights = scores.masked_fill(~seen, -1e9).softmax(-1)
    return (weights @ value).transpose(1, 2), None


def sharpened(module: Any, query: Tensor, *given: Any, **settings: Any) -> tuple[Tensor, None]:
    """Compute something else than its arguments say."""
    return flash_like(module, 3 * query, *given, **settings)


AttentionInterface.register("keyed", flash_like)
AttentionInterface.register("sharpened", sharpened)
AttentionMaskInterface.register("keyed", flash_attention_mask)
AttentionMaskInterface.register("sharpened", flash_attention_mask)


@pytest.mark.parametrize("prompts", [tiny.PROMPTS, tiny.PROMPTS[:1]], ids=["ragged", "even"])
def test_probabilities_of_a_kernel_that_takes_a_mask_of_keys(prompts: list[str]) -> None:
    plain, m = tiny.model(), tiny.model(attn_implementation="keyed")
    want = plain.run(prompts, ["attn_probs.1", "attn_scores.0"])
    got = m.run(prompts, ["attn_probs.1", "attn_scores.0"], logits=True)
    valid = want.rows.valid[:, None, :, None]
    assert_close(got["attn_probs.1"] * valid, want["attn_probs.1"] * valid, rtol=0, atol=1e-5)
    same = m.run(prompts, edits=[ak.apply("attn_probs.0", torch.clone)], logits=True)
    keep = want.rows.valid
    assert_close(same.logits[keep], got.logits[keep], rtol=0, atol=2e-4)


# of what transformers calls, and of torch's compiler on torch 2.6 and on Python 3.13.0
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Skipping serialization:UserWarning")
@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")
def test_flex_attention_is_read_by_its_block_mask() -> None:
    plain, m = tiny.model(), tiny.model(attn_implementation="flex_attention")
    want = plain.run(tiny.PROMPTS, "attn_probs.1")
    valid = want.rows.valid[:, None, :, None]
    got = m.run(tiny.PROMPTS, "attn_probs.1")
    assert_close(got["attn_probs.1"] * valid, want["attn_probs.1"] * valid, rtol=0, atol=1e-5)


def test_a_kernel_that_computes_something_else_is_refused() -> None:
    m = tiny.model(attn_implementation="sharpened")
    with tiny.untouched(m.module):
        with pytest.raises(SiteError, match="beside the kernel 'sharpened'"):
            m.run(tiny.PROMPTS, record="attn_probs.1")
        with pytest.raises(SiteError, match="beside the kernel 'sharpened'"):
            m.run(tiny.PROMPTS, edits=[ak.scale("attn_scores.1", 0.5)], logits=True)
    m.run(tiny.PROMPTS, record="z.1")


def test_the_masks_of_kernels_are_not_touched() -> None:
    assert AttentionMaskInterface._global_mapping["sdpa"] is sdpa_mask
