"""Self-logits augmentation: equal to mixing logits, on tiny networks, SmolLM2 and LLaVA."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer.controllers.self_logits import SelfLogitsAugmentation
from tests._evidence import Evidence
from tests.core import tiny
from tests.core.sites.architectures.parity import close, randomised

PROMPTS = tiny.PROMPTS
IDS = torch.tensor([[5, 17, 3, 8, 42], [7, 30, 2, 61, 9]])


def logits(model: Model, edits: Any, prompts: Any = PROMPTS) -> Tensor:
    return model.run(prompts, edits=edits, logits=True).logits


def lens(model: Model, layer: int, prompts: Any, edits: Any = ()) -> Tensor:
    """Return the logit lens, with the network's own norm and head."""
    h = model.run(prompts, f"resid_post.{layer}", edits)[f"resid_post.{layer}"]
    norm: Any = model.module.get_submodule(model.sites("final_norm")[0].place.path)
    head: Any = model.module
    with torch.no_grad():
        return torch.as_tensor(head.get_output_embeddings()(norm(h)))


def gemma() -> nn.Module:
    """Its norm multiplies by 1 + weight."""
    config = tf.GemmaConfig(
        vocab_size=91,
        hidden_size=24,
        intermediate_size=31,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        pad_token_id=0,
    )
    return tf.GemmaForCausalLM(config)


def biased() -> nn.Module:
    """Its norm is a LayerNorm of odd width, its head has a bias."""
    config = tf.PhiConfig(
        vocab_size=91,
        hidden_size=27,
        intermediate_size=31,
        num_hidden_layers=4,
        num_attention_heads=3,
        pad_token_id=0,
    )
    return tf.PhiForCausalLM(config)


NETWORKS = {"llama": tiny.llama, "gpt2": tiny.gpt2, "gemma": gemma, "biased": biased}


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_a_mix_of_logits(name: str) -> None:
    model = Model(randomised(NETWORKS[name]()))
    last = len(model.sites("resid_post.*")) - 1
    augmented = SelfLogitsAugmentation(window=last, gamma=0.4).fit(model, IDS)
    early = torch.stack([lens(model, layer, IDS) for layer in range(last)]).mean(0)
    for strength in (0.5, -1.0, 2.5):
        gamma = 0.4 * strength
        expected = (1 - gamma) * logits(model, [], IDS) + gamma * early
        close(logits(model, augmented.edits(strength), IDS), expected, 2e-5)


@pytest.mark.paper("hidden-life-tokens-reducing")
def test_limits_on_smollm2(smollm2: Model, evidence: Evidence) -> None:
    prompts = ["The sky over the sea is", "Once upon a time"]
    augmented = SelfLogitsAugmentation(window=1, gamma=1.0).fit(smollm2, prompts)
    expected = lens(smollm2, 28, prompts)
    error = (logits(smollm2, augmented.edits(), prompts) - expected).abs().max()
    what = "gamma 1, window 1: error against the logit lens of the last but one block"
    evidence(what, measured=error / expected.abs().max(), at_most=1e-5)
    bare = logits(smollm2, [], prompts)
    changed = (logits(smollm2, augmented.edits(0.0), prompts) != bare).sum()
    evidence("gamma 0: logits that changed a bit", measured=changed, at_most=0)


def test_written_in_every_way_of_decoding() -> None:
    """Each greedy step is the mix's; beams and samples are written, too."""
    model = tiny.model()
    edits = SelfLogitsAugmentation(window=2, gamma=0.6).fit(model, PROMPTS).edits()
    text, words = PROMPTS[0], []
    for _ in range(4):
        early = torch.stack([lens(model, layer, text) for layer in (0, 1)]).mean(0)
        mixed = 0.4 * logits(model, [], text) + 0.6 * early
        words.append(f"w{int(mixed[0, -1].argmax())}")
        text = f"{text} {words[-1]}"
    assert model.generate(PROMPTS[:1], edits=edits, max_new_tokens=4) == [" ".join(words)]
    assert model.generate(PROMPTS[:1], max_new_tokens=4) != [" ".join(words)]
    ways: list[dict[str, Any]] = [{"num_beams": 2}, {"do_sample": True, "top_p": 0.9}]
    for way in ways:
        written = model.generate(PROMPTS, edits=edits, max_new_tokens=4, **way)
        assert [len(w.split()) for w in written] == [4, 4, 4]


