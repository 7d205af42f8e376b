"""Every selection against a loop over rows, tokens, heads and units, with padding on either side.

Shapes: B batch, T tokens, D width, H heads, K head width, S keys.
"""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import EditError
from actkit.model import Model
from tests.core import tiny

LENGTHS = [7, 3, 5]
SITES = ("resid_post.1", "z.1", "attn_probs.1", "model.layers.1.mlp:out", "k.2")


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


def batch(side: str) -> tuple[dict[str, Tensor], Tensor]:
    """Return the prompts padded on one side, and the index of each row's first valid token."""
    ids_BT = torch.zeros(3, 7, dtype=torch.long)
    mask_BT = torch.zeros(3, 7, dtype=torch.long)
    starts = [7 - n if side == "left" else 0 for n in LENGTHS]
    for b, (start, n) in enumerate(zip(starts, LENGTHS, strict=True)):
        ids_BT[b, start : start + n] = torch.arange(10 * b + 1, 10 * b + 1 + n)
        mask_BT[b, start : start + n] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT}, torch.tensor(starts)


def meant(index: Any, size: int) -> set[int]:
    """Return the numbers below `size` that an index of Python's means."""
    if index is None:
        return set(range(size))
    if isinstance(index, int):
        index = [index]
    if isinstance(index, slice):
        return set(range(size)[index])
    values = torch.as_tensor(index).tolist()
    if isinstance(values[0], bool):
        return {i for i, v in enumerate(values) if v}
    return {v % size if -size <= v < size else -1 for v in values} - {-1}


def chosen_tokens(tokens: Any, row: int, start: int) -> set[int]:
    """Return the indices in the padded row, of valid tokens unless a mask says otherwise."""
    length = LENGTHS[row]
    if isinstance(tokens, Tensor) and tokens.dim() == 2:
        return {t for t in range(7) if tokens[row, t]}
    if isinstance(tokens, str):
        every = {"all": set(range(7)), "prompt": set(range(7)), "last": {start + length - 1}}
        return every[tokens]
    return {start + t for t in meant(tokens, length)}


def brute(x: Tensor, site: str, where: ak.Where, starts: Tensor) -> Tensor:
    """Set the chosen entries to 9, one by one."""
    attention = site.startswith("attn")
    x = (x.transpose(1, 2) if attention else x).clone()
    heads = x.shape[2] if x.dim() == 4 else 1
    flat = x.view(3, 7, heads, -1)
    for b in meant(where.rows, 3):
        for t in chosen_tokens(where.tokens, b, int(starts[b])):
            for h, u in product(meant(where.heads, heads), meant(where.units, flat.shape[-1])):
                flat[b, t, h, u] = 9.0
    return x.transpose(1, 2) if attention else x


MASK_BT = torch.rand(3, 7, generator=torch.manual_seed(5)) < 0.4
TOKENS: list[Any] = [
    "all",
    "prompt",
    "last",
    0,
    2,
    -1,
    -2,
    4,
    [0, 2],
    (-1, 0),
    torch.tensor([1, -3]),
    slice(1, None),
    slice(None, 2),
    slice(-3, None),
    slice(-5, -1),
    slice(0, None, 2),
    slice(1, 6, 3),
    slice(-4, None, 3),
    slice(2, -1),
    MASK_BT,
]
ROWS: list[Any] = [
    1,
    -1,
    [2, 0],
    slice(0, 2),
    slice(None, None, 2),
    torch.tensor([True, False, True]),
]
UNITS: list[Any] = [3, [0, 5], slice(2, 6), slice(None, None, 3), torch.tensor([1, -1])]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokens", TOKENS, ids=str)
def test_tokens(m: Model, side: str, tokens: Any) -> None:
    inputs, starts = batch(side)
    for site in SITES:
        where = ak.Where(tokens=tokens)
        want = brute(m.run(inputs, record=site)[site], site, where, starts)
        got = m.run(inputs, record=site, edits=[ak.set(site, 9.0, where)])[site]
        assert torch.equal(got, want)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "where",
    [
        *[ak.Where(rows=rows) for rows in ROWS],
        *[ak.Where(units=units) for units in UNITS],
        *[
            ak.Where(tokens=t, rows=r, units=u)
            for t, r, u in zip(TOKENS[6:], ROWS * 3, UNITS * 3, strict=False)
        ],
    ],
    ids=lambda w: str(w.described()),
)
def test_rows_and_units(m: Model, side: str, where: ak.Where) -> None:
    inputs, starts = batch(side)
    for site in SITES:
        plain = m.run(inputs, record=site)[site]
        want = brute(plain, site, where, starts)
        if torch.equal(want, plain):
            with pytest.raises(EditError, match="met nothing"):
                m.run(inputs, record=site, edits=[ak.set(site, 9.0, where)])
            continue
        got = m.run(inputs, record=site, edits=[ak.set(site, 9.0, where)])[site]
        assert torch.equal(got, want)


@pytest.mark.parametrize("heads", [0, -1, [1, 0], slice(1, None)], ids=str)
@pytest.mark.parametrize("tokens", ["all", -2, slice(1, 3)], ids=str)
def test_heads(m: Model, heads: Any, tokens: Any) -> None:
    inputs, starts = batch("left")
    for site, rows in product(("z.1", "attn_probs.1", "k.2", "q.0"), (None, [2, 1])):
        where = ak.Where(tokens=tokens, rows=rows, heads=heads, units=[2, 4])
        want = brute(m.run(inputs, record=site)[site], site, where, starts)
        got = m.run(inputs, record=site, edits=[ak.set(site, 9.0, where)])[site]
        assert torch.equal(got, want)


