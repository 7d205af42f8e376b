"""BART and its kin: encoder and decoder of absolute positions, post-norm or pre-norm."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import SiteError
from actkit.model import Model
from tests.core.sites.architectures import by_hand, parity
from tests.core.sites.architectures.parity import close, randomised

SIZES: dict[str, Any] = {
    "vocab_size": 91,
    "d_model": 24,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 29,
    "decoder_ffn_dim": 37,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 2,
}
LENGTH = {"attention_type": "original_full"}
KIN: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bart": (tf.BartForConditionalGeneration, tf.BartConfig, {"scale_embedding": True}),
    "mbart": (tf.MBartForConditionalGeneration, tf.MBartConfig, {"scale_embedding": True}),
    "mvp": (tf.MvpForConditionalGeneration, tf.MvpConfig, {}),
    "plbart": (tf.PLBartForConditionalGeneration, tf.PLBartConfig, {}),
    "pegasus": (tf.PegasusForConditionalGeneration, tf.PegasusConfig, {"scale_embedding": True}),
    "marian": (tf.MarianMTModel, tf.MarianConfig, {"scale_embedding": True}),
    "m2m_100": (tf.M2M100ForConditionalGeneration, tf.M2M100Config, {}),
    "blenderbot": (tf.BlenderbotForConditionalGeneration, tf.BlenderbotConfig, {}),
    "blenderbot-small": (
        tf.BlenderbotSmallForConditionalGeneration,
        tf.BlenderbotSmallConfig,
        {},
    ),
    "bigbird_pegasus": (
        tf.BigBirdPegasusForConditionalGeneration,
        tf.BigBirdPegasusConfig,
        {"attention_type": "original_full", "encoder_attention_heads": 3},
    ),
}
POST_NORM = ("bart", "mvp", "plbart", "marian", "blenderbot-small")
NO_KERNEL = ("mvp",)
SOURCE = {
    "input_ids": torch.tensor([[5, 17, 3, 88, 42], [7, 7, 30, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
BOTH = {**SOURCE, "decoder_input_ids": torch.tensor([[2, 4, 81, 9, 6], [2, 33, 12, 15, 7]])}
EVEN = {k: v[:1] for k, v in BOTH.items()}


def network(name: str) -> Any:
    kind, config, own = KIN[name]
    torch.manual_seed(0)
    module = randomised(kind(config(**{**SIZES, **own})), seed=len(name))
    module.generation_config.forced_eos_token_id = None
    return module


@pytest.fixture(params=KIN)
def kin(request: pytest.FixtureRequest) -> tuple[str, Model]:
    return request.param, Model(network(request.param))


def stacks_of(name: str) -> tuple[str, ...]:
    """Return the stacks whose attention can be read."""
    if name in NO_KERNEL:
        return ()
    return ("decoder",) if name == "bigbird_pegasus" else ("encoder", "decoder")


def test_sites_states_and_attentions(kin: tuple[str, Model]) -> None:
    name, m = kin
    rec = parity.check_sites(m, BOTH)
    for stack in ("encoder", "decoder"):
        normed = name not in POST_NORM
        parity.check_hidden_states(m, BOTH, stack, f"{stack}_hidden_states", normed)
    for stack in stacks_of(name):
        parity.check_attentions(m, BOTH, stack, f"{stack}_attentions")
    assert rec.rows_of("encoder.z.0").valid.equal(SOURCE["attention_mask"].bool())
    assert rec.rows_of("decoder.z.0").valid.all()
    assert rec.rows_of("decoder.z.0").token.equal(BOTH["decoder_input_ids"])


def test_embeddings_are_the_tokens_and_not_the_positions(kin: tuple[str, Model]) -> None:
    _, m = kin
    network: Any = m.module
    rec = m.run(BOTH, ["encoder.embeddings", "decoder.embeddings"])
    for stack, ids in (("encoder", BOTH["input_ids"]), ("decoder", BOTH["decoder_input_ids"])):
        with torch.no_grad():
            own = getattr(network.model, stack).get_input_embeddings()(ids)
        assert rec[f"{stack}.embeddings"].equal(own)
    by_hand.check_embeddings(m, "encoder")


def test_blocks_add_up(kin: tuple[str, Model]) -> None:
    name, m = kin
    network: Any = m.module
    for stack, number in (("encoder", 3), ("decoder", 2)):
        blocks = getattr(network.model, stack).layers
        cross = [f"model.decoder.layers.{i}.encoder_attn:out" for i in range(number)]
        extra = cross if stack == "decoder" else []
        points = [f"{stack}.{p}.*" for p in ("resid_*", "z", "attn_*", "mlp_*")]
        rec = m.run(BOTH, [*points, *extra])
        for i, block in enumerate(blocks):
            given = {p: rec[f"{stack}.{p}.{i}"] for p in ("z", "attn_out", "mlp_pre", "mlp_out")}
            pre, mid, post = (rec[f"{stack}.resid_{p}.{i}"] for p in ("pre", "mid", "post"))
            project = m.module.get_submodule(m.sites(f"{stack}.z.{i}")[0].place.path)
            more = rec[extra[i]] if extra else None
            with torch.no_grad():
                close(project(given["z"].flatten(2)), given["attn_out"])
                close(block.activation_fn(given["mlp_pre"]), rec[f"{stack}.mlp_hidden.{i}"])
                close(block.fc2(rec[f"{stack}.mlp_hidden.{i}"]), given["mlp_out"])
                close(block.fc1(rec[f"{stack}.mlp_in.{i}"]), given["mlp_pre"])
                close(_middle(name, block, pre, given["attn_out"], more), mid)
                total = mid + given["mlp_out"]
                close(block.final_layer_norm(total) if name in POST_NORM else total, post)


def _middle(name: str, block: Any, pre: Tensor, attn: Tensor, cross: Tensor | None) -> Tensor:
    """Return the stream after attention, and after that over the encoder's states."""
    normed = name in POST_NORM
    mid: Tensor = block.self_attn_layer_norm(pre + attn) if normed else pre + attn
    if cross is not None:
        mid = block.encoder_attn_layer_norm(mid + cross) if normed else mid + cross
    return mid


