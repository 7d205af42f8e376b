"""Vision and sound: ViT, DINOv2, CLIP, LLaVA, Whisper, wav2vec 2.0."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import ModeWarning, SiteError
from actkit.model import Model
from tests.core import tiny
from tests.core.sites.architectures import parity
from tests.core.sites.architectures.parity import close, randomised

TOWER: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3}
IMAGES: dict[str, Any] = {**TOWER, "image_size": 15, "patch_size": 5}
TEXT: dict[str, Any] = {
    "vocab_size": 91,
    "hidden_size": 18,
    "intermediate_size": 29,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def pixels(number: int = 2) -> Tensor:
    """Return (number, 3, 15, 15) images, nine patches each."""
    return tiny.uneven(number, 3, 15, 15)


def vit() -> tf.ViTConfig:
    return tf.ViTConfig(intermediate_size=37, **IMAGES)


def dinov2(**settings: Any) -> tf.Dinov2Config:
    return tf.Dinov2Config(mlp_ratio=2, **IMAGES, **settings)


def dinov2_registers() -> nn.Module:
    config = tf.Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=2, **IMAGES)
    return tf.Dinov2WithRegistersForImageClassification(config)


VISION: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: tf.ViTModel(vit()),
    "vit-classifier": lambda: tf.ViTForImageClassification(vit()),
    "dinov2": lambda: tf.Dinov2Model(dinov2()),
    "dinov2-swiglu": lambda: tf.Dinov2Model(dinov2(use_swiglu_ffn=True, drop_path_rate=0.2)),
    "dinov2-registers": dinov2_registers,
    "clip": lambda: tf.CLIPVisionModelWithProjection(
        tf.CLIPVisionConfig(intermediate_size=37, **IMAGES)
    ),
    "siglip": lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(intermediate_size=37, **IMAGES)),
}


@pytest.fixture(params=VISION)
def vision(request: pytest.FixtureRequest) -> tuple[str, Model]:
    return request.param, Model(randomised(VISION[request.param]()))


def prefix(m: Model) -> str:
    return str(m.module.base_model_prefix)


def path_of(m: Model, site: str) -> str:
    """Return the path of the module at which a site is read."""
    return m.sites(site)[0].place.path


def activation(mlp: nn.Module) -> str:
    """Return the name of an MLP's nonlinearity, the child that is neither a map nor dropout."""
    linear = (nn.Linear, nn.Dropout)
    (name,) = (n for n, child in mlp.named_children() if not isinstance(child, linear))
    return name


def test_vision_states_attentions_and_sums(vision: tuple[str, Model]) -> None:
    _, m = vision
    parity.check_hidden_states(m, pixels(), normed=False)
    parity.check_attentions(m, pixels())
    parity.check_sums(m, pixels())
    parity.check_stream(m, pixels())


def test_vision_rows_are_patches_behind_their_class_token(vision: tuple[str, Model]) -> None:
    name, m = vision
    rec = parity.check_sites(m, pixels())
    own = {"dinov2-registers": 3, "siglip": 0}.get(name, 1)
    for site in m.sites():
        tokens = 9 if site.name == "embeddings" else 9 + own
        assert rec[site.name].shape[2 if "S" in site.axes else 1] == tokens
        rows = rec.rows_of(site.name)
        assert rows.valid.shape == (2, tokens) and rows.valid.all()
        assert rows.position.tolist() == [list(range(tokens))] * 2
        assert (rows.token == -1).all()
        assert rows.flat().sample.tolist() == [0] * tokens + [1] * tokens


def test_patch_embeddings_are_what_the_convolution_says(vision: tuple[str, Model]) -> None:
    _, m = vision
    conv = next(c for c in m.module.modules() if isinstance(c, nn.Conv2d))
    weight = conv.weight.detach().double().flatten(1)
    bias = 0.0 if conv.bias is None else conv.bias.detach().double()
    patches = pixels().double().unfold(2, 5, 5).unfold(3, 5, 5)  # (B, C, Y, X, 5, 5)
    wanted = patches.permute(0, 2, 3, 1, 4, 5).reshape(2, 9, -1) @ weight.T + bias
    close(m.run(pixels(), "embeddings")["embeddings"].double(), wanted)