def test_rows_composition_and_files(tmp_path: Path) -> None:
    model = tiny.model()
    augmented = SelfLogitsAugmentation(window=2).fit(model, PROMPTS)
    strengths = torch.tensor([0.0, 1.0, 0.4])
    together = logits(model, augmented.edits(strengths))
    assert torch.equal(together[0], logits(model, [])[0])
    for row, strength in enumerate(strengths.tolist()):
        alone = logits(model, augmented.edits(strength), [PROMPTS[row]])
        close(together[row, -1], alone[0, -1])
    augmented.save(tmp_path / "own.safetensors", model, strength=0.7)
    loaded = ak.load_edits(tmp_path / "own.safetensors", model)
    assert torch.equal(logits(model, loaded), logits(model, augmented.edits(0.7)))
    other = ak.add("resid_post.0", tiny.uneven(tiny.WIDTH), 0.5)
    early = torch.stack([lens(model, layer, PROMPTS, [other]) for layer in (0, 1)]).mean(0)
    expected = 0.7 * logits(model, [other]) + 0.3 * early
    valid = model.run(PROMPTS, "resid_post.0").rows.valid
    close(logits(model, [other, *augmented.edits()])[valid], expected[valid])
    one, more = augmented.edits(0.5), SelfLogitsAugmentation(window=1).fit(model, PROMPTS).edits()
    swept = model.sweep(PROMPTS, [one, more, []], lambda found: found[:, -1, 7], batch=9)
    for variant, edits in zip(swept, (one, more, []), strict=True):
        close(variant, logits(model, edits)[:, -1, 7])


def test_half_precision() -> None:
    model = tiny.model(torch.bfloat16)
    augmented = SelfLogitsAugmentation(window=1, gamma=1.0).fit(model, PROMPTS)
    found = logits(model, augmented.edits())
    assert found.dtype == torch.bfloat16
    close(found.float(), lens(model, 1, PROMPTS).float(), 0.02)


def test_llava_is_augmented_too() -> None:
    eye = tf.CLIPVisionConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=37,
        image_size=15,
        patch_size=5,
    )
    text = tf.LlamaConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=31,
        vocab_size=91,
        pad_token_id=0,
    )
    config = tf.LlavaConfig(vision_config=eye, text_config=text, image_token_index=77)
    model = Model(randomised(tf.LlavaForConditionalGeneration(config)))
    seen = {
        "input_ids": torch.tensor([[5, *[77] * 9, 17, 3]]),
        "pixel_values": tiny.uneven(1, 3, 15, 15),
    }
    augmented = SelfLogitsAugmentation(window=1, gamma=1.0).fit(model, seen)
    close(logits(model, augmented.edits(), seen), lens(model, 1, seen), 2e-5)


class Capped(nn.Module):
    """A head whose logits are capped, as Gemma 2's are."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return logits between -1 and 1."""
        out: Tensor = torch.tanh(self.head(x))
        return out


def test_what_it_cannot_mix_is_refused() -> None:
    model = tiny.model()
    for window in (0, 3):
        with pytest.raises(InputError, match=f"1 to 2 blocks .* got {window}"):
            SelfLogitsAugmentation(window=window).fit(model, PROMPTS)
    net = tiny.llama()
    net.lm_head = Capped(net.lm_head)
    with pytest.raises(InputError, match="affine"):
        SelfLogitsAugmentation(window=1).fit(Model(net), IDS)
    net = tiny.llama()
    net.model.norm = nn.Identity()
    with pytest.raises(InputError, match="eps, got Identity"):
        SelfLogitsAugmentation(window=1).fit(Model(net), IDS)
