"""Networks whose tokens are rows of a table, so that a task can be of any inputs.

Shapes: N inputs, D width, M hidden units.
"""

import torch
from torch import Tensor, nn


def table(rows_ND: Tensor) -> nn.Embedding:
    """Return the embedding that looks rows up."""
    num, width = rows_ND.shape
    return nn.Embedding(num, width, _weight=rows_ND, _freeze=True)


class Three(nn.Module):
    """M(x) = x (1, 0, 1) . (0, 2, 1), the product in two steps: three neurons, then two."""

    main_input_name = "input_ids"

    def __init__(self, xs: list[float]) -> None:
        """Keep the inputs x."""
        super().__init__()
        self.table = table(torch.tensor(xs)[:, None])
        self.up, self.down = nn.Linear(1, 3, bias=False), nn.Linear(3, 2, bias=False)
        self.up.weight.data = torch.tensor([[1.0], [0.0], [1.0]])
        self.down.weight.data = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return x as the one logit, (B, T, 1)."""
        both: Tensor = self.down(self.up(self.table(input_ids)))
        return both.sum(-1, keepdim=True)


class Planted(nn.Module):
    """A stream with a feature, a random MLP four times as wide, and a readout of the feature.

    Ids 2 i and 2 i + 1 are inputs that differ in the feature's sign alone. With `ignores` the mean
    difference of the hidden units between the two is in the null space of the map back to the
    stream, so that the MLP carries the feature and does nothing with it.
    """

    main_input_name = "input_ids"

    def __init__(self, width: int, seed: int, ignores: bool = True, num: int = 24) -> None:
        """Draw everything; the global generator is left as it was."""
        super().__init__()
        gen = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=gen)

        self.feature = nn.functional.normalize(draw(width), dim=0)
        noise_ND = 0.3 + draw(num, width)
        noise_ND -= (noise_ND @ self.feature)[:, None] * self.feature
        sides = noise_ND[:, None] + 3 * torch.tensor([[1.0], [-1.0]]) * self.feature
        self.table = table(sides.flatten(0, 1))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for linear in (self.up, self.down):
            linear.weight.data = draw(*linear.weight.shape) * (2 / linear.in_features) ** 0.5
            linear.bias.data = 0.1 * draw(*linear.bias.shape)
        if ignores:
            hidden = nn.functional.gelu(self.up(self.table.weight)).detach()
            mean = nn.functional.normalize((hidden[::2] - hidden[1::2]).mean(0), dim=0)
            self.down.weight.data -= torch.outer(self.down.weight.data @ mean, mean)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return how much of the feature the stream holds after the MLP, (B, T, 1)."""
        x: Tensor = self.table(input_ids)
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return (x @ self.feature.to(x.dtype))[..., None]
