"""A sweep against one run a variant.

Shapes: V variants, B rows, P positions, n rows of one batch.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import actkit as ak
from actkit.core.edits.edit import Edit
from actkit.core.errors import EditError, InputError, SiteError
from actkit.model import Model
from tests.core import tiny

SITE = "resid_post.1"
VECTORS_BD = tiny.uneven(3, tiny.WIDTH, seed=1)
MASK_BT = torch.tensor([[0, 1] * 3 + [1], [0] * 4 + [1, 0, 1], [1] * 7]).bool()


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


def gap(logits: Tensor) -> Tensor:
    """Return the difference of two logits, summed over the positions."""
    return (logits[..., 5] - logits[..., 11]).sum(-1)


def variants(m: Model) -> list[list[Edit]]:
    """Every kind of edit and of place; some variants have several edits, one has none."""
    other = m.run(tiny.PROMPTS[::-1], record=[SITE, "z.1"])
    vector = VECTORS_BD[0]
    return [
        [],
        [ak.add(SITE, vector)],
        [ak.add(SITE, VECTORS_BD, torch.tensor([1.0, -2.0, 0.5]))],
        [ak.add(SITE, VECTORS_BD, where=ak.Where(rows=[2, 0]))],
        [ak.add(SITE, vector), ak.scale(SITE, 0.3), ak.project_out("mlp_out.*", vector)],
        [ak.set(SITE, vector, ak.Where(tokens=1))],
        [ak.set(SITE, vector, ak.Where(tokens=slice(-2, None), rows=1, units=slice(3, 9)))],
        [ak.swap(SITE, other, ak.Where(tokens=[0, -1]))],
        [ak.swap("z.1", other, ak.Where(heads=[1, 4], rows=[0]))],
        [ak.scale(SITE, 0.0, ak.Where(tokens=MASK_BT))],
        [ak.scale("attn_probs.1.2", 0.0)],
        [ak.apply(SITE, lambda x: x * torch.arange(1, len(x) + 1)[:, None, None])],
        [ak.clamp("k.0", -0.1, 0.1), ak.affine("z.0.1", torch.eye(8) * 0.5)],
    ]


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
@pytest.mark.parametrize("at", ["last", -1, 1, slice(-2, None), slice(0, 2)], ids=str)
def test_a_sweep_equals_one_run_a_variant(m: Model, batch: int, at: Any) -> None:
    every = variants(m)
    got_VB = m.sweep(tiny.PROMPTS, every, gap, at, batch)
    starts = [0, 4, 2]
    for v, edits in enumerate(every):
        logits = m.run(tiny.PROMPTS, edits=edits, logits=True).logits
        for b, start in enumerate(starts):
            index = slice(-1, None) if at == "last" else at
            own = logits[b, start:][index].reshape(-1, tiny.WORDS)
            assert_close(got_VB[v, b], gap(own[None])[0], rtol=0, atol=2e-4)
    assert got_VB.shape == (len(every), 3)
    assert len({round(float(x), 3) for x in got_VB[:, 0]}) > 8


def test_batches_hold_the_rows_of_several_variants(m: Model) -> None:
    calls, remove = tiny.counted(m.module, "lm_head")
    m.sweep(tiny.PROMPTS, [[ak.scale(SITE, float(i))] for i in range(2, 9)], gap, batch=9)
    remove()
    assert len(calls) == 1 + 3  # the bare run, then 7 versions of 3 rows


def test_versions_that_change_nothing_cost_nothing(m: Model) -> None:
    same = m.run(tiny.PROMPTS, record=SITE)
    calls, remove = tiny.counted(m.module, "lm_head")
    got_VB = m.sweep(
        tiny.PROMPTS, [[], [ak.swap(SITE, same)], [ak.add(SITE, VECTORS_BD[0], 0.0)]], gap
    )
    remove()
    assert len(calls) == 1
    assert_close(got_VB, got_VB[:1].expand(3, -1), rtol=0, atol=0)


def test_positions_count_each_rows_own_tokens(m: Model) -> None:
    seen: list[Tensor] = []

    def keep(logits: Tensor) -> Tensor:
        seen.append(logits)
        return logits[:, 0, 0]

    m.sweep(tiny.PROMPTS, [[]], keep, at=0)
    for b, prompt in enumerate(tiny.PROMPTS):
        want = m.run(prompt, logits=True).logits
        assert want is not None
        assert_close(seen[0][b, 0], want[0, 0], rtol=0, atol=1e-4)


def test_right_padding_is_no_last_token(m: Model) -> None:
    ids, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    got = m.sweep({"input_ids": ids, "attention_mask": mask}, [[]], gap)
    for b, row in enumerate(([1, 2, 3], [4, 5])):
        logits = m.run([row], logits=True).logits
        assert_close(got[0, b], gap(logits[:, -1:])[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"metric": lambda x: x[:, 0]}, r"a tensor of shape \(3,\), got shape \(3, 89\)"),
        ({"metric": lambda x: 1.0}, r"a tensor of shape \(3,\), got float"),
        ({"metric": lambda x: x.sum()}, r"a tensor of shape \(3,\), got shape \(\)"),
        ({"at": "first"}, "must be 'last', an index or a slice, got 'first'"),
        ({"at": 3}, "a position must be below 3 in every row, got 3"),
        ({"at": -4}, "a position must be below 3 in every row, got -4"),
        ({"at": slice(1, None)}, r"as many in every row and not none, got \[6, 2, 4\]"),
        ({"at": slice(2, 2)}, r"not none, got \[0, 0, 0\]"),
        ({"variants": []}, "needs a variant and a batch, got 0 and auto"),
        ({"batch": 0}, "needs a variant and a batch, got 1 and 0"),
        (
            {"variants": [[], [ak.set(SITE, 0.0, ak.Where(rows=3))]]},
            r"rows must be below 3, got \[3\]",
        ),
        ({"variants": [[ak.set(SITE, 0.0, ak.Where(tokens=9))]]}, "met nothing"),
    ],
)
def test_what_a_sweep_refuses(m: Model, keywords: dict[str, Any], message: str) -> None:
    settings = {"variants": [[]], "metric": gap, **keywords}
    with tiny.untouched(m.module), pytest.raises(EditError, match=message):
        m.sweep(tiny.PROMPTS, **settings)


def test_a_sweep_needs_tokens_and_logits(m: Model) -> None:
    with pytest.raises(EditError, match="a sweep needs token inputs"):
        Model(tiny.Cnn()).sweep(torch.ones(1, 3, 8, 8), [[]], gap)
    with pytest.raises(SiteError, match="unknown site"):
        m.sweep(tiny.PROMPTS, [[ak.set("nothing", 0.0)]], gap)
    with pytest.raises(InputError, match="must not be empty"):
        m.sweep([""], [[]], gap)
