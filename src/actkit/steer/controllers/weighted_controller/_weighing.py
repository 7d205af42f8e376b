"""A network that says how much to steer, and how to share it among the layers.

Shapes: N examples, K layers that are read, D width, H hidden units, E = 1 + L outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from actkit.core.progress import track

BATCH = 4


@dataclass(frozen=True, eq=False)
class Weighing:
    """Two linear maps with a ReLU between them; the first output is s, the others are weights."""

    into_KHD: Tensor
    bias_H: Tensor
    out_EH: Tensor
    bias_E: Tensor

    def __call__(self, x_NKD: Tensor) -> tuple[Tensor, Tensor]:
        """Return s (N,) and the weight of each layer in [0, 1], (N, L)."""
        hidden_NH = (torch.einsum("nkd,khd->nh", x_NKD, self.into_KHD) + self.bias_H).relu()
        out_NE = hidden_NH @ self.out_EH.mT + self.bias_E
        return out_NE[:, 0], out_NE[:, 1:].sigmoid()

    def tensors(self) -> list[Tensor]:
        """Return all weights."""
        return [self.into_KHD, self.bias_H, self.out_EH, self.bias_E]


def trained(
    yes_NKD: Tensor,
    no_NKD: Tensor,
    num_layers: int,
    num_hidden: int,
    num_epochs: int,
    rate: float,
    seed: int,
) -> Weighing:
    """Train s to tell the sides apart, with weights that stay near a half.

    Args:
        yes_NKD: States where s is to be large.
        no_NKD: States where it is to be small; another number of them will do.
        num_layers: L.
        num_hidden: H.
        num_epochs: Passes over both sides.
        rate: AdamW's learning rate.
        seed: Of the first weights and of the order.
    """
    gen = torch.Generator().manual_seed(seed)
    weights = _first(yes_NKD.shape[1], yes_NKD.shape[2], num_hidden, 1 + num_layers, gen)
    weights = [w.to(yes_NKD.device).requires_grad_() for w in weights]
    network = Weighing(*weights)
    optimiser = torch.optim.AdamW(weights, lr=rate, fused=True)
    for _ in track(range(num_epochs), "training the controller"):
        for x_NKD, wanted in ((yes_NKD, 1.0), (no_NKD, 0.0)):
            order_N = torch.randperm(len(x_NKD), generator=gen).to(x_NKD.device)
            for index in torch.split(order_N, BATCH):
                s_N, w_NL = network(x_NKD[index])
                loss = cross_entropy(s_N, torch.full_like(s_N, wanted))
                if wanted:
                    loss = loss + 0.1 * ((w_NL - 0.5).abs().mean() + 0.01 * w_NL.mean())
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimiser.step()
    return Weighing(*(w.detach() for w in weights))


def _first(
    num_reads: int, width: int, num_hidden: int, num_out: int, gen: torch.Generator
) -> list[Tensor]:
    """Return uniform weights as `torch.nn.Linear` draws them, from a generator of their own."""
    wide = num_reads * width
    shapes = [
        ((num_reads, num_hidden, width), wide),
        ((num_hidden,), wide),
        ((num_out, num_hidden), num_hidden),
        ((num_out,), num_hidden),
    ]
    return [(2 * torch.rand(shape, generator=gen) - 1) / fan**0.5 for shape, fan in shapes]
