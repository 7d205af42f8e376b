"""One process of a harvest under torchrun: python -m torch.distributed.run ... FOLDER."""

import sys
from pathlib import Path

import torch
from torch import nn

from actkit.model import Model

SITES = ["0:out", "2:out"]


def network() -> nn.Sequential:
    gen = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    for weight in net.parameters():
        weight.data = torch.randn(weight.shape, generator=gen)
    return net


def model() -> Model:
    return Model(network())


def data() -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(1)
    return [3 + torch.randn(1 + 5 * i % 7, 3, generator=gen) for i in range(13)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = {"dtype": "float32", "shard_bytes": 600, "batch_size": 2}
    model().harvest(data(), SITES, Path(sys.argv[1]), engine="torchrun", **settings)
