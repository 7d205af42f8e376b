"""Networks that put their tokens into pieces of one size, from the first column on.

Padding moves the borders of the pieces, which only rows that fill a piece can show. The reference
is each row alone, by plain torch.

Shapes: B batch, T tokens, D width.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actkit.core.run.padding import longer_lengths
from actkit.model import Model

ROWS = [[5, 17, 13, 88, 42, 9, 61, 30, 12, 90, 25], [7, 71, 30, 55, 6], [12, 90, 25, 55, 71, 8, 9]]


class Pieces(nn.Module):
    """Adds to each token the mean of the last piece that is complete and, so, before it."""

    def __init__(self, size: int, **config: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(97, 6)
        self.head = nn.Linear(6, 97)
        self.size = size
        self.config = SimpleNamespace(vocab_size=97, max_position_embeddings=512, **config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embed(input_ids) * mask[..., None]
        pieces = x[:, : x.shape[1] // self.size * self.size].unflatten(1, (-1, self.size))
        means = torch.cat([torch.zeros_like(x[:, :1]), pieces.mean(2)], 1)
        complete = torch.arange(x.shape[1]) // self.size
        return self.head(x + means[:, complete])  # type: ignore[no-any-return]


PROPOSED: list[dict[str, Any]] = [
    {"compress_rates": {"sparse": 2, "heavy": 4}},
    {"index_kpool": 4},
    {"block_size": 4, "hidden_size": 6},
]


@pytest.mark.parametrize("config", PROPOSED)
@pytest.mark.parametrize("size", [4, 2])
def test_rows_are_what_they_are_alone(size: int, config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = Pieces(size, **config).eval()
    rec = Model(net).run(ROWS, record=["head:out"])
    for row, valid, x in zip(ROWS, rec.rows.valid, rec["head:out"], strict=True):
        with torch.no_grad():
            wanted = net(torch.tensor([row]))[0]
        torch.testing.assert_close(x[valid], wanted)


def test_padding_on_the_left_would_not_do() -> None:
    torch.manual_seed(0)
    net = Pieces(4, index_kpool=4).eval()
    ids = torch.tensor([[0, 0, *ROWS[2]]])
    with torch.no_grad():
        got = net(ids, (torch.arange(9) > 1).long()[None])[0, 2:]
        wanted = net(torch.tensor([ROWS[2]]))[0]
    assert (got - wanted).norm() > 0.1 * wanted.norm()


def test_the_rows_of_the_proof_fill_the_longest_piece_that_fits() -> None:
    both = SimpleNamespace(compress_rates={"sparse": 4, "heavy": 128}, hidden_size=64)
    assert longer_lengths(both, None) == (136, 131)
    assert longer_lengths(both, 64) == (12, 7)
    assert longer_lengths(SimpleNamespace(block_size=5), None) == (15, 8)  # 5 more would hide it
    assert (
        longer_lengths(SimpleNamespace(chunk_size_feed_forward=8, sliding_window=4), None) is None
    )
    assert longer_lengths(None, None) is None