def test_vision_points_pass_through_the_blocks_own_modules(vision: tuple[str, Model]) -> None:
    name, m = vision
    rec = m.run(pixels(), [s.name for s in m.sites()])
    for i in range(4):
        own: Any = m.module.get_submodule(path_of(m, f"resid_post.{i}"))
        last: list[Any] = [nn.Identity(), nn.Identity()]
        if name.startswith("dinov2"):
            last = [own.layer_scale1, own.layer_scale2]
        gated = name == "dinov2-swiglu"
        # where the maps are and what an activation is called differ between versions
        project = m.module.get_submodule(path_of(m, f"z.{i}"))
        down = m.module.get_submodule(path_of(m, f"mlp_hidden.{i}"))
        act = nn.functional.silu if gated else own.mlp.get_submodule(activation(own.mlp))
        with torch.no_grad():
            close(last[0](project(rec[f"z.{i}"].flatten(2))), rec[f"attn_out.{i}"])
            up = rec[f"mlp_pre.{i}"]
            hidden = act(rec[f"mlp_gate.{i}"]) * up if gated else act(up)
            close(hidden, rec[f"mlp_hidden.{i}"])
            close(last[1](down(hidden)), rec[f"mlp_out.{i}"])


def test_vision_edits_and_cleanup(vision: tuple[str, Model]) -> None:
    _, m = vision
    parity.check_edits(m, pixels())
    parity.check_moves(m, pixels())
    parity.check_cleanup(m, pixels(), path_of(m, "resid_post.2"))
    assert m.sites("vision.resid_post.3")[0].where == m.sites("resid_post.3")[0].where
    with pytest.raises(SiteError, match="logits: a score belongs to the whole image"):
        m.sites("logits")


def test_what_is_added_is_right_while_training_too() -> None:
    """Dropout and stochastic depth come between a projection and the stream."""
    for network in (
        tf.ViTModel(tf.ViTConfig(intermediate_size=37, hidden_dropout_prob=0.4, **IMAGES)),
        tf.Dinov2Model(dinov2(drop_path_rate=0.5)),
    ):
        m = Model(randomised(network).train())
        with pytest.warns(ModeWarning):
            rec = m.run(pixels(5), ["resid_*", "attn_out.*", "mlp_out.*"])
        for i in range(4):
            close(rec[f"resid_pre.{i}"] + rec[f"attn_out.{i}"], rec[f"resid_mid.{i}"])
            close(rec[f"resid_mid.{i}"] + rec[f"mlp_out.{i}"], rec[f"resid_post.{i}"])


def test_gradients_pass_through_an_edit_of_the_shared_stream() -> None:
    """What an edit keeps for its gradient must not be overwritten when it is written back."""
    m = Model(randomised(tf.ViTModel(vit())).double())
    direction = tiny.uneven(24, dtype=torch.float64)

    def loss(factor: Tensor, grad: bool = False) -> Tensor:
        edit = ak.scale("resid_mid.1", factor)
        rec = m.run(pixels().double(), "resid_post.3", [edit], grad=grad)
        return (rec["resid_post.3"] @ direction).sum()

    factor = torch.linspace(0.5, 1.5, 24, dtype=torch.float64).requires_grad_()
    loss(factor, grad=True).backward()  # type: ignore[no-untyped-call]
    assert factor.grad is not None
    step = torch.linspace(-1.0, 2.0, 24, dtype=torch.float64) * 1e-5
    with torch.no_grad():
        wanted = (loss(factor + step) - loss(factor - step)) / 2
    close(factor.grad @ step * 1e5, wanted * 1e5, 1e-6)


# -- CLIP ----------------------------------------------------------------------------------------


