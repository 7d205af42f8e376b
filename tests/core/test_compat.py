"""A network goes on from a cache under the names that the installed versions use."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, T5Config, T5ForConditionalGeneration

from actkit.core.compat import cache_argument, cache_keywords, output_cache
from actkit.core.errors import InputError
from tests.core import tiny


def mamba() -> Any:
    torch.manual_seed(4)
    config = MambaConfig(vocab_size=tiny.WORDS, hidden_size=24, state_size=6, num_hidden_layers=2)
    net: Any = MambaForCausalLM(config)
    return net.eval()


@pytest.mark.parametrize("build", [tiny.llama, tiny.gpt2, mamba])
def test_a_decoder_goes_on_from_its_cache(build: Callable[[], Any]) -> None:
    net, ids = build(), torch.arange(1, 15).view(2, 7)
    whole = net(ids).logits
    first = net(ids[:, :6], use_cache=True)
    rest = net(ids[:, 6:], use_cache=True, **cache_keywords(net, output_cache(first))).logits
    torch.testing.assert_close(rest[:, -1], whole[:, -1])
    alone = net(ids[:, 6:]).logits
    assert (alone[:, -1] - whole[:, -1]).abs().max() > 0.01


def test_an_encoder_decoder_goes_on_from_its_cache() -> None:
    torch.manual_seed(5)
    settings: dict[str, Any] = {
        "vocab_size": tiny.WORDS,
        "d_model": 20,
        "d_kv": 6,
        "d_ff": 28,
        "num_layers": 2,
        "num_heads": 3,
        "decoder_start_token_id": 0,
    }
    net: Any = T5ForConditionalGeneration(T5Config(**settings))
    net.eval()
    ids, written = torch.arange(1, 11).view(2, 5), torch.arange(20, 28).view(2, 4)
    whole = net(input_ids=ids, decoder_input_ids=written).logits
    first = net(input_ids=ids, decoder_input_ids=written[:, :3], use_cache=True)
    past = cache_keywords(net, output_cache(first))
    rest = net(input_ids=ids, decoder_input_ids=written[:, 3:], **past).logits
    torch.testing.assert_close(rest[:, -1], whole[:, -1])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # by peft
def test_a_wrapper_takes_what_the_network_inside_it_takes() -> None:
    peft = pytest.importorskip("peft")
    net, ids = tiny.llama(), torch.arange(1, 15).view(2, 7)
    wrapped = peft.get_peft_model(net, peft.LoraConfig(target_modules=["q_proj"]))
    assert cache_argument(wrapped) == cache_argument(net) is not None
    assert cache_argument(nn.DataParallel(net)) == cache_argument(net)
    past = cache_keywords(wrapped, output_cache(wrapped(ids[:, :4], use_cache=True)))
    rest = wrapped(ids[:, 4:], **past).logits
    torch.testing.assert_close(rest[:, -1], net(ids).logits[:, -1])


def test_a_cache_for_what_takes_none_is_refused() -> None:
    with pytest.raises(InputError, match="needs a network that takes one, Linear names none"):
        cache_keywords(nn.Linear(3, 2), object())
    assert cache_keywords(nn.Linear(3, 2), None) == {}


def test_what_takes_or_returns_no_cache_has_none() -> None:
    assert cache_argument(nn.Linear(3, 2)) is None
    assert cache_argument(lambda x, **others: x) is None
    net = tiny.llama()
    assert output_cache(net(torch.ones(1, 3, dtype=torch.long), use_cache=False)) is None
    assert output_cache((torch.ones(1), 2)) is None
    assert output_cache(torch.ones(2)) is None


def test_a_deprecation_that_transformers_logs_is_an_error() -> None:
    with pytest.raises(DeprecationWarning, match="is deprecated"):
        logging.getLogger("transformers.utils.generic").warning("`old` is deprecated, use `new`")
