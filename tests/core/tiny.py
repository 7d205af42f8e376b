"""Tiny networks with fixed random weights, and a tokenizer of one word a token.

Sizes are odd and unequal on purpose, so that no axis can stand in for another.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from actkit.model import Model

WORDS = 89
WIDTH, HEADS, KV_HEADS, LAYERS, HIDDEN = 48, 6, 2, 3, 80
PROMPTS = ["w1 w2 w3 w4 w5 w6 w7", "w11 w12 w13", "w21 w22 w23 w24 w25"]
"""Three prompts of 7, 3 and 5 tokens."""


def tokenizer() -> Any:
    """One token a word: w3 is 3; 0 is padding, 1 ends a text but is a word too."""
    words = {"<pad>": 0, **{f"w{i}": i for i in range(1, WORDS)}}
    raw = Tokenizer(WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=raw, pad_token="<pad>")


def llama(dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """Three blocks of width 48 with 6 heads on 2 key-value heads; uneven, offset weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        **settings,
    )
    net: Any = LlamaForCausalLM(config)
    return net.to(dtype).eval()


def gpt2() -> Any:
    """Two blocks of width 36 with learned absolute positions."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=WORDS,
        n_embd=36,
        n_layer=2,
        n_head=4,
        n_positions=40,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    net: Any = GPT2LMHeadModel(config)
    return net.eval()


def model(dtype: torch.dtype = torch.float32, **settings: Any) -> Model:
    """Open the tiny Llama with its tokenizer."""
    return Model(llama(dtype, **settings), tokenizer(), name="tiny-llama")


class Cnn(nn.Module):
    """Convolutions with in-place ReLUs, one of them called as a function."""

    def __init__(self) -> None:
        """Three input channels, five classes."""
        super().__init__()
        torch.manual_seed(2)
        self.conv1, self.conv2 = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 9, 3)
        self.bn = nn.BatchNorm2d(7)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 5) scores of (B, 3, Y, X) images."""
        x = self.relu(self.bn(self.conv1(x)))
        x = self.conv2(x)
        x += 0.5
        x = nn.functional.relu_(x)
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


class Recurrent(nn.Module):
    """An LSTM and a GRU on top of it."""

    def __init__(self) -> None:
        """Width 5 in, 4 out."""
        super().__init__()
        torch.manual_seed(3)
        self.lstm = nn.LSTM(5, 6, num_layers=2, batch_first=True)
        self.gru = nn.GRU(6, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, 4)."""
        out, (h, c) = self.lstm(x)
        out, _ = self.gru(out + h[-1][:, None] + c[0][:, None])
        return torch.as_tensor(out)


class Pair(nn.Module):
    """Returns a tuple with a nested list and a number."""

    def forward(self, x: Tensor, *, factor: float = 1.0) -> tuple[Tensor, list[Tensor], int]:
        """Return x, [2x, 3x] and a number."""
        return x * factor, [2 * x, 3 * x], 7


class Named(nn.Module):
    """Returns a dict."""

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        """Return the sum and the difference."""
        return {"count": 2, "sum": a + b, "difference": a - b}


class Loop(nn.Module):
    """Calls one module three times, another with two inputs, and one never."""

    def __init__(self) -> None:
        """Width 4."""
        super().__init__()
        torch.manual_seed(4)
        self.step, self.pair, self.named = nn.Linear(4, 4), Pair(), Named()
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 4)."""
        for _ in range(3):
            x = torch.tanh(self.step(x))
        first, (second, third), _ = self.pair(x, factor=0.5)
        out = self.named(first + second, b=third)
        return torch.as_tensor(out["sum"] * out["difference"])


class Wrapper(nn.Module):
    """What adapters do: keeps a network inside and passes everything on."""

    def __init__(self, inner: nn.Module, delegate: bool) -> None:
        """Keep the network; with `delegate`, unknown attributes are looked up in it."""
        super().__init__()
        self.inner, self._delegate = inner, delegate

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "inner" or not self._delegate:
                raise
            return getattr(self.inner, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        return self.inner(*args, **kwargs)


def state(module: nn.Module) -> dict[str, Any]:
    """Return all that an instrument could leave behind: hooks, attributes, modes, weights."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found: dict[str, Any] = {}
    for path, m in module.named_modules():
        found[path] = (
            [len(getattr(m, h)) for h in hooks],
            sorted(k for k in vars(m)),
            id(type(m)),
            id(m.forward.__func__),
            m.training,
        )
    for name, p in module.named_parameters():
        found[name] = (id(p), p._version, p.requires_grad, p.grad is None)
    config = getattr(module, "config", None)
    if config is not None:
        found["attention"] = config._attn_implementation
    return found


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Hold that the module is left as it was, attention registry included."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before, registry = state(module), sorted(ALL_ATTENTION_FUNCTIONS.keys())
    yield
    assert state(module) == before
    assert sorted(ALL_ATTENTION_FUNCTIONS.keys()) == registry


def counted(module: nn.Module, path: str) -> tuple[list[int], Callable[[], None]]:
    """Return a list that grows by one at each call of a submodule, and what removes the counter."""
    calls: list[int] = []
    handle = module.get_submodule(path).register_forward_hook(lambda *_: calls.append(1))
    return calls, handle.remove


def uneven(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random numbers with an offset and unequal scales on the last axis."""
    gen = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.3, 2.0, shape[-1], dtype=torch.float64)
    return (0.4 + scale * torch.randn(*shape, generator=gen, dtype=torch.float64)).to(dtype)
