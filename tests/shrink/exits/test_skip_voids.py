from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actkit.core.errors import InputError, SiteError
from actkit.model import Model
from actkit.shrink.exits.skip_voids import SkipVoids, without_layers
from tests.contract import check_restored
from tests.core import tiny

PROMPTS = tiny.PROMPTS


@pytest.fixture
def model() -> Model:
    return tiny.model()


def states(model: Model, inputs: Any) -> Tensor:
    """Return (S, B, T, D): the stream before the first block and after each."""
    rec = model.run(inputs, record=["resid_pre.0", "resid_post.*"])
    return torch.stack(list(rec.values()))


def last_active(states_SBTD: Tensor, alpha: float) -> Tensor:
    """Return by a loop the site of each token's last active layer, (B, T); 0 is the entry."""
    lengths = states_SBTD.norm(dim=-1)
    sites = torch.zeros(lengths.shape[1:], dtype=torch.long)
    for b, t in torch.cartesian_prod(*map(torch.arange, sites.shape)).tolist():
        steps = lengths[:, b, t].diff().tolist()
        for layer, step in enumerate(steps):
            before = steps[:layer]
            span = max(before) - min(before) if before else 0.0
            if step >= alpha * span:
                sites[b, t] = layer + 1
    return sites


def head(model: Model, state: Tensor) -> Tensor:
    net: Any = model.module
    with torch.no_grad():
        logits: Tensor = net.lm_head(net.model.norm(state))
    return logits


@pytest.mark.parametrize("alpha", [0.0, 0.5, 3.0])
def test_final_state_is_that_of_the_last_active_layer(model: Model, alpha: float) -> None:
    rec = model.run(PROMPTS, logits=True, edits=SkipVoids(alpha).final_state(model))
    all_SBTD = states(model, PROMPTS)
    site_BT = last_active(all_SBTD, alpha)
    held = all_SBTD.gather(0, site_BT[None, ..., None].expand_as(all_SBTD[:1]))[0]
    valid = rec.rows.valid
    torch.testing.assert_close(rec.logits[valid], head(model, held)[valid], rtol=1e-5, atol=1e-5)
    assert alpha < 3 or (site_BT[valid] < tiny.LAYERS).any()


