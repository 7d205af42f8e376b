"""Two layers of attention and an MLP that read labelled items.

Shapes: B sequences, T positions, S keys, D width, L labels.
"""

import torch
from torch import Tensor, nn

from actkit.worlds.labelled_items import IclData


class AttentionLayer(nn.Module):
    """One causal head that adds to the stream; its attention is what `probs` returns."""

    def __init__(self, width: int) -> None:
        """Draw the maps from N(0, 1 / width)."""
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        for linear in (self.q, self.k, self.v):
            nn.init.normal_(linear.weight, std=width**-0.5)
        self.probs = nn.Softmax(-1)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the (B, T, D) stream after it."""
        scores_BTS = self.q(x_BTD) @ self.k(x_BTD).mT
        hidden_TS = torch.ones_like(scores_BTS[0]).triu(1).bool()
        attention_BTS = self.probs(scores_BTS.masked_fill(hidden_TS, -torch.inf))
        stream_BTD: Tensor = x_BTD + attention_BTS @ self.v(x_BTD)
        return stream_BTD


class IclNetwork(nn.Module):
    """Two layers of attention on items with one-hot positions, and an MLP of three layers.

    Example:
        >>> from actkit.worlds import IclData
        >>> data = IclData(num_classes=4, num_labels=2, pairs=2, burst=2, width=4)
        >>> IclNetwork(data)(torch.zeros(3, 5, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(self, data: IclData, hidden: int = 64, seed: int = 0) -> None:
        """Draw the weights; the global generator is left as it was."""
        super().__init__()
        length = 2 * data.pairs + 1
        width = length + data.width
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(AttentionLayer(width), AttentionLayer(width))
            self.head = nn.Sequential(
                nn.Linear(width, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, data.num_labels),
            )
        self.register_buffer("positions_TT", torch.eye(length))

    def forward(self, input_BTD: Tensor) -> Tensor:
        """Return the (B, L) logits of the last item's label."""
        where_BTT = torch.as_tensor(self.positions_TT).expand(len(input_BTD), -1, -1)
        stream_BTD = self.layers(torch.cat([where_BTT, input_BTD], -1))
        logits_BL: Tensor = self.head(stream_BTD[:, -1])
        return logits_BL
