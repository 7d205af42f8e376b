"""Phases of what a network writes about sound or an image, at module paths.

What `generate` is given there is no token: no pass over it is all, and none of it tells how many
tokens the decoder begins with. The reference is a hook by hand that counts the decoder's passes.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration

import actkit as ak
from actkit.core.errors import EditError
from actkit.model import Model
from tests.core import tiny
from tests.core.run.test_generate_beside_images import blip, images, uneven

SOUND = tiny.uneven(2, 24, 8)
SETTINGS: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": 1}
PATH = "model.decoder.layers.1"


def listener() -> Any:
    config = Speech2TextConfig(
        vocab_size=97,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        conv_channels=16,
        input_feat_per_channel=8,
        max_source_positions=64,
        max_target_positions=64,
        decoder_start_token_id=2,
        pad_token_id=1,
    )
    return uneven(Speech2TextForConditionalGeneration(config))


def logits(network: Any) -> Tensor:
    out = network.generate(SOUND, **SETTINGS, return_dict_in_generate=True, output_logits=True)
    return torch.stack(out.logits)


def by_hand(network: Any, change: Callable[[Tensor, int], Tensor]) -> Tensor:
    calls = [0]

    def hook(_: Any, __: Any, output: Any) -> Any:
        calls[0] += 1
        x = output[0] if isinstance(output, tuple) else output
        new = change(x, calls[0] - 1)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = network.get_submodule(PATH).register_forward_hook(hook)
    try:
        return logits(network)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("tokens", "passes"),
    [("prompt", [0]), ("generated", [1, 2, 3, 4]), (slice(0, 1), [0]), (slice(1, 3), [1, 2])],
)
def test_a_decoder_of_sound_begins_with_one_token(tokens: Any, passes: list[int]) -> None:
    network = listener()
    acted: list[Tensor] = []
    v = 30 * tiny.uneven(16)
    m = Model(network, tiny.tokenizer())

    def add(x: Tensor) -> Tensor:
        acted.append(x)
        return x + v

    edit = ak.apply(f"{PATH}:out", add, where=ak.Where(tokens=tokens))
    with m.edited([edit]):
        got = logits(network)
    wanted = by_hand(network, lambda x, number: x + v if number in passes else x)
    assert got.equal(wanted)
    assert len(acted) == len(passes)
    assert not got.equal(logits(network))


@pytest.mark.parametrize("tokens", ["prompt", "generated", slice(0, 1)])
def test_passes_that_were_not_seen_to_begin_have_no_phase(tokens: Any) -> None:
    network = blip()
    m = Model(network, tiny.tokenizer())
    edit = ak.scale("text_decoder.bert.encoder.layer.1:out", 2.0, where=ak.Where(tokens=tokens))
    with tiny.untouched(network), pytest.raises(EditError, match="was seen to begin"):  # noqa: SIM117
        with m.edited([edit]):
            network.generate(images(), **SETTINGS)
