"""Forced attention: positions count valid tokens, and bad ones are refused."""

import pytest
import torch

from actkit.core.errors import InputError
from actkit.trace._attention_edits import set_attention
from tests.core import tiny

PROMPTS = ["w1 w2 w3 w4 w5", "w6 w2 w3"]


def test_positions_count_from_each_rows_own_first_token() -> None:
    m = tiny.model()
    edits = set_attention(m, PROMPTS, [(1, 0), (1, 5), (2, 3)], [[0, -2, 3], [1]], query=-1)
    rec = m.run(PROMPTS, record="attn_probs.*", edits=edits)
    wanted = torch.tensor([[1 / 2, 0, 0, 1 / 2, 0], [0, 0, 0, 1, 0]])  # 3 is -2; two pads
    for layer, head in ((1, 0), (1, 5), (2, 3)):
        torch.testing.assert_close(rec[f"attn_probs.{layer}"][:, head, -1], wanted)
    bare = m.run(PROMPTS, record="attn_probs.*")
    torch.testing.assert_close(rec["attn_probs.1"][:, 1:5], bare["attn_probs.1"][:, 1:5])
    torch.testing.assert_close(rec["attn_probs.2"][:, :, :-1], bare["attn_probs.2"][:, :, :-1])
    early = set_attention(m, PROMPTS, [(0, 2)], [[1], [0]], query=1)
    forced = m.run(PROMPTS, record="attn_probs.0", edits=early)["attn_probs.0"][:, 2]
    assert forced[0, 1].tolist() == [0, 1, 0, 0, 0]
    assert forced[1, 3].tolist() == [0, 0, 1, 0, 0]


def test_keys_outside_the_prompt_or_after_the_query_are_refused() -> None:
    m = tiny.model()
    for keys, query, row in (
        ([[0], [3]], -1, 1), ([[0], []], -1, 1), ([[2], [0]], 1, 0), ([[-6], [0]], -1, 0),
        ([[0], [0]], 4, 1),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"keys must be positions .* in row {row}"):
            set_attention(m, PROMPTS, [(1, 0)], keys, query)
    with pytest.raises(InputError, match="keys for each row of tokens, got keys of 1 rows"):
        set_attention(m, PROMPTS, [(1, 0)], [[0]])