def clip() -> Model:
    towers: dict[str, Any] = {
        "text_config": TEXT,
        "vision_config": {"intermediate_size": 37, **IMAGES},
    }
    return Model(randomised(tf.CLIPModel(tf.CLIPConfig(projection_dim=11, **towers))))


PAIRS = {
    "input_ids": torch.tensor([[5, 17, 3, 88, 2], [0, 0, 7, 30, 2]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]),
    "pixel_values": pixels(3),
}
"""Two texts and three images."""


def test_clip_has_both_towers() -> None:
    m = clip()
    rec = parity.check_sites(m, PAIRS)
    even = {**PAIRS, "input_ids": PAIRS["input_ids"][:, 2:], "attention_mask": torch.ones(2, 3)}
    parity.check_edits(m, even)
    parity.check_moves(m, PAIRS)
    parity.check_cleanup(m, PAIRS, "text_model.encoder.layers.2")
    assert rec.rows_of("text.z.0").valid.tolist() == PAIRS["attention_mask"].bool().tolist()
    assert rec.rows_of("text.resid_post.2").token.tolist() == PAIRS["input_ids"].tolist()
    assert rec.rows_of("vision.z.0").valid.shape == (3, 10)
    for stack in ("text", "vision"):
        parity.check_sums(m, PAIRS, stack)
    with pytest.raises(SiteError, match=r"vision\.final_norm: it runs on the class token"):
        m.sites("vision.final_norm")
    with pytest.raises(SiteError, match=r"text\.logits: CLIP scores pairs"):
        m.sites("text.logits")


def test_three_tokens_are_not_taken_for_three_colours() -> None:
    """An image of one patch: what is told of a text's last token is told of no patch."""
    eye: dict[str, Any] = {**IMAGES, "image_size": 5, "intermediate_size": 37}
    config = tf.CLIPConfig(projection_dim=11, text_config=TEXT, vision_config=eye)
    m = Model(randomised(tf.CLIPModel(config)))
    texts = {
        "input_ids": torch.tensor([[5, 17, 2], [7, 2, 0], [9, 11, 2]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]]),
        "pixel_values": pixels(3)[..., :5, :5],
    }
    rec = m.run(texts, ["vision.embeddings", "vision.z.1", "text.z.1"])
    for name, tokens in (("vision.embeddings", 1), ("vision.z.1", 2)):
        rows = rec.rows_of(name)
        assert rows.valid.shape == (3, tokens) and rows.valid.all()
        assert rows.position.tolist() == [list(range(tokens))] * 3
        assert (rows.token == -1).all()
    assert (rec.rows_of("text.z.1").token == texts["input_ids"]).all()


def test_clips_towers_alone_have_the_same_points() -> None:
    m = clip()
    rec = m.run(PAIRS, ["text.*", "vision.*"])
    text, vision = (Model(m.module.get_submodule(f"{n}_model")) for n in ("text", "vision"))
    ids = {k: PAIRS[k] for k in ("input_ids", "attention_mask")}
    for prefix, tower, inputs in (("text", text, ids), ("vision", vision, PAIRS["pixel_values"])):
        parity.check_hidden_states(tower, inputs, normed=False)
        parity.check_attentions(tower, inputs)
        alone = tower.run(inputs, [s.name for s in tower.sites()])
        assert len(alone) == len([n for n in rec if n.startswith(prefix)])
        for name in alone:
            assert torch.equal(alone[name], rec[f"{prefix}.{name}"])
    assert text.sites("text.z.1")[0].where == text.sites("z.1")[0].where


def test_clips_text_tower_reads_padded_texts_like_single_ones() -> None:
    parity.check_padding(Model(randomised(tf.CLIPTextModelWithProjection(clip_text()))))