def test_a_heads_address_is_that_head_alone(m: Model) -> None:
    for site in ("z.1", "attn_probs.1", "attn_scores.1"):
        plain = m.run(tiny.PROMPTS, record=[site, f"{site}.3"])
        head = plain[site][:, 3] if site.startswith("attn") else plain[site][:, :, 3]
        assert torch.equal(plain[f"{site}.3"], head)
        one = m.run(tiny.PROMPTS, edits=[ak.set(f"{site}.3", 0.5)], logits=True)
        same = m.run(tiny.PROMPTS, edits=[ak.set(site, 0.5, ak.Where(heads=3))], logits=True)
        assert torch.equal(one.logits, same.logits)


def test_last_in_each_row_is_its_last_valid_token(m: Model) -> None:
    for side in ("left", "right"):
        inputs, starts = batch(side)
        rec = m.run(
            inputs, record="resid_post.0", edits=[ak.set("resid_post.0", 9.0, ak.Where("last"))]
        )
        hit = (rec["resid_post.0"] == 9).all(-1)
        assert torch.equal(hit.nonzero()[:, 1], starts + torch.tensor(LENGTHS) - 1)


def test_pictures_have_pixels_for_tokens_and_channels_for_units() -> None:
    m = Model(tiny.Cnn().eval())
    x = tiny.uneven(2, 3, 5, 6)
    where = ak.Where(tokens=[0, 7, 29], units=[1, 4], rows=1)
    want = m.run(x, record="conv1:out")["conv1:out"].clone()
    for pixel in (0, 7, 29):
        want[1, [1, 4], pixel // 6, pixel % 6] = 9.0
    got = m.run(x, record="conv1:out", edits=[ak.set("conv1:out", 9.0, where)])["conv1:out"]
    assert torch.equal(got, want)


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": "first"}, "one of 'all', .* got 'first'"),
        ({"tokens": 1.5}, "tokens must be integers or bool, got torch.float32"),
        ({"tokens": slice(3, 0, -1)}, "run forwards, got slice"),
        ({"tokens": slice(0.5, None)}, "must hold integers"),
        ({"rows": []}, "rows must be integers"),
        ({"rows": [0.5]}, "rows must be integers"),
        ({"heads": "a"}, "heads must be an index"),
        ({"units": object()}, "units must be an index"),
        ({"steps": -1}, "steps count forwards from 0"),
        ({"steps": [2, -3]}, "steps count forwards from 0"),
        ({"steps": slice(None, -2)}, "steps count forwards from 0"),
    ],
)
def test_what_is_no_index_is_refused_at_once(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EditError, match=message):
        ak.Where(**fields)


@pytest.mark.parametrize(
    ("site", "where", "message"),
    [
        ("resid_post.1", ak.Where(rows=3), r"rows must be below 3, got \[3\]"),
        ("resid_post.1", ak.Where(rows=[0, -4]), r"rows must be below 3, got \[0, -4\]"),
        ("resid_post.1", ak.Where(units=48), r"units must be below 48, got \[48\]"),
        ("z.1", ak.Where(heads=6), r"heads must be below 6, got \[6\]"),
        ("k.1", ak.Where(heads=[2]), r"heads must be below 2, got \[2\]"),
        ("resid_post.1", ak.Where(heads=0), r"heads need a site with heads, .*\(3, 7, 48\)"),
        (
            "resid_post.1",
            ak.Where(rows=torch.ones(4).bool()),
            "mask of rows must have 3 entries, got 4",
        ),
        ("resid_post.1", ak.Where(tokens=torch.ones(3, 6).bool()), r"shape \(3, 7\), got \(3, 6\)"),
        ("resid_post.1", ak.Where(tokens=torch.ones(7).bool()), r"shape \(3, 7\), got \(7,\)"),
        ("resid_post.1", ak.Where(tokens=torch.ones(3, 1, 7).bool()), r"got \(3, 1, 7\)"),
        (
            "resid_post.1",
            ak.Where(tokens=7),
            "must act, but the set at resid_post.1 met nothing where tokens=7",
        ),
        ("resid_post.1", ak.Where(tokens=[-8, 9]), "met nothing"),
        ("resid_post.1", ak.Where(tokens=slice(7, None)), "met nothing"),
        (
            "resid_post.1",
            ak.Where(tokens="generated"),
            "the set at resid_post.1 met nothing where tokens='generated'$",
        ),
        ("resid_post.1", ak.Where(steps=2), "met nothing"),
        ("resid_post.1", ak.Where(rows=slice(3, None)), "met nothing"),
        ("resid_post.1", ak.Where(tokens=4, rows=1), "met nothing"),
        ("resid_post.1", ak.Where(tokens=torch.zeros(3, 7).bool()), r"where tokens=tensor\(3, 7\)"),
    ],
)
def test_what_is_not_there_is_refused_in_a_run(
    m: Model, site: str, where: ak.Where, message: str
) -> None:
    with tiny.untouched(m.module), pytest.raises(EditError, match=message):
        m.run(tiny.PROMPTS, record=site, edits=[ak.set(site, 1.0, where)])


def test_positions_that_only_some_rows_have_act_there(m: Model) -> None:
    site = "resid_post.1"
    rec = m.run(tiny.PROMPTS, record=site, edits=[ak.set(site, 9.0, ak.Where(tokens=4))])
    hit = (rec[site] == 9).all(-1)
    assert hit.nonzero().tolist() == [[0, 4], [2, 6]]  # padded on the left: 7 and 5 tokens of 7
