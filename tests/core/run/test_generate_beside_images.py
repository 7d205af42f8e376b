"""Networks that write beside an image, and what their own `generate` returns: with or without it.

The reference is that `generate` itself, decoded by the same tokenizer.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from tests.core import tiny

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT: dict[str, Any] = {**SIZES, "vocab_size": 97, "max_position_embeddings": 64}
VISION: dict[str, Any] = {**SIZES, "image_size": 12, "patch_size": 4}
LLAMA: Any = LlamaForCausalLM
IDS = torch.tensor([[5, 17, 3], [7, 30, 9]])


def uneven(network: Any) -> Any:
    gen = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(std=0.4, generator=gen)
    network.generation_config.eos_token_id = None
    return network.eval()


def blip() -> Any:
    marks: dict[str, Any] = {
        "bos_token_id": 92,
        "sep_token_id": 91,
        "pad_token_id": 0,
        "eos_token_id": 91,
    }
    text: dict[str, Any] = {**TEXT, **marks, "encoder_hidden_size": 16, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config=VISION, projection_dim=16)
    return uneven(BlipForConditionalGeneration(config))


def git() -> Any:
    marks: dict[str, Any] = {"bos_token_id": 92, "eos_token_id": 91, "pad_token_id": 0}
    return uneven(GitForCausalLM(GitConfig(**TEXT, **marks, vision_config=VISION)))


def images() -> Tensor:
    return tiny.uneven(2, 3, 12, 12)


def own_of(m: Model) -> Any:
    return m.module


def text_of(m: Model, ids: Tensor) -> list[str]:
    return list(m.tokenizer.batch_decode(ids, skip_special_tokens=True))


def test_a_caption_is_the_networks_own() -> None:
    m = Model(blip(), tiny.tokenizer())
    own = own_of(m).generate(images(), max_new_tokens=5)
    assert m.generate({"pixel_values": images()}, max_new_tokens=5) == text_of(m, own)


def test_an_edited_caption_is_what_a_hook_by_hand_makes() -> None:
    m, v = Model(blip(), tiny.tokenizer()), 9 * tiny.uneven(16)
    path = "text_decoder.bert.encoder.layer.1"
    plain = own_of(m).generate(images(), max_new_tokens=5)

    def add(_: Any, __: Any, output: Any) -> Any:
        return (output[0] + v, *output[1:]) if isinstance(output, tuple) else output + v

    handle = own_of(m).get_submodule(path).register_forward_hook(add)
    wanted = own_of(m).generate(images(), max_new_tokens=5)
    handle.remove()
    assert not wanted.equal(plain)
    edits = [ak.add(f"{path}:out", v)]
    got = m.generate({"pixel_values": images()}, edits=edits, max_new_tokens=5)
    assert got == text_of(m, wanted)


def test_what_is_new_behind_a_prompt() -> None:
    m = Model(git(), tiny.tokenizer())
    batch = {"pixel_values": images(), "input_ids": IDS}
    own = own_of(m).generate(**batch, max_new_tokens=5)
    assert m.generate(batch, max_new_tokens=5) == text_of(m, own[:, 3:])
    both = m.generate(batch, max_new_tokens=5, num_beams=2, num_return_sequences=2)
    wanted = own_of(m).generate(**batch, max_new_tokens=5, num_beams=2, num_return_sequences=2)
    assert both == text_of(m, wanted[:, 3:])


def test_a_prompt_that_does_not_come_back_is_refused() -> None:
    m = Model(blip(), tiny.tokenizer())
    with pytest.raises(InputError, match="returns its prompt of 3 tokens"):
        m.generate({"pixel_values": images(), "input_ids": IDS}, max_new_tokens=5)


class OnlyNew(LLAMA):  # type: ignore[misc]
    """A network whose `generate` returns what it wrote, and not what it read."""

    def generate(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        return torch.as_tensor(super().generate(input_ids, **kwargs))[:, input_ids.shape[1] :]


def test_what_is_new_alone_is_not_cut() -> None:
    m = Model(uneven(OnlyNew(LlamaConfig(**TEXT))), tiny.tokenizer())
    with pytest.raises(InputError, match="begins with other tokens"):
        m.generate(IDS, max_new_tokens=5)