@pytest.mark.parametrize("end", [2, 90])
def test_clip_reads_a_padded_texts_end_where_it_is(end: int) -> None:
    """CLIP's tokenizer pads with the very token that ends a text; its first place is the end."""
    config = tf.CLIPTextConfig(
        projection_dim=11, **{**TEXT, "pad_token_id": 90, "eos_token_id": end}
    )
    m = Model(randomised(tf.CLIPTextModelWithProjection(config)))
    rows = [[5, 17, 3, 88, 90], [7, 30, 90]]
    both = m.run(rows).output.text_embeds
    for row, wanted in zip(rows, both, strict=True):
        close(m.run([row]).output.text_embeds[0], wanted)


def clip_text() -> tf.CLIPTextConfig:
    return tf.CLIPTextConfig(projection_dim=11, **TEXT)


# -- LLaVA ---------------------------------------------------------------------------------------

IMAGE = 77
PROMPTS = {
    "input_ids": torch.tensor([[5, *[IMAGE] * 9, 17, 3], [0, 0, *[IMAGE] * 9, 4]]),
    "attention_mask": torch.tensor([[1] * 12, [0] * 2 + [1] * 10]),
    "pixel_values": pixels(),
}


LANGUAGE: dict[str, Any] = {
    "vocab_size": 91,
    "hidden_size": 24,
    "intermediate_size": 31,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


def llava(kind: str = "llava") -> Model:
    text = tf.LlamaConfig(**LANGUAGE)
    eye = tf.CLIPVisionConfig(intermediate_size=37, **IMAGES)
    configs = {"llava": tf.LlavaConfig, "vipllava": tf.VipLlavaConfig}
    networks = {
        "llava": tf.LlavaForConditionalGeneration,
        "vipllava": tf.VipLlavaForConditionalGeneration,
    }
    layers = {"vipllava": {"vision_feature_layers": [-2, -3]}}.get(kind, {})
    config = configs[kind](vision_config=eye, text_config=text, image_token_index=IMAGE, **layers)
    m = Model(randomised(networks[kind](config)), tiny.tokenizer())
    parity.reference(m.module, m, PROMPTS)  # it sets hooks of its own on the tower, once
    return m


@pytest.mark.parametrize("kind", ["llava", "vipllava"])
def test_llava_is_a_language_model_with_a_tower(kind: str) -> None:
    m = llava(kind)
    names = ["embeddings", "resid_pre.0", "resid_post.2", "vision.resid_post.1", "logits"]
    rec = m.run(PROMPTS, names, logits=True)
    with tiny.untouched(m.module):
        m.run(PROMPTS, [s.name for s in m.sites()])
    valid = PROMPTS["attention_mask"].bool()
    for name in (names[0], names[1], names[2], names[4]):
        assert torch.equal(rec.rows_of(name).valid, valid)
        assert torch.equal(rec.rows_of(name).token, PROMPTS["input_ids"])
    assert rec.rows_of(names[3]).valid.shape == (2, 10)
    language: Any = m.module.get_submodule("model.language_model")
    own = language.embed_tokens(PROMPTS["input_ids"]).detach()
    assert torch.equal(rec["embeddings"], own)
    image = PROMPTS["input_ids"] == IMAGE
    assert torch.equal(rec["resid_pre.0"][~image], own[~image])
    assert (rec["resid_pre.0"][image] - own[image]).abs().min(-1).values.max() > 0


def test_llava_parity() -> None:
    m = llava()
    one = {k: v[:1] for k, v in PROMPTS.items()}
    parity.check_sites(m, PROMPTS)
    parity.check_hidden_states(m, PROMPTS)
    parity.check_attentions(m, PROMPTS)
    for stack in ("", "vision"):
        parity.check_sums(m, PROMPTS, stack)
        parity.check_stream(m, PROMPTS, stack=stack)
    parity.check_edits(m, one)
    parity.check_moves(m, one)
    parity.check_cleanup(m, one, "model.language_model.layers.2")
    tower = Model(m.module.get_submodule("model.vision_tower"))
    names = [s.name for s in tower.sites()]
    whole = m.run(PROMPTS, [f"vision.{n}" for n in names])
    for name, value in tower.run(PROMPTS["pixel_values"], names).items():
        assert torch.equal(value, whole[f"vision.{name}"])
    language = Model(m.module.get_submodule("model.language_model"))
    assert {s.name for s in language.sites()} | {f"vision.{n}" for n in names} == {
        s.name for s in m.sites() if s.name != "logits"
    }


def test_llava_generates_under_edits_of_either_stack() -> None:
    m = llava()
    plain = m.generate(PROMPTS, max_new_tokens=5)
    for site in ("vision.resid_post.1", "resid_post.1"):
        edit = ak.add(site, torch.linspace(-4.0, 7.0, 24))
        both = m.generate(PROMPTS, edits=[edit], max_new_tokens=5)
        assert both != plain
        for b in range(2):
            one = {k: v[b : b + 1] for k, v in PROMPTS.items()}
            assert m.generate(one, edits=[edit], max_new_tokens=5) == [both[b]]


def llava_next() -> nn.Module:
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(intermediate_size=37, **IMAGES),
        text_config=tf.MistralConfig(**LANGUAGE),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[15, 15]],
    )
    return tf.LlavaNextForConditionalGeneration(config)