def test_an_edit_in_the_middle_is_a_hook_by_hand(kin: tuple[str, Model]) -> None:
    _, m = kin
    for name in ("encoder.resid_post.1", "encoder.attn_out.0", "decoder.mlp_out.0"):
        by_hand.check_add_is_a_hook(m, BOTH, name)
    by_hand.check_add_is_a_hook(m, BOTH, "decoder.resid_post.0")


def test_an_edit_of_the_middle_flows_on_in_the_stream(kin: tuple[str, Model]) -> None:
    """What is added at resid_mid is read by the MLP and added to what it returns."""
    name, m = kin
    vector = by_hand.uneven_vector(24)
    for stack in ("encoder", "decoder"):
        points = [f"{stack}.{p}.1" for p in ("resid_mid", "mlp_in", "mlp_out", "resid_post")]
        plain = m.run(BOTH, points)
        rec = m.run(BOTH, points, [ak.add(points[0], vector)])
        close(rec[points[0]], plain[points[0]] + vector)
        block: Any = m.module.get_submodule(f"model.{stack}.layers.1")
        with torch.no_grad():
            total = rec[points[0]] + rec[points[2]]
            wanted = block.final_layer_norm(total) if name in POST_NORM else total
        close(rec[points[3]], wanted)
        if name in POST_NORM:
            assert rec[points[1]].equal(rec[points[0]])


def test_edits_move_and_nothing_stays(kin: tuple[str, Model]) -> None:
    name, m = kin
    parity.check_edits(m, EVEN)
    by_hand.check_moves(Model(randomised(network(name), std=0.6).double()), EVEN)
    parity.check_cleanup(m, BOTH, "model.decoder.layers.1")


def test_generation_with_an_edit_is_generation_with_a_hook(kin: tuple[str, Model]) -> None:
    _, m = kin
    for name in ("decoder.resid_post.0", "encoder.resid_post.1"):
        by_hand.check_generation(m, SOURCE, name)


