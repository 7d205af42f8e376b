"""Vision towers: DeiT, DINOv3, SigLIP 1 and 2, and hierarchies (ConvNeXt, Swin) stage by stage."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import SiteError
from actkit.model import Model
from tests.core import tiny
from tests.core.sites.architectures import by_hand, parity
from tests.core.sites.architectures.parity import close, randomised

TOWER: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
IMAGES: dict[str, Any] = {**TOWER, "image_size": 15, "patch_size": 5, "intermediate_size": 37}
TEXT: dict[str, Any] = {
    "vocab_size": 91,
    "hidden_size": 18,
    "intermediate_size": 29,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
    "projection_size": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def pixels(number: int = 2, size: int = 15) -> Tensor:
    """Return (number, 3, size, size) images."""
    return tiny.uneven(number, 3, size, size)


# DINOv3 splits a head's width in four for its rotary positions
DINO: dict[str, Any] = {**IMAGES, "hidden_size": 24, "num_register_tokens": 2}


def dinov3(**settings: Any) -> nn.Module:
    return tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**DINO, **settings))


FLAT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "deit": (lambda: tf.DeiTModel(tf.DeiTConfig(**IMAGES)), 2),
    "deit-classifier": (lambda: tf.DeiTForImageClassification(tf.DeiTConfig(**IMAGES)), 2),
    "dinov3": (dinov3, 3),
    "dinov3-gated": (lambda: dinov3(use_gated_mlp=True, drop_path_rate=0.2), 3),
}
"""Networks of one stack, and how many rows stand before the patches."""


@pytest.fixture(params=FLAT)
def flat(request: pytest.FixtureRequest) -> tuple[str, Model, int]:
    make, before = FLAT[request.param]
    return request.param, Model(randomised(make())), before


def test_flat_states_attentions_and_sums(flat: tuple[str, Model, int]) -> None:
    name, m, before = flat
    rec = parity.check_sites(m, pixels())
    parity.check_hidden_states(m, pixels(), normed=False)
    parity.check_attentions(m, pixels())
    parity.check_sums(m, pixels())
    parity.check_stream(m, pixels())
    for site in m.sites():
        tokens = 9 if site.name == "embeddings" else 9 + before
        assert rec.rows_of(site.name).valid.shape == (2, tokens)
    net: Any = m.module
    own = net if name.startswith("dinov3") else getattr(net, net.base_model_prefix, net)
    with torch.no_grad():
        norm = own.norm if name.startswith("dinov3") else own.layernorm
        close(norm(rec["resid_post.2"]), rec["final_norm"])
        patches = own.embeddings.patch_embeddings(pixels())
        patches = patches.flatten(2).transpose(1, 2) if patches.dim() == 4 else patches
    assert rec["embeddings"].equal(patches)


def test_flat_points_pass_through_the_blocks_own_modules(flat: tuple[str, Model, int]) -> None:
    _, m, _ = flat
    rec = m.run(pixels(), [s.name for s in m.sites()])
    for i in range(3):
        block: Any = m.module.get_submodule(m.sites(f"resid_post.{i}")[0].place.path)
        scale1, scale2 = (getattr(block, f"layer_scale{n}", nn.Identity()) for n in (1, 2))
        with torch.no_grad():
            close(scale1(block.attention.o_proj(rec[f"z.{i}"].flatten(2))), rec[f"attn_out.{i}"])
            close(scale2(block.mlp(rec[f"mlp_in.{i}"])), rec[f"mlp_out.{i}"])
            up = rec[f"mlp_pre.{i}"]
            act = getattr(block.mlp, "act_fn", None) or block.mlp.activation_fn
            gated = f"mlp_gate.{i}" in rec
            close(act(rec[f"mlp_gate.{i}"]) * up if gated else act(up), rec[f"mlp_hidden.{i}"])


def test_flat_edits(flat: tuple[str, Model, int]) -> None:
    name, m, _ = flat
    parity.check_edits(m, pixels())
    by_hand.check_moves(Model(randomised(FLAT[name][0]()).double()), pixels().double())
    by_hand.check_add_is_a_hook(m, pixels(), "resid_post.1")
    parity.check_cleanup(m, pixels(), m.sites("resid_post.2")[0].place.path)
    both = m.run(pixels(), ["z.1", "resid_post.1"])
    for b in range(2):
        one = m.run(pixels()[b : b + 1], ["z.1", "resid_post.1"])
        for site in one:
            close(one[site][0], both[site][b])
    with pytest.raises(SiteError, match="belongs to the whole image"):
        m.sites("logits")


# -- SigLIP --------------------------------------------------------------------------------------


def siglip() -> Model:
    config = tf.SiglipConfig(text_config=TEXT, vision_config=IMAGES)
    return Model(randomised(tf.SiglipModel(config)))


TEXTS = {
    "input_ids": torch.tensor([[5, 17, 3, 88, 2], [7, 30, 2, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
PAIRS = {**TEXTS, "pixel_values": pixels(3)}


def check_towers(m: Model, inputs: dict[str, Tensor], images: dict[str, Tensor]) -> None:
    """Hold that both towers of a pair stand in the whole as they stand alone."""
    parity.check_sites(m, inputs)
    text, vision = (Model(m.module.get_submodule(f"{n}_model")) for n in ("text", "vision"))
    whole = m.run(inputs, [s.name for s in m.sites()])
    for prefix, tower, own in (("text", text, TEXTS), ("vision", vision, images)):
        parity.check_sites(tower, own)
        parity.check_hidden_states(tower, own, normed=False)
        parity.check_attentions(tower, own)
        parity.check_sums(tower, own)
        parity.check_stream(tower, own)
        by_hand.check_add_is_a_hook(tower, own, "resid_post.1")
        alone = tower.run(own, [s.name for s in tower.sites()])
        assert len(alone) == len([n for n in whole if n.startswith(prefix)])
        for name in alone:
            close(alone[name], whole[f"{prefix}.{name}"])
            valid = whole.rows_of(f"{prefix}.{name}").valid
            assert alone.rows_of(name).valid.equal(valid)
    by_hand.check_embeddings(m, "text")
    by_hand.check_add_is_a_hook(m, inputs, "vision.resid_post.1")
    by_hand.check_add_is_a_hook(m, inputs, "text.resid_post.1")
    by_hand.check_moves(Model(m.module.double()), {k: _wide(v) for k, v in inputs.items()})
    assert whole.rows_of("text.z.0").valid.equal(TEXTS["attention_mask"].bool())
    with pytest.raises(SiteError, match=r"text\.logits: SigLIP scores pairs"):
        m.sites("text.logits")


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def test_siglip_has_both_towers() -> None:
    m = siglip()
    check_towers(m, PAIRS, {"pixel_values": PAIRS["pixel_values"]})


def test_siglips_padded_texts_read_like_single_ones() -> None:
    text = Model(siglip().module.get_submodule("text_model"))
    alone = [{"input_ids": TEXTS["input_ids"][:1]}, {"input_ids": torch.tensor([[7, 30, 2]])}]
    by_hand.check_rows_alone(text, TEXTS, alone)


def test_siglips_classifier_has_its_tower() -> None:
    settings: dict[str, Any] = {"text_config": TEXT, "vision_config": IMAGES, "num_labels": 4}
    config = tf.SiglipConfig(**settings)
    m = Model(randomised(tf.SiglipForImageClassification(config)))
    rec = parity.check_sites(m, pixels())
    assert not [n for n in rec if n.startswith("text.")]
    with torch.no_grad():
        head: Any = m.module.get_submodule("classifier")
        logits = head(rec["vision.final_norm"].mean(1))
    close(parity.reference(m.module, m, pixels()).logits, logits)


PATCHES = {
    "pixel_values": tiny.uneven(2, 9, 75),
    "pixel_attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3]),
    "spatial_shapes": torch.tensor([[3, 3], [3, 2]]),
}


def siglip2() -> Model:
    eye = {k: v for k, v in IMAGES.items() if k != "image_size"}
    config = tf.Siglip2Config(text_config=TEXT, vision_config={**eye, "num_patches": 9})
    return Model(randomised(tf.Siglip2Model(config)))


def test_siglip2_has_both_towers() -> None:
    m = siglip2()
    check_towers(m, {**TEXTS, **PATCHES}, PATCHES)
    with pytest.raises(SiteError, match=r"vision_model|post_layernorm:out"):
        m.sites("vision.final_norm")


def test_siglip2s_padded_images_read_like_single_ones() -> None:
    vision = Model(siglip2().module.get_submodule("vision_model"))
    first = {k: v[:1] for k, v in PATCHES.items()}
    second = {k: v[1:, :6] if v.shape[1] == 9 else v[1:] for k, v in PATCHES.items()}
    by_hand.check_rows_alone(vision, PATCHES, [first, second])
    rec = vision.run(PATCHES, "resid_post.1")
    assert rec.rows_of("resid_post.1").valid.equal(PATCHES["pixel_attention_mask"].bool())


# -- hierarchies ---------------------------------------------------------------------------------

STAGES: dict[str, Any] = {"depths": [2, 3], "hidden_sizes": [12, 22]}
SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 12,
    "depths": [2, 3],
    "num_heads": [2, 3],
    "window_size": 4,
    "mlp_ratio": 2.5,
}
STEPPED: dict[str, Callable[[], nn.Module]] = {
    "convnext": lambda: tf.ConvNextModel(tf.ConvNextConfig(num_stages=2, patch_size=4, **STAGES)),
    "convnext-classifier": lambda: tf.ConvNextForImageClassification(
        tf.ConvNextConfig(num_stages=2, patch_size=4, layer_scale_init_value=0.0, **STAGES)
    ),
    "convnextv2": lambda: tf.ConvNextV2Model(
        tf.ConvNextV2Config(num_stages=2, patch_size=4, drop_path_rate=0.3, **STAGES)
    ),
    "dinov3_convnext": lambda: tf.DINOv3ConvNextModel(tf.DINOv3ConvNextConfig(**STAGES)),
    "swin": lambda: tf.SwinModel(tf.SwinConfig(**SWIN)),
    "swin-classifier": lambda: tf.SwinForImageClassification(tf.SwinConfig(**SWIN)),
    "swinv2": lambda: tf.Swinv2Model(tf.Swinv2Config(**SWIN)),
}
WIDE = tiny.uneven(2, 3, 32, 32)
"""Square images: Swin knows its size. For the others 32 by 24 pixels tell rows from columns."""
OBLONG = tiny.uneven(2, 3, 32, 24)


@pytest.fixture(params=STEPPED)
def stepped(request: pytest.FixtureRequest) -> tuple[str, Model, Tensor]:
    module = randomised(STEPPED[request.param]())
    return request.param, Model(module), WIDE if "swin" in request.param else OBLONG


def stage_module(m: Model, stage: int) -> Any:
    path = m.sites(f"stage{stage}.resid_post.0")[0].place.path
    return m.module.get_submodule(path.rpartition(".")[0].rpartition(".")[0])


def test_stages_are_stacks_and_rows_are_places(stepped: tuple[str, Model, Tensor]) -> None:
    """Hooks by hand: each block of each stage returns the numbers of its rows."""
    name, m, images = stepped
    seen: dict[tuple[int, int], Tensor] = {}
    handles = []
    for stage, depth in enumerate((2, 3)):
        for i in range(depth):
            path = m.sites(f"stage{stage}.resid_post.{i}")[0].place.path

            def keep(_: Any, __: Any, y: Any, at: tuple[int, int] = (stage, i)) -> None:
                seen[at] = (y[0] if isinstance(y, tuple) else y).clone()

            handles.append(m.module.get_submodule(path).register_forward_hook(keep))
    rec = parity.check_sites(m, images)
    for handle in handles:
        handle.remove()
    shapes = {0: (8, images.shape[3] // 4), 1: (4, images.shape[3] // 8)}
    for (stage, i), y in seen.items():
        x = rec[f"stage{stage}.resid_post.{i}"]
        rows, columns = shapes[stage]
        assert x.shape[1] == rows * columns
        if "swin" in name:
            assert x.equal(y)
        else:
            for row, column in ((0, 0), (1, 2), (rows - 1, 0)):
                assert x[:, row * columns + column].equal(y[:, :, row, column])
        valid = rec.rows_of(f"stage{stage}.resid_post.{i}").valid
        assert valid.shape == x.shape[:2] and valid.all()


def test_stages_states_are_the_networks(stepped: tuple[str, Model, Tensor]) -> None:
    name, m, images = stepped
    rec = m.run(images, ["stage0.*", "stage1.*"])
    output = parity.reference(m.module, m, images, output_hidden_states=True)
    if "swin" not in name:
        for stage in (0, 1):
            last = rec[f"stage{stage}.resid_post.{stage + 1}"]
            close(last, output.hidden_states[stage + 1].flatten(2).transpose(1, 2))
        return
    close(rec["stage0.resid_pre.0"], output.hidden_states[0])
    merge = stage_module(m, 0).downsample
    with torch.no_grad():
        close(merge(rec["stage0.resid_post.1"], (8, 8)), rec["stage1.resid_pre.0"])
    if name in ("swin", "swinv2"):
        close(rec["stage1.final_norm"], output.last_hidden_state)


def test_stages_blocks_add_up(stepped: tuple[str, Model, Tensor]) -> None:
    name, m, images = stepped
    for stage in (0, 1):
        prefix = f"stage{stage}"
        if "swin" in name:
            parity.check_sums(m, images, prefix)
            parity.check_stream(m, images, stack=prefix)
        rec = m.run(images, [f"{prefix}.*"])
        for i in range(stage + 2):
            got = {p: rec[f"{prefix}.{p}.{i}"] for p in ("resid_pre", "mlp_out", "resid_post")}
            block: Any = m.module.get_submodule(m.sites(f"{prefix}.resid_post.{i}")[0].place.path)
            if "swin" not in name:
                close(got["resid_pre"] + got["mlp_out"], got["resid_post"])
            up, down = (_map(m, f"{prefix}.{p}.{i}") for p in ("mlp_pre", "mlp_hidden"))
            with torch.no_grad():
                close(up(rec[f"{prefix}.mlp_in.{i}"]), rec[f"{prefix}.mlp_pre.{i}"])
                y = down(rec[f"{prefix}.mlp_hidden.{i}"])
                factor = getattr(block, "layer_scale_parameter", getattr(block, "gamma", None))
                y = y if factor is None else y * factor
                y = block.layernorm_after(y) if name == "swinv2" else y
            close(y, got["mlp_out"])


def _map(m: Model, name: str) -> Any:
    return m.module.get_submodule(m.sites(name)[0].place.path)


def test_stages_edits(stepped: tuple[str, Model, Tensor]) -> None:
    name, m, images = stepped
    parity.check_edits(m, images)
    parity.check_cleanup(m, images, m.sites("stage1.resid_post.1")[0].place.path)
    network: Any = randomised(STEPPED[name]()).double()
    moved = [s.name for s in m.sites() if s.name.endswith(".1")]
    by_hand.check_moves(Model(network), images.double(), moved)
    site, vector = "stage0.resid_post.0", by_hand.uneven_vector(12)
    got = m.run(images, edits=[ak.add(site, vector)]).output
    by_places = vector if "swin" in name else vector[:, None, None]
    remove = by_hand.add_hook(_map(m, site), by_places)
    wanted = parity.reference(m.module, m, images)
    remove()
    for a, b in zip(parity.tensors(got), parity.tensors(wanted), strict=True):
        close(a, b)
    # one place of one image moves, no other place of that block does
    edit = ak.add(site, vector, where=ak.Where(rows=1, tokens=slice(5, 6)))
    plain, one = (m.run(images, site, e)[site] for e in ([], [edit]))
    assert (one != plain).any(-1).nonzero().tolist() == [[1, 5]]
    close(one[1, 5], plain[1, 5] + vector)


def test_stages_say_what_they_lack(stepped: tuple[str, Model, Tensor]) -> None:
    name, m, _ = stepped
    reasons = {"stage1.embeddings": "only stage0", "stage0.logits": "belongs to the whole image"}
    if "swin" in name:
        reasons |= {"stage0.z.0": "runs in windows", "stage0.final_norm": "the last stage only"}
    else:
        reasons |= {"stage1.attn_probs.0": "has no attention", "stage0.final_norm": "places' mean"}
    for site, reason in reasons.items():
        with pytest.raises(SiteError, match=reason):
            m.sites(site)