def llava_onevision() -> nn.Module:
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(intermediate_size=37, **IMAGES),
        text_config=tf.Qwen2Config(**LANGUAGE),
        image_token_index=IMAGE,
        video_token_index=78,
        vision_feature_layer=-2,
        image_grid_pinpoints=[[15, 15]],
    )
    return tf.LlavaOnevisionForConditionalGeneration(config)


@pytest.mark.parametrize(("network", "patches"), [(llava_next, 10), (llava_onevision, 9)])
def test_llavas_that_cut_an_image_in_tiles(network: Callable[[], nn.Module], patches: int) -> None:
    """One image makes two pictures for the tower, and 21 rows for the language model."""
    m = Model(randomised(network()))
    prompt = {
        "input_ids": torch.tensor([[5, *[IMAGE] * 21, 17, 3]]),
        "pixel_values": pixels()[None],
        "image_sizes": torch.tensor([[15, 15]]),
    }
    parity.reference(m.module, m, prompt)
    rec = parity.check_sites(m, prompt)
    assert rec.rows_of("vision.resid_post.1").valid.shape == (2, patches)
    assert torch.equal(rec.rows_of("resid_post.1").token, prompt["input_ids"])
    for stack in ("", "vision"):
        parity.check_sums(m, prompt, stack)


def test_llava_with_a_tower_that_has_no_table_keeps_its_language_model() -> None:
    eye = tf.PixtralVisionConfig(intermediate_size=37, **IMAGES)
    text = tf.LlamaConfig(**LANGUAGE)
    config = tf.LlavaConfig(vision_config=eye, text_config=text, image_token_index=IMAGE)
    m = Model(randomised(tf.LlavaForConditionalGeneration(config)))
    assert {s.name.split(".")[0] for s in m.sites()} >= {"resid_post", "logits"}
    assert not [s for s in m.sites() if s.name.startswith("vision.")]


# -- Whisper -------------------------------------------------------------------------------------


def whisper() -> nn.Module:
    heads: dict[str, Any] = {"encoder_attention_heads": 3, "decoder_attention_heads": 2}
    layers: dict[str, Any] = {"encoder_layers": 3, "decoder_layers": 4}
    config = tf.WhisperConfig(
        encoder_ffn_dim=31,
        decoder_ffn_dim=37,
        vocab_size=91,
        num_mel_bins=7,
        d_model=24,
        max_source_positions=11,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        **heads,
        **layers,
    )
    return tf.WhisperForConditionalGeneration(config)


SPEECH = {
    "input_features": tiny.uneven(2, 7, 22),
    "attention_mask": torch.tensor([[1] * 22, [1] * 9 + [0] * 13]),
    "decoder_input_ids": torch.tensor([[3, 4, 81, 9, 6], [3, 33, 2, 15, 7]]),
}


