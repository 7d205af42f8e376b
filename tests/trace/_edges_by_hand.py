"""A small GPT-2 written out edge by edge in float64, to hold the graph's runs and scores against.

Shapes: B rows, T tokens, S senders, R receivers, D width, K head width.
"""

from typing import Any

import torch
from torch import Tensor

from actkit.worlds.toy_transformer import toy


def network(seed: int = 0, norm: bool = True, mlp: int = 11) -> Any:
    """Two blocks of three heads with random biases, norms that are not plain, and an MLP."""
    net = toy(9, heads=3, width=15, positions=12, mlp=mlp, norm=norm, scale=True, seed=seed)
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if mlp or "mlp" not in name:
                noise = torch.randn(weight.shape, generator=gen)
                weight += (0.2 if "ln" in name or "bias" in name else 0.3) * noise
    return net.double()


class ByHand:
    """The network as a sum over edges."""

    def __init__(self, net: Any, split_qkv: bool = True) -> None:
        self.net, self.split = net, split_qkv
        self.heads, self.blocks = net.config.n_head, list(net.transformer.h)
        per_block = (3 * self.heads if split_qkv else self.heads) + 1
        self.shape = (per_block * len(self.blocks) + 1, 1 + (self.heads + 1) * len(self.blocks))

    def embed(self, ids: Tensor) -> Tensor:
        """Return the stream into block 0."""
        net = self.net.transformer
        return torch.as_tensor(net.wte(ids) + net.wpe.weight[: ids.shape[1]])

    def outputs(self, x_BTD: Tensor) -> list[Tensor]:
        """Return what each sender writes in a plain run."""
        return self.run(x_BTD)[1]

    def run(
        self,
        x_BTD: Tensor,
        kept_RS: Tensor | None = None,
        corrupt: list[Tensor] | None = None,
        nudge_RS: Tensor | None = None,
        change: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the last token's logits and what each sender writes.

        Of edges that are not kept the corrupt output is read; a nudge adds that much of `change`.
        """
        sent, receiver, constant = [x_BTD], 0, torch.zeros(x_BTD.shape[-1], dtype=torch.float64)

        def read(row: int) -> Tensor:
            total = constant.expand_as(x_BTD)
            for s, now in enumerate(sent):
                keep = 1.0 if kept_RS is None else kept_RS[row, s]
                total = total + keep * now
                if corrupt is not None and kept_RS is not None:
                    total = total + (1 - kept_RS[row, s]) * corrupt[s]
                if nudge_RS is not None and change is not None:
                    total = total + nudge_RS[row, s] * change[s]
            return total

        for block in self.blocks:
            new = []
            for h in range(self.heads):
                rows = [receiver + (i * self.heads if self.split else 0) + h for i in range(3)]
                new.append(self._head(block, h, [block.ln_1(read(r)) for r in rows]))
            receiver += 3 * self.heads if self.split else self.heads
            constant = constant + block.attn.c_proj.bias
            sent += new
            sent.append(block.mlp(block.ln_2(read(receiver))))
            receiver += 1
        final = self.net.transformer.ln_f(read(receiver))
        return self.net.lm_head(final)[:, -1], sent

    def _head(self, block: Any, h: int, reads: list[Tensor]) -> Tensor:
        """Return what one head writes, of what its queries, keys and values read."""
        width = self.net.config.n_embd
        size = width // self.heads
        own = slice(h * size, (h + 1) * size)
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        q, k, v = (
            x @ weight[:, i * width : (i + 1) * width][:, own] + bias[i * width :][own]
            for i, x in enumerate(reads)
        )
        logits = q @ k.mT / size**0.5
        hidden = torch.ones_like(logits[0]).triu(1).bool()
        written: Tensor = logits.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        return torch.as_tensor(written @ block.attn.c_proj.weight[own])
