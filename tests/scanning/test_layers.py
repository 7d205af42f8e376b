from typing import Any

import pytest
import transformers as tf
from torch import nn

from actkit.core.errors import ModelError
from actkit.model import Model
from actkit.scanning.layers import find_layers, labels
from tests.core import tiny


def names(sites: tuple[Any, ...]) -> list[str]:
    return [s.name for s in sites]


def net(**parts: nn.Module) -> Model:
    """Open a network that has these parts and is never run."""
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return Model(module)


def test_a_table_says_where_the_layers_are() -> None:
    (layers,) = find_layers(tiny.model())
    assert layers.name == ""
    assert names(layers.stream) == ["resid_post.0", "resid_post.1", "resid_post.2"]
    assert names(layers.hidden) == ["mlp_hidden.0", "mlp_hidden.1", "mlp_hidden.2"]
    assert names(layers.attention) == ["attn_probs.0", "attn_probs.1", "attn_probs.2"]
    assert layers.of("hidden") is layers.hidden


def test_each_stack_has_its_own_layers() -> None:
    config = tf.T5Config(
        vocab_size=91, d_model=24, d_kv=7, d_ff=37, num_layers=3, num_decoder_layers=2, num_heads=3
    )
    encoder, decoder = find_layers(Model(tf.T5ForConditionalGeneration(config)))
    assert (encoder.name, decoder.name) == ("encoder", "decoder")
    assert names(encoder.stream) == [f"encoder.resid_post.{i}" for i in range(3)]
    assert names(decoder.attention) == [f"decoder.attn_probs.{i}" for i in range(2)]


def test_without_a_site_inside_the_mlps_the_stream_is_asked_and_it_says_so() -> None:
    config = tf.MambaConfig(vocab_size=91, hidden_size=24, state_size=5, num_hidden_layers=2)
    (layers,) = find_layers(Model(tf.MambaForCausalLM(config)))
    assert layers.hidden == layers.stream and layers.attention == ()
    assert "no site inside its MLPs" in layers.words["hidden"]


def block() -> nn.Module:
    """Return a block with a list inside, an activation, and attention that is none."""
    made = nn.Module()
    made.add_module("convs", nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU6()))
    made.add_module("act", nn.SiLU())
    made.add_module("attention", nn.MultiheadAttention(4, 2))
    return made


def test_without_a_table_blocks_are_what_stands_in_the_outermost_lists() -> None:
    stages = nn.ModuleList([nn.Sequential(block(), block()), nn.Sequential(block())])
    model = net(
        stem=nn.Conv2d(3, 2, 1), stages=stages, body=net(list=nn.Sequential(block())).module
    )
    (layers,) = find_layers(model)
    blocks = ["stages.0.0", "stages.0.1", "stages.1.0", "body.list.0"]
    assert names(layers.stream) == [f"{b}:out" for b in blocks]
    assert names(layers.hidden) == [f"{b}.{p}:out#0" for b in blocks for p in ("convs.1", "act")]
    assert layers.words["stream"] == "the output of each block"


def test_a_block_that_is_an_activation_is_its_own_hidden_layer() -> None:
    (layers,) = find_layers(Model(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))))
    assert names(layers.stream) == ["0:out", "1:out", "2:out"]
    assert names(layers.hidden) == ["1:out#0"]


def test_activations_that_are_no_modules_are_said_to_be_missing() -> None:
    (layers,) = find_layers(Model(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))))
    assert layers.hidden == layers.stream
    assert "no activation function is a module" in layers.words["hidden"]


class NamedList(nn.Sequential):
    """A block that happens to be built as a list."""


def test_a_class_of_its_own_is_a_block_even_if_it_is_a_list() -> None:
    model = net(blocks=nn.ModuleList([NamedList(nn.Linear(3, 3)), NamedList(nn.Linear(3, 3))]))
    assert names(find_layers(model)[0].stream) == ["blocks.0:out", "blocks.1:out"]


@pytest.mark.parametrize("module", [nn.Linear(3, 2), tiny.Recurrent(), nn.Sequential(nn.ReLU())])
def test_a_network_without_blocks_is_refused(module: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"a list of blocks, \w+ has [01]; use model.observe"):
        find_layers(Model(module))


@pytest.mark.parametrize(
    ("sites", "short"),
    [
        (["resid_post.0", "resid_post.1", "resid_post.10"], ["0", "1", "10"]),
        (["encoder.resid_post.0", "encoder.resid_post.1"], ["0", "1"]),
        (["a.0.x.0:out", "a.0.x.1:out", "a.1.x.0:out"], ["0.0", "0.1", "1.0"]),
        (["stem:out", "stages.0:out", "stages.1:out"], ["stem", "stages.0", "stages.1"]),
        (["net.a:out", "net.a.b:out"], ["a", "a.b"]),
        (["act:in", "act:out"], ["in", "out"]),
        (["resid_post.7"], ["resid_post.7"]),
        ([], []),
    ],
)
def test_labels_are_what_the_names_do_not_share(sites: list[str], short: list[str]) -> None:
    assert labels(sites) == short
    assert len(set(labels(sites))) == len(sites)