def test_whisper_parity() -> None:
    m = Model(randomised(whisper()))
    rec = parity.check_sites(m, SPEECH)
    for stack in ("encoder", "decoder"):
        parity.check_hidden_states(m, SPEECH, stack, f"{stack}_hidden_states")
        parity.check_attentions(m, SPEECH, stack, f"{stack}_attentions")
    parity.check_stream(m, SPEECH, stack="encoder")
    parity.check_sums(m, SPEECH, "encoder")
    parity.check_edits(m, SPEECH)
    parity.check_moves(m, SPEECH)
    parity.check_cleanup(m, SPEECH, "model.decoder.layers.1")
    cross = [f"model.decoder.layers.{i}.encoder_attn:out" for i in range(4)]
    more = m.run(SPEECH, cross)
    for i in range(4):
        close(
            rec[f"decoder.resid_pre.{i}"] + rec[f"decoder.attn_out.{i}"] + more[cross[i]],
            rec[f"decoder.resid_mid.{i}"],
        )
        close(
            rec[f"decoder.resid_mid.{i}"] + rec[f"decoder.mlp_out.{i}"],
            rec[f"decoder.resid_post.{i}"],
        )
    for stack, number in (("encoder", 3), ("decoder", 4)):
        for i in range(number):
            own: Any = m.module.get_submodule(f"model.{stack}.layers.{i}")
            with torch.no_grad():
                z = rec[f"{stack}.z.{i}"].flatten(2)
                close(own.self_attn.out_proj(z), rec[f"{stack}.attn_out.{i}"])
                hidden = own.activation_fn(rec[f"{stack}.mlp_pre.{i}"])
                close(hidden, rec[f"{stack}.mlp_hidden.{i}"])
                close(own.fc2(hidden), rec[f"{stack}.mlp_out.{i}"])


def test_whispers_rows_of_silence_are_not_valid() -> None:
    """Nine columns of a spectrogram fill five rows, (9 - 1) // 2 + 1."""
    m = Model(randomised(whisper()))
    rec = m.run(SPEECH, ["encoder.resid_post.1", "encoder.attn_probs.0", "decoder.resid_post.1"])
    for name in ("encoder.resid_post.1", "encoder.attn_probs.0"):
        assert rec.rows_of(name).valid.tolist() == [[True] * 11, [True] * 5 + [False] * 6]
    assert rec.rows_of("decoder.resid_post.1").valid.all()
    assert rec.rows_of("decoder.resid_post.1").token.equal(SPEECH["decoder_input_ids"])
    alone = m.run(SPEECH["input_features"], "encoder.z.1")
    assert alone.rows_of("encoder.z.1").valid.all()
    last = ak.Where(tokens="last")
    moved = m.run(
        SPEECH, "encoder.resid_post.1", [ak.set("encoder.resid_post.1", 3.0, where=last)]
    )["encoder.resid_post.1"]
    changed = (moved != rec["encoder.resid_post.1"]).any(-1)
    assert changed.nonzero().tolist() == [[0, 10], [1, 4]]


def test_whisper_lacks_embeddings_of_sound() -> None:
    m = Model(randomised(whisper()))
    with pytest.raises(SiteError, match=r"encoder\.embeddings: the convolutions end inline"):
        m.sites("encoder.embeddings")
    assert m.sites("decoder.embeddings")[0].shape == ("batch", "token", 24)


# -- wav2vec 2.0 ---------------------------------------------------------------------------------

