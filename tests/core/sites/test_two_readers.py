"""Networks of two stacks, though their configuration tells of no encoder and no decoder.

Neither is *the* stream: it would be one whose end is not what the network returns. They are read
by module path.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel

import actkit as ak
from actkit.core.errors import SiteError
from actkit.model import Model
from tests.core import tiny

CONFIG: Any = LlamaConfig
NETWORK: Any = LlamaPreTrainedModel
IDS = torch.tensor([[5, 17, 3, 68, 42], [7, 30, 9, 2, 55]])
CANVAS = torch.tensor([[4, 33, 8], [21, 50, 13]])


class RefinerConfig(CONFIG):  # type: ignore[misc]
    model_type = "refiner"


class Refiner(NETWORK):  # type: ignore[misc]
    """Reads a prompt, and refines a canvas that sees it."""

    config_class = RefinerConfig

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__(config)
        self.encoder = LlamaModel(config)
        self.decoder = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_tokens

    def forward(
        self, input_ids: Tensor, decoder_input_ids: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        read = self.encoder(input_ids, **kwargs).last_hidden_state
        canvas = input_ids[:, :3] if decoder_input_ids is None else decoder_input_ids
        states = self.decoder.embed_tokens(canvas) + read.mean(1, keepdim=True)
        return self.lm_head(self.decoder(inputs_embeds=states).last_hidden_state)  # type: ignore[no-any-return]


class Cutter(Refiner):
    """Reads the same tokens twice: how it cuts them, and what it returns."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        cut = self.encoder(input_ids, **kwargs).last_hidden_state.sum(-1, keepdim=True) > 0
        states = self.decoder.embed_tokens(input_ids) * torch.where(cut, 2.0, 1.0)
        return self.lm_head(self.decoder(inputs_embeds=states).last_hidden_state)  # type: ignore[no-any-return]


class Reader(Refiner):
    """The same without an argument for its decoder: a network that reads ids alone."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return self.lm_head(self.encoder(input_ids, **kwargs).last_hidden_state)  # type: ignore[no-any-return]


def network(cls: Any) -> Any:
    torch.manual_seed(0)
    config = RefinerConfig(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return cls(config).eval()


@pytest.mark.parametrize("cls", [Refiner, Cutter])
def test_no_stack_is_the_stream(cls: Any) -> None:
    m = Model(network(cls))
    assert all(s.stack is None for s in m.sites())
    with pytest.raises(SiteError):
        m.run(IDS, record=["resid_post.1"])


def test_one_stack_is() -> None:
    module = network(Reader)
    del module.decoder
    found = Model(module)
    assert found.note.startswith("found by structure: 2 blocks of LlamaDecoderLayer at encoder")


@pytest.mark.parametrize("path", ["encoder.layers.0", "decoder.layers.1"])
def test_both_are_edited_by_module_path(path: str) -> None:
    module = network(Refiner)
    m = Model(module)
    feed = {"input_ids": IDS, "decoder_input_ids": CANVAS}
    v = torch.linspace(-1.0, 2.0, 16).sin()
    handle = module.get_submodule(path).register_forward_hook(lambda _, __, y: y + v)
    wanted = module(**feed)
    handle.remove()
    with tiny.untouched(module):
        got = m.run(feed, edits=[ak.add(f"{path}:out", v)]).output
    assert got.equal(wanted)
    assert not wanted.equal(module(**feed))
