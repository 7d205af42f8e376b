"""Networks of attention alone with relative positions, trained on sequences of two pairs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import actkit as ak
from actkit.model import Model
from actkit.trace.training.optogenetics import Optogenetics, TwoPairs

Clamps = Callable[[Optogenetics], Sequence[ak.Edit]]
SMOOTH = 0.9
"""Of the running mean of the accuracy."""


def network(vocabulary: int, heads: int = 2, width: int = 64, seed: int = 0) -> Any:
    """Two Llama blocks whose MLPs are zero, on fixed random token vectors.

    Positions enter by rotation alone and exemplars are not learnt, as in the paper: so no token
    can carry where it stood.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=1, num_hidden_layers=2,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=32,
        initializer_range=0.1, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net: Any = LlamaForCausalLM(config)
        nn.init.normal_(net.model.embed_tokens.weight.requires_grad_(False))
    for block in net.model.layers:
        for weight in block.mlp.parameters():
            nn.init.zeros_(weight).requires_grad_(False)
    return net.eval()


def train(
    model: Model, data: TwoPairs, clamps: Clamps, most: int, seed: int = 0, goal: float = 0.9
) -> tuple[int | None, float]:
    """Train under clamps until the running accuracy reaches the goal.

    Returns:
        The step at which it did, None if it never did, and the last running accuracy.
    """
    net: Any = model.module
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 3e-3)
    running = 0.5
    for step in range(most):
        drawn = data.draw(64, seed=100_000 * (seed + 1) + step)
        with model.edited(clamps(Optogenetics(drawn.token_BT))):
            logits_B2 = net(drawn.token_BT, use_cache=False, logits_to_keep=1).logits[:, 0, :2]
            loss = nn.functional.cross_entropy(logits_B2, drawn.answer_B)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        right = (logits_B2.argmax(1) == drawn.answer_B).float().mean().item()
        running = SMOOTH * running + (1 - SMOOTH) * right
        if running >= goal:
            return step, running
    return None, running
