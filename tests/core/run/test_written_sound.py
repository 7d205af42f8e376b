"""Networks whose `generate` writes no text: codes of sound, several in each step, or waves."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DiaConfig,
    DiaForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
)

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from tests.core import tiny

LLAMA: Any = LlamaForCausalLM
PROMPTS = [[5, 17, 3], [7, 30, 9]]


def dia() -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "vocab_size": 97,
    }
    sound = {
        **sizes,
        "cross_hidden_size": 16,
        "cross_num_attention_heads": 2,
        "cross_num_key_value_heads": 1,
        "cross_head_dim": 8,
        "num_channels": 3,
        "pad_token_id": 91,
        "eos_token_id": 90,
        "bos_token_id": 92,
    }
    config = DiaConfig(encoder_config=sizes, decoder_config=sound, delay_pattern=[0, 1, 2])
    network: Any = DiaForConditionalGeneration(config)
    return network.eval()


class Waves(LLAMA):  # type: ignore[misc]
    """A network that turns what it writes into sound."""

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.as_tensor(super().generate(*args, **kwargs)) / 97


def waves() -> Any:
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return Waves(config).eval()


@pytest.mark.parametrize("make", [dia, waves])
def test_what_is_no_text_is_refused(make: Any) -> None:
    torch.manual_seed(0)
    m = Model(make(), tiny.tokenizer())
    with pytest.raises(InputError, match="needs a network that writes token ids"):
        m.generate(PROMPTS, max_new_tokens=4)


def test_the_networks_own_generate_takes_edits() -> None:
    torch.manual_seed(0)
    network = waves()
    m = Model(network, tiny.tokenizer())
    ids, v = torch.tensor(PROMPTS), 40 * torch.linspace(-1.0, 2.0, 16).sin()
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    hook = network.model.layers[0].register_forward_hook(lambda _, __, output: output + v)
    wanted = network.generate(ids, **settings)
    hook.remove()
    assert not wanted.equal(network.generate(ids, **settings))
    with m.edited([ak.add("resid_post.0", v)]):
        assert network.generate(ids, **settings).equal(wanted)