def test_padded_sources_and_targets_read_like_single_ones(kin: tuple[str, Model]) -> None:
    _, m = kin
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    both = {**BOTH, "decoder_attention_mask": mask}
    alone = [
        {k: v[:1] for k, v in BOTH.items()},
        {"input_ids": torch.tensor([[7, 7, 30]]), "decoder_input_ids": torch.tensor([[2, 33, 12]])},
    ]
    by_hand.check_rows_alone(m, both, alone)


DECODERS: dict[str, Callable[[], nn.Module]] = {
    "bart": lambda: tf.BartForCausalLM(tf.BartConfig(**SIZES)),
    "mbart": lambda: tf.MBartForCausalLM(tf.MBartConfig(**SIZES)),
    "mvp": lambda: tf.MvpForCausalLM(tf.MvpConfig(**SIZES)),
    "plbart": lambda: tf.PLBartForCausalLM(tf.PLBartConfig(**SIZES)),
    "pegasus": lambda: tf.PegasusForCausalLM(tf.PegasusConfig(**SIZES)),
    "marian": lambda: tf.MarianForCausalLM(tf.MarianConfig(**SIZES)),
    "blenderbot": lambda: tf.BlenderbotForCausalLM(tf.BlenderbotConfig(**SIZES)),
    "blenderbot-small": lambda: tf.BlenderbotSmallForCausalLM(tf.BlenderbotSmallConfig(**SIZES)),
    "bigbird_pegasus": lambda: tf.BigBirdPegasusForCausalLM(
        tf.BigBirdPegasusConfig(**{**SIZES, "encoder_attention_heads": 3})
    ),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_alone_is_the_main_stack(name: str) -> None:
    m = Model(randomised(DECODERS[name]()))
    ids = {"input_ids": torch.tensor([[5, 17, 3, 88, 42], [7, 9, 30, 11, 61]])}
    rec = parity.check_sites(m, ids)
    parity.check_hidden_states(m, ids, normed=name not in POST_NORM)
    if name not in NO_KERNEL:
        parity.check_attentions(m, ids)
    by_hand.check_embeddings(m)
    by_hand.check_add_is_a_hook(m, ids, "resid_post.0")
    by_hand.check_generation(m, ids, "resid_post.0", pad_token_id=1)
    parity.check_edits(m, ids)
    assert rec["logits"].equal(parity.reference(m.module, m, ids).logits)
    assert m.sites("decoder.resid_post.1")[0].where == m.sites("resid_post.1")[0].where
    variants = [[ak.add("resid_post.0", by_hand.uneven_vector(24), s)] for s in (0.5, 2.0)]
    swept = m.sweep(ids, variants, metric=lambda x: x[:, 0, 7], at="last")
    for variant, row in zip(variants, swept, strict=True):
        close(m.run(ids, "logits", variant)["logits"][:, -1, 7], row)


def test_what_is_lacking_says_why() -> None:
    reasons = {
        "bart": ("decoder.final_norm", "already normalised"),
        "mvp": ("encoder.attn_probs.0", "calls no kernel"),
        "bigbird_pegasus": ("encoder.attn_scores.1", "another module for short inputs"),
        "pegasus": ("encoder.logits", "no output head"),
    }
    for name, (site, reason) in reasons.items():
        with pytest.raises(SiteError, match=reason):
            Model(network(name)).sites(site)


def test_block_sparse_attention_has_the_same_points() -> None:
    """Long inputs of BigBird-Pegasus are read by another attention of the same projections."""
    kind, config, own = KIN["bigbird_pegasus"]
    sparse = {**own, "attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}
    room = {**SIZES, "max_position_embeddings": 128}
    m = Model(randomised(kind(config(**{**room, **sparse}))))
    gen = torch.Generator().manual_seed(3)
    long = {
        "input_ids": torch.randint(3, 91, (2, 64), generator=gen),
        "decoder_input_ids": BOTH["decoder_input_ids"],
    }
    for inputs in (EVEN, long, EVEN):
        rec = m.run(inputs, ["encoder.q.1", "encoder.z.*", "encoder.attn_*.*"])
        for i in range(3):
            project: Any = m.module.get_submodule(f"model.encoder.layers.{i}.self_attn.output")
            with torch.no_grad():
                close(project(rec[f"encoder.z.{i}"].flatten(2)), rec[f"encoder.attn_out.{i}"])