SOUND: dict[str, Any] = {
    **TOWER,
    "vocab_size": 33,
    "intermediate_size": 37,
    "conv_dim": (8, 10),
    "conv_kernel": (5, 3),
    "conv_stride": (3, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
}
WAVES = {
    "input_values": tiny.uneven(2, 60),
    "attention_mask": torch.tensor([[1] * 60, [1] * 31 + [0] * 29]),
}
WAVES["input_values"][1, 31:] = 0.0


def wav2vec2(**settings: Any) -> nn.Module:
    return tf.Wav2Vec2ForCTC(tf.Wav2Vec2Config(**SOUND, **settings))


STABLE: dict[str, Any] = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
AUDIO: dict[str, Callable[[], nn.Module]] = {
    "wav2vec2": wav2vec2,
    "wav2vec2-stable": lambda: wav2vec2(**STABLE),
    "hubert": lambda: tf.HubertModel(tf.HubertConfig(**SOUND)),
    "hubert-stable": lambda: tf.HubertModel(tf.HubertConfig(**SOUND, **STABLE)),
}


@pytest.fixture(params=AUDIO)
def audio(request: pytest.FixtureRequest) -> tuple[str, Model]:
    return request.param, Model(randomised(AUDIO[request.param]()))


def test_wav2vec2_parity(audio: tuple[str, Model]) -> None:
    name, m = audio
    rec = parity.check_sites(m, WAVES)
    parity.check_hidden_states(m, WAVES, normed=False)
    parity.check_attentions(m, WAVES)
    base: Any = getattr(m.module, prefix(m), m.module)
    for i, own in enumerate(base.encoder.layers):
        pre, mid, post = (rec[f"resid_{p}.{i}"] for p in ("pre", "mid", "post"))
        attn, mlp = rec[f"attn_out.{i}"], rec[f"mlp_out.{i}"]
        with torch.no_grad():
            close(own.attention.out_proj(rec[f"z.{i}"].flatten(2)), attn)
            hidden = own.feed_forward.intermediate_act_fn(rec[f"mlp_pre.{i}"])
            close(hidden, rec[f"mlp_hidden.{i}"])
            close(own.feed_forward.output_dense(hidden), mlp)
            if name.endswith("stable"):
                close(pre + attn, mid)
                close(mid + mlp, post)
            else:
                close(own.layer_norm(pre + attn), mid)
                close(own.final_layer_norm(mid + mlp), post)
                assert torch.equal(rec[f"mlp_in.{i}"], mid)


def test_wav2vec2_edits_and_cleanup(audio: tuple[str, Model]) -> None:
    name, m = audio
    parity.check_edits(m, WAVES)
    parity.check_moves(Model(randomised(AUDIO[name](), std=0.6)), WAVES)
    base = prefix(m) if hasattr(m.module, prefix(m)) else ""
    parity.check_cleanup(m, WAVES, f"{base}.encoder.layers.3".lstrip("."))
    assert m.sites("audio.z.1")[0].where == m.sites("z.1")[0].where
    if not name.endswith("stable"):
        with pytest.raises(SiteError, match="final_norm: its blocks end with their norm"):
            m.sites("final_norm")
    assert bool([s for s in m.sites() if s.name == "logits"]) == name.startswith("wav2vec2")


def test_padded_sounds_have_the_rows_of_single_ones() -> None:
    """60 samples make 9 frames, 31 make 4: two convolutions of 5 by 3 and 3 by 2."""
    m = Model(randomised(wav2vec2(**STABLE)))
    names = [s.name for s in m.sites()]
    rec = m.run(WAVES, names)
    single = m.run(WAVES["input_values"][1:, :31], names)
    for site in m.sites():
        rows = rec.rows_of(site.name)
        assert rows.valid.tolist() == [[True] * 9, [True] * 4 + [False] * 5]
        x = rec[site.name][1]
        x = x[:, :4, :4] if "S" in site.axes else x[:4]
        close(x, single[site.name][0], 1e-4)


def test_an_audio_adapter_leaves_the_frames_of_the_blocks_alone() -> None:
    m = Model(randomised(wav2vec2(add_adapter=True, num_adapter_layers=1, **STABLE)))
    rec = m.run(WAVES, "resid_post.3")
    assert rec.rows_of("resid_post.3").valid.sum(1).tolist() == [9, 4]
    with pytest.raises(SiteError, match="logits: an adapter changes the number of frames"):
        m.sites("logits")
