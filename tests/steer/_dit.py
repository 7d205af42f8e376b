"""A tiny diffusion Transformer, what it is trained on, and its sampler.

Shapes: B batch, T tokens, D width, P tokens of the prompt, Y and X pixels.

Modules are named as in diffusers: `blocks.1.attn1` is self-attention, `attn2` cross-attention,
with `to_q`, `to_k`, `to_v` and `to_out.0`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import fold, scaled_dot_product_attention

from tests._kept import kept

Predict = Callable[[Tensor, Tensor], Tensor]
"""From noisy images and times to the noise."""


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k = nn.Linear(width, width, False), nn.Linear(width, width, False)
        self.to_v = nn.Linear(width, width, False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x_BTD: Tensor, context_BPD: Tensor | None = None) -> Tensor:
        context_BPD = x_BTD if context_BPD is None else context_BPD
        given = (self.to_q(x_BTD), self.to_k(context_BPD), self.to_v(context_BPD))
        q, k, v = (g.unflatten(-1, (self.heads, -1)).transpose(1, 2) for g in given)
        z = scaled_dot_product_attention(q, k, v)
        out: Tensor = self.to_out[0](z.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.time = nn.Linear(width, 4 * width)
        self.attn1, self.attn2 = Attention(width, heads), Attention(width, heads)
        up, down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.mlp = nn.Sequential(up, nn.GELU(), down)

    def forward(self, x: Tensor, time_BD: Tensor, prompt_BPD: Tensor) -> Tensor:
        shift, scale, shift_mlp, scale_mlp = self.time(time_BD)[:, None].chunk(4, -1)
        x = x + self.attn1(self.norm1(x) * (1 + scale) + shift)
        x = x + self.attn2(self.norm2(x), prompt_BPD)
        out: Tensor = x + self.mlp(self.norm3(x) * (1 + scale_mlp) + shift_mlp)
        return out


class DiT(nn.Module):
    """Predicts the noise of (B, 1, Y, X) images at times in [0, 1], given (B, P) prompts."""

    def __init__(self, side: int, patch: int, num_words: int, width: int = 64) -> None:
        super().__init__()
        self.patch, self.grid = patch, side // patch
        self.embed = nn.Conv2d(1, width, patch, patch)
        self.position = nn.Parameter(torch.randn(self.grid**2, width))
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.words = nn.Embedding(num_words, width)
        self.blocks = nn.ModuleList([Block(width, 4) for _ in range(3)])
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, patch**2)

    def forward(self, x: Tensor, time_B: Tensor, prompt_BP: Tensor) -> Tensor:
        rate = torch.logspace(0, 2.5, 16)
        angle = time_B[:, None] * rate
        time_BD = self.time(torch.cat([angle.sin(), angle.cos()], -1))
        h = self.embed(x).flatten(2).mT + self.position
        for block in self.blocks:
            h = block(h, time_BD, self.words(prompt_BP))
        velocity = fold(self.out(self.norm(h)).mT, x.shape[-2:], self.patch, stride=self.patch)
        share = alpha_bar(time_B)[:, None, None, None]
        return share.sqrt() * velocity + (1 - share).sqrt() * x


def alpha_bar(time: Tensor) -> Tensor:
    """Return the share of the image in the noisy image's variance, 1 at time 0."""
    return (time.clamp(0, 1) * 0.49 * math.pi).cos() ** 2


def noised(image: Tensor, noise: Tensor, time: float) -> Tensor:
    share = alpha_bar(torch.tensor(time))
    return share.sqrt() * image + (1 - share).sqrt() * noise


def denoise(
    predict: Predict,
    noise: Tensor,
    num_steps: int = 16,
    start: float = 1.0,
    before: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, eps, share: x,
    after: Callable[[Tensor, float], Tensor] = lambda x, time: x,
) -> Tensor:
    """Sample by DDIM; the network is called once a step.

    Args:
        predict: The network, prompt included.
        noise: (B, 1, Y, X).
        num_steps: Number of calls.
        before: From the noisy images, their predicted noise and their alpha_bar to the noisy
            images that the step starts from.
        after: From the noisy images and the time after a step to those that go on.
    """
    x, times = noise, torch.linspace(start, 0, num_steps + 1).tolist()
    for now, later in pairwise(times):
        share, next_share = alpha_bar(torch.tensor(now)), alpha_bar(torch.tensor(later))
        eps = predict(x, torch.full((len(x),), now))
        x = before(x, eps, share)
        image = (x - (1 - share).sqrt() * eps) / share.sqrt()
        x = after(next_share.sqrt() * image + (1 - next_share).sqrt() * eps, later)
    return x


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@kept
def trained(
    images: Tensor, prompts_NP: Tensor, num_updates: int, patch: int = 2, width: int = 32
) -> DiT:
    """Return a network trained on (N, 1, Y, X) images and their prompts."""
    gen = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DiT(images.shape[-1], patch, int(prompts_NP.max()) + 1, width)
    optimiser = torch.optim.AdamW(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 8e-3, total_steps=num_updates)
    for _ in range(num_updates):
        chosen = torch.randint(len(images), (64,), generator=gen)
        time, eps = torch.rand(64, generator=gen), torch.randn(64, *images.shape[1:], generator=gen)
        share = alpha_bar(time)[:, None, None, None]
        noisy = share.sqrt() * images[chosen] + (1 - share).sqrt() * eps
        error = net(noisy, time, prompts_NP[chosen]) - eps
        loss = (error.square() / share).mean()  # of the velocity, which is as large at all times
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval().requires_grad_(False)


@dataclass(frozen=True)
class Scenes:
    """Discs and crosses on stripes: (N, 1, 8, 8) images in [-1, 1].

    Attributes:
        images: What is seen.
        backgrounds: The same without the object.
        masks: (N, 8, 8) bool, the square of 4 pixels that holds the object.
        prompts: (N, 2) words: what the object is, and how the stripes run.
    """

    images: Tensor
    backgrounds: Tensor
    masks: Tensor
    prompts: Tensor


UNSAID, NONE, DISC, CROSS, LYING, STANDING = range(6)
"""The words of prompts of scenes."""


def scenes(
    num: int, seed: int, objects: Sequence[int] = (DISC, CROSS), entangled: float = 0.5
) -> Scenes:
    """Draw scenes; `entangled` is the share of crosses on standing, of discs on lying stripes."""
    gen = torch.Generator().manual_seed(seed)

    def drawn(high: int) -> Tensor:
        return torch.randint(high, (num, 1, 1), generator=gen)

    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    kind = torch.tensor(objects)[drawn(len(objects))]
    usual = torch.rand(num, 1, 1, generator=gen) < entangled
    standing = usual == (kind == CROSS)
    stripes = (torch.where(standing, x, y) + 2 * drawn(2)) % 4 < 2
    background = torch.where(stripes, 0.0, -0.8)
    dy, dx = (y - 2 * drawn(3) - 1.5).abs(), (x - 2 * drawn(3) - 1.5).abs()
    mask = (dy < 2) & (dx < 2)
    shape = torch.where(kind == DISC, dy + dx < 3, dy == dx) & (kind != NONE)
    images = torch.where(mask & shape, 1.0, background)
    words = torch.cat([kind[:, 0], torch.where(standing, STANDING, LYING)[:, 0]], 1)
    return Scenes(images[:, None], background[:, None], mask, words)
