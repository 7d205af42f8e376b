"""Small transformers to wire by hand or to train: known circuits to hold methods against.

They are GPT-2 networks, so that every point, cache and `generate` work; without `norm` the layer
norms are the identity, and without `mlp` the MLPs are zero, so that a circuit is plain algebra:
head h of a block adds sum_s A_ts (x_s + b) W_V W_O with A = softmax(x_t W_Q W_K^T x_s).

Shapes: D width, K head width, V vocabulary, T positions.
"""

from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.errors import InputError


def toy(  # noqa: PLR0913 - the sizes of a network
    vocabulary: int,
    layers: int = 2,
    heads: int = 2,
    width: int = 32,
    positions: int = 32,
    mlp: int = 0,
    norm: bool = False,
    scale: bool = False,
    seed: int = 0,
) -> Any:
    """Return a small GPT-2, its weights random (standard deviation 0.1) and its biases zero.

    Args:
        vocabulary: Number of tokens.
        layers: Number of blocks.
        heads: Heads in each block; the head width is `width / heads`.
        width: Of the residual stream.
        positions: Longest prompt.
        mlp: Hidden units of each MLP; 0 for attention only.
        norm: Keep the layer norms.
        scale: Divide attention logits by the root of the head width.
        seed: Of the weights; the global generator is left as it was.

    Example:
        >>> toy(9, layers=1)(torch.tensor([[3, 1]])).logits.shape
        torch.Size([1, 2, 9])
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if width % heads:
        raise InputError(f"the width must be a multiple of {heads} heads, got {width}")
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=positions,
        n_inner=mlp or 1,
        initializer_range=0.1,
        tie_word_embeddings=False,
        scale_attn_weights=scale,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net: Any = GPT2LMHeadModel(config)
    net.eval()
    for block in net.transformer.h:
        if not norm:
            block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
        if not mlp:
            for weight in block.mlp.parameters():
                nn.init.zeros_(weight).requires_grad_(False)
    if not norm:
        net.transformer.ln_f = nn.Identity()
    return net


@torch.no_grad()
def clear(net: Any) -> Any:
    """Set every weight of a toy to zero, and return it.

    Example:
        >>> clear(toy(9))(torch.tensor([[3, 1]])).logits.abs().max().item()
        0.0
    """
    for weight in net.parameters():
        weight.zero_()
    return net


@torch.no_grad()
def set_head(
    net: Any,
    layer: int,
    head: int,
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    o: Tensor | None = None,
) -> None:
    """Set a head's maps: `q`, `k`, `v` (D, K) from the stream, `o` (K, D) back to it.

    Narrower ones fill the first columns (rows of `o`), the rest is zero.
    """
    attention, width = net.transformer.h[layer].attn, net.config.n_embd
    size = width // net.config.n_head
    for i, given in enumerate((q, k, v)):
        if given is not None:
            start = i * width + head * size
            own = attention.c_attn.weight[:, start : start + size]
            own.zero_()[:, : given.shape[1]] = given
    if o is not None:
        own = attention.c_proj.weight[head * size : (head + 1) * size]
        own.zero_()[: len(o)] = o


@torch.no_grad()
def reader(layers: int = 2, heads: int = 3, at: tuple[int, int] = (1, 1), tokens: int = 6) -> Any:
    """Return a toy of which one head alone answers: it copies the first token to the logits.

    Tokens lie one-hot in the first units of the stream, positions in the next, what is copied in
    the last; all other heads are zero. The logit of the first token is 1, of all others 0.

    Args:
        layers: Number of blocks.
        heads: Heads in each block.
        at: Layer and head of the one that reads.
        tokens: Size of the vocabulary.

    Example:
        >>> reader()(torch.tensor([[3, 1, 2]])).logits[0, -1].argmax().item()  # the first again
        3
    """
    positions = 8
    net = clear(toy(tokens, layers, heads, heads * (2 * tokens + positions), positions))
    start, eye = tokens + positions, torch.eye(tokens)
    net.transformer.wte.weight[:, :tokens] = eye
    net.transformer.wpe.weight[:, tokens:start] = torch.eye(positions)
    q, k, v, o = (torch.zeros(net.config.n_embd, tokens) for _ in range(4))
    q[tokens:start, 0] = 100.0  # every position asks,
    k[tokens, 0] = 1.0  # the first one answers
    v[:tokens], o[start : start + tokens] = eye, eye
    set_head(net, *at, q, k, v, o.mT)
    net.lm_head.weight[:, start : start + tokens] = eye
    return net