class Times(nn.Module):
    """A block that multiplies the stream."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return self.factor * hidden_states


def blocks(factor: float) -> dict[str, nn.Module]:
    return {f"model.layers.{i}": Times(factor) for i in range(tiny.LAYERS)}


def test_without_voids_no_bit_changes(model: Model) -> None:
    with model.replaced(blocks(2.0)):
        plain = model.run(PROMPTS, logits=True).logits
        edited = model.run(PROMPTS, logits=True, edits=SkipVoids(0.8).final_state(model)).logits
        assert plain is not None and edited is not None and torch.equal(plain, edited)
        with SkipVoids(0.8).skipping(model, PROMPTS) as voids:
            again = model.run(PROMPTS, logits=True).logits
        assert voids == () and again is not None and torch.equal(plain, again)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_token_without_an_active_layer_ends_at_what_entered(model: Model, alpha: float) -> None:
    entry = model.run(PROMPTS, record="resid_pre.0")["resid_pre.0"]
    with model.replaced(blocks(0.5)):
        ended = model.run(PROMPTS, logits=True, edits=SkipVoids(alpha).final_state(model)).logits
    torch.testing.assert_close(ended, head(model, entry))


def test_edits_work_in_cached_generation_and_leave_nothing(model: Model) -> None:
    edits = SkipVoids(alpha=1.0).final_state(model)
    plain = model.generate(PROMPTS, max_new_tokens=5)
    cached = model.generate(PROMPTS, edits=edits, max_new_tokens=5)
    with model.edited(edits):
        uncached = model.generate(PROMPTS, max_new_tokens=5, use_cache=False)
    assert cached == uncached != plain
    assert model.generate(PROMPTS, max_new_tokens=5) == plain
    check_restored(model.module, lambda: model.run(PROMPTS, logits=True, edits=edits))


def test_gradients_reach_the_held_state(model: Model) -> None:
    edits = SkipVoids(alpha=1.0).final_state(model)
    rec = model.run(PROMPTS[0], record="resid_pre.0", logits=True, edits=edits, grad=True)
    (grad,) = torch.autograd.grad(rec.logits.sum(), [rec["resid_pre.0"]])
    assert grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("layers", [(), (0,), (1,), (2,), (0, 1), (2, 0), (0, 1, 2)], ids=str)
def test_a_model_without_layers_is_a_shallower_model(model: Model, layers: tuple[int, ...]) -> None:
    net = tiny.llama()
    kept = [b for i, b in enumerate(net.model.layers) if i not in layers]
    net.model.layers = nn.ModuleList(kept)
    net.config.num_hidden_layers = len(kept)
    for place, block in enumerate(kept):
        block.self_attn.layer_idx = place
    with torch.no_grad():
        wanted = net(torch.tensor([[3, 1, 4, 1, 5, 9]]), use_cache=False).logits
    with without_layers(model, layers):
        found = model.run([[3, 1, 4, 1, 5, 9]], logits=True).logits
        cached = model.generate(PROMPTS, max_new_tokens=6)
        alone = [model.generate([p], max_new_tokens=6)[0] for p in PROMPTS]
        uncached = model.generate(PROMPTS, max_new_tokens=6, use_cache=False)
    assert torch.equal(torch.as_tensor(found), wanted)
    assert cached == uncached == alone


def test_other_caches_stay_right(model: Model) -> None:
    from transformers import StaticCache

    config: Any = model.module.config
    with without_layers(model, [0, 2]):
        static = StaticCache(config=config, max_cache_len=32)
        cached = model.generate(PROMPTS, max_new_tokens=5, cache=static)
        assert cached == model.generate(PROMPTS, max_new_tokens=5, use_cache=False)
        beams = model.generate(PROMPTS, max_new_tokens=5, num_beams=2)
        assert beams == model.generate(PROMPTS, max_new_tokens=5, num_beams=2, use_cache=False)


def test_positional_caches_are_found() -> None:
    model = Model(tiny.gpt2(), tiny.tokenizer())
    with without_layers(model, [0]):
        cached = model.generate(PROMPTS, max_new_tokens=5)
        assert cached == model.generate(PROMPTS, max_new_tokens=5, use_cache=False)


def test_states_of_another_kind_are_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=tiny.WORDS, hidden_size=12, num_hidden_layers=2, state_size=3)
    net: Any = MambaForCausalLM(config)
    model = Model(net, tiny.tokenizer())
    with without_layers(model, [1]):
        given = {"input_ids": torch.tensor([[1, 2, 3]]), "use_cache": False}
        assert model.run(given, logits=True).logits.isfinite().all()
        with pytest.raises(InputError, match="must cache keys and values, block 1 keeps Linear"):
            model.generate(PROMPTS[:1], max_new_tokens=3)


def test_prompts_decide_which_layers_are_run(model: Model) -> None:
    alpha = 0.8
    all_SBTD = states(model, PROMPTS)
    valid = model.run(PROMPTS, record="resid_pre.0").rows
    counted = valid.valid & (valid.position > 0)
    lengths = all_SBTD.norm(dim=-1)[:, counted]
    shares = []
    for layer in range(tiny.LAYERS):
        active = []
        for own in lengths.T:
            steps = own.diff()[: layer + 1]
            before = steps[:-1]
            span = float(before.max() - before.min()) if layer else 0.0
            active.append(float(steps[-1]) >= alpha * span)
        shares.append(sum(active) / len(active))
    assert 0 < min(shares) < 1
    for least in (0.0, min(shares), min(shares) + 1e-6, 1.0):
        wanted = tuple(i for i, share in enumerate(shares) if share < least - 1e-7)
        assert SkipVoids(alpha, least).voids(model, PROMPTS) == wanted


def test_skipped_blocks_are_not_called_and_come_back(model: Model) -> None:
    method = SkipVoids(alpha=0.8, least_share=1.0)
    plain = model.generate(PROMPTS, max_new_tokens=3)
    counters = [tiny.counted(model.module, f"model.layers.{i}.mlp") for i in range(tiny.LAYERS)]
    with method.skipping(model, PROMPTS) as voids:
        before = [len(calls) for calls, _ in counters]
        model.generate(PROMPTS, max_new_tokens=3)
        grown = [len(calls) - n for (calls, _), n in zip(counters, before, strict=True)]
    for _, remove in counters:
        remove()
    assert 0 < len(voids) < 3
    assert grown == [0 if i in voids else 3 for i in range(3)]
    assert model.generate(PROMPTS, max_new_tokens=3) == plain

    def fail() -> None:
        with method.skipping(model, PROMPTS):
            raise ZeroDivisionError

    check_restored(model.module, fail, ZeroDivisionError)


def test_bad_settings_and_prompts_are_refused(model: Model) -> None:
    for settings in ({"alpha": -0.1}, {"alpha": float("nan")}, {"least_share": 1.1}):
        with pytest.raises(InputError, match="alpha must be finite and at least 0"):
            SkipVoids(**settings)
    with pytest.raises(InputError, match=r"at least 2 tokens, got shape \(2, 1\)"):
        SkipVoids().voids(model, ["w1", "w2"])
    with pytest.raises(SiteError), without_layers(model, [3]):
        pass


def test_blocks_that_are_one_module_are_refused() -> None:
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(
        vocab_size=31,
        embedding_size=6,
        hidden_size=8,
        num_attention_heads=2,
        intermediate_size=9,
        num_hidden_layers=3,
    )
    model = Model(AlbertModel(config))
    with pytest.raises(InputError, match="must be a module of its own"), without_layers(model, [1]):
        pass
