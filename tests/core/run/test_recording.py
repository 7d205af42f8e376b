"""Recordings and rows.

Shapes: B batch, T tokens, N rows, D width.
"""

import pytest
import torch

from actkit.core.errors import InputError, SiteError
from actkit.core.run.recording import Recording, Rows
from actkit.model import Model
from tests.core import tiny


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


def test_rows_of_a_padded_batch(m: Model) -> None:
    rows = m.run(tiny.PROMPTS, record="resid_post.0").rows
    assert len(rows) == 3 and rows.valid.sum(-1).tolist() == [7, 3, 5]
    flat = rows.flat()
    assert flat.sample.tolist() == [0] * 7 + [1] * 3 + [2] * 5
    assert flat.position.tolist() == [*range(7), *range(3), *range(5)]
    assert flat.token.tolist() == [*range(1, 8), 11, 12, 13, *range(21, 26)]
    assert rows.token[1, 0] == 0 and not rows.valid[1, 0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_flat_rows_are_the_same_whatever_the_padding(m: Model, side: str) -> None:
    lengths, ids, mask = [7, 3, 5], torch.zeros(3, 7).long(), torch.zeros(3, 7).long()
    for b, n in enumerate(lengths):
        own = slice(7 - n, None) if side == "left" else slice(n)
        ids[b, own], mask[b, own] = torch.arange(10 * b + 1, 10 * b + 1 + n), 1
    rec = m.run({"input_ids": ids, "attention_mask": mask}, record=["resid_post.1", "attn_probs.0"])
    acts, rows = rec.flat("resid_post.1")
    want, want_rows = m.run(tiny.PROMPTS, record="resid_post.1").flat("resid_post.1")
    torch.testing.assert_close(acts, want, rtol=1e-4, atol=1e-4)
    for name in ("sample", "position", "token", "valid"):
        assert torch.equal(getattr(rows, name), getattr(want_rows, name))
    assert torch.equal(rec.rows_of("attn_probs.0").valid, mask.bool())


def test_every_sites_rows_match_its_tensor(m: Model) -> None:
    rec = m.run(tiny.PROMPTS, record=["*.1", "embeddings", "logits"], logits=True)
    for site, value in rec.items():
        tokens = value.shape[2] if site.startswith("attn_") and value.dim() == 4 else value.shape[1]
        assert rec.rows_of(site).valid.shape == (3, tokens) == (3, 7)


def test_rows_of_pictures_are_pixels() -> None:
    rec = Model(tiny.Cnn().eval()).run(torch.ones(2, 3, 5, 6), record=["conv1:out", "head:out"])
    rows = rec.rows_of("conv1:out")
    assert rows.valid.shape == (2, 30) and rows.grid == (5, 6)
    assert rows.position[1].tolist() == list(range(30)) and set(rows.sample[1].tolist()) == {1}
    assert set(rows.token.flatten().tolist()) == {-1}
    assert rec.rows_of("head:out").valid.shape == (2, 1)


def test_rows_are_selected_like_tensors() -> None:
    rows = Rows.of(torch.tensor([[False, True, True], [True, True, True]]))
    assert rows[1].position.tolist() == [0, 1, 2]
    assert rows[:, -1].sample.tolist() == [0, 1]
    assert rows.shifted(10).flat().sample.tolist() == [10, 10, 11, 11, 11]
    assert rows.flat().position.tolist() == [0, 1, 0, 1, 2]
    assert set(rows.flat().token.tolist()) == {-1}


def test_a_recording_is_a_mapping(m: Model) -> None:
    rec = m.run("w1 w2", record=["resid_post.1", "z.0"])
    assert list(rec) == ["resid_post.1", "z.0"] and len(rec) == 2 and "z.0" in rec
    assert repr(rec) == (
        "Recording of 2 sites\n  resid_post.1: (1, 2, 48) float32\n  z.0: (1, 2, 6, 8) float32"
    )
    with pytest.raises(SiteError, match=r"'z\.1' was not recorded; recorded: resid_post\.1, z\.0"):
        rec["z.1"]
    with pytest.raises(SiteError, match="was not recorded"):
        rec.rows_of("z.1")
    with pytest.raises(SiteError, match="recorded: nothing"):
        Recording({}, {}, rec.rows)["z.1"]


def test_rows_of_a_network_without_tokens_are_at_position_zero() -> None:
    rec = Model(torch.nn.Sequential(torch.nn.Linear(3, 5))).run(torch.ones(4, 3), record="0:out")
    assert rec.rows_of("0:out").position.tolist() == [[0]] * 4
    assert rec.rows_of("0:out").sample.tolist() == [[0], [1], [2], [3]]


@pytest.mark.parametrize("name", ["attn_probs.1", "attn_probs.1.3"])
def test_flat_rows_of_attention_are_those_of_single_runs(m: Model, name: str) -> None:
    acts_NHS, rows = m.run(tiny.PROMPTS, record=name).flat(name)
    heads = 1 if name.endswith(".3") else 6
    assert acts_NHS.shape == (15, heads, 7) and len(rows) == 15
    for i, prompt in enumerate(tiny.PROMPTS):
        alone = m.run(prompt, record=name)[name].reshape(heads, int(rows.sample.eq(i).sum()), -1)
        mine_NHS = acts_NHS[rows.sample == i]
        torch.testing.assert_close(mine_NHS[..., : alone.shape[-1]].transpose(0, 1), alone)
        assert not mine_NHS[..., alone.shape[-1] :].any()


def test_flat_rows_of_pictures_are_their_pixels() -> None:
    x = torch.randn(2, 3, 5, 4, generator=torch.manual_seed(0))
    net = torch.nn.Sequential(torch.nn.Identity())
    rec = Model(net, axes={"0:out": "BCYX"}).run(x, record="0:out")
    acts_NC, rows = rec.flat("0:out")
    assert acts_NC.shape == (40, 3) and len(rows) == 40
    assert torch.equal(acts_NC[20 + 2 * 4 + 3], x[1, :, 2, 3])


def test_logits_that_were_not_asked_for_are_an_error() -> None:
    m = tiny.model()
    rec = m.run(tiny.PROMPTS, record="resid_post.0")
    assert not rec.has_logits
    with pytest.raises(InputError, match="run with logits=True"):
        _ = rec.logits
    assert m.run(tiny.PROMPTS, logits=True).has_logits
