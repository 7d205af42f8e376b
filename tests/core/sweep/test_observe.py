"""Streaming: every valid row once, in constant memory, whatever the batches.

Shapes: N rows, D width, H heads, S keys, T tokens.
"""

import gc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import actkit as ak
from actkit.core.errors import EditError, InputError, SiteError
from actkit.core.run.recording import Rows
from actkit.core.sweep.stream import batches
from actkit.model import Model
from actkit.read._base import JointReading, Reading
from tests.core import tiny

SITES = ["resid_post.1", "z.0", "attn_probs.2", "embeddings", "z.1.3"]
TEXTS = ["w1 w2 w3 w4 w5", "w11 w12", "w21 w22 w23 w24", "w31", "w41 w42 w43"]


@dataclass
class Kept(Reading):
    """Keeps all rows, so that they can be compared."""

    acts: list[Tensor] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)

    def update(self, acts_ND: Tensor, rows: Rows) -> None:
        self.acts.append(acts_ND.clone())
        self.rows.append(rows)

    def merge(self, other: Self) -> Self:
        self.acts += other.acts
        return self

    def result(self) -> dict[str, Tensor]:
        names = ("sample", "position", "token", "valid")
        joined = {n: torch.cat([getattr(r, n) for r in self.rows]) for n in names}
        width = max(a.shape[-1] for a in self.acts)
        wide = [torch.nn.functional.pad(a, (0, width - a.shape[-1])) for a in self.acts]
        return {"acts": torch.cat(wide), **joined}


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


def observed(m: Model, data: Any, sites: Any = SITES, **settings: Any) -> dict[str, Any]:
    own = m.observe(data, {s: [Kept()] for s in sites}, **settings)
    return {site: reading.result() for site, (reading,) in own.items()}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_every_valid_row_comes_once_whatever_the_batches(m: Model, size: int) -> None:
    found = observed(m, TEXTS, batch_size=size)
    for site in SITES:
        acts, tokens, where = found[site]["acts"], found[site]["token"].tolist(), 0
        lengths = [len(t.split()) for t in TEXTS]
        assert len(acts) == sum(lengths) and found[site]["valid"].all()
        assert tokens == [int(w[1:]) for t in TEXTS for w in t.split()]
        assert found[site]["sample"].tolist() == [
            i for i, n in enumerate(lengths) for _ in range(n)
        ]
        assert found[site]["position"].tolist() == [p for n in lengths for p in range(n)]
        for text, length in zip(TEXTS, lengths, strict=True):
            one = m.run(text, record=site)[site][0]
            one = one.transpose(0, 1) if site.startswith("attn") else one
            got = acts[where : where + length]
            if site.startswith("attn"):  # keys are counted from the first valid token
                assert not got[..., length:].any()
                got = got[..., :length]
            assert_close(got, one, rtol=1e-4, atol=1e-4)
            where += length


def test_batches_may_be_given_whole(m: Model) -> None:
    ids, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    forms: list[Any] = [
        [{"input_ids": ids, "attention_mask": mask}, {"input_ids": ids}],
        iter([m.encode({"input_ids": ids, "attention_mask": mask}), ids]),
    ]
    for data in forms:
        found = observed(m, data, ["resid_post.0"])["resid_post.0"]
        assert found["token"].tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 0]
        assert found["sample"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_single_text_or_batch_is_data_too(m: Model) -> None:
    assert observed(m, "w1 w2", ["embeddings"])["embeddings"]["token"].tolist() == [1, 2]
    ids = torch.tensor([[3, 4], [5, 6]])
    assert observed(m, ids, ["embeddings"])["embeddings"]["token"].tolist() == [3, 4, 5, 6]
    assert observed(m, {"input_ids": ids}, ["z.0"])["z.0"]["sample"].tolist() == [0, 0, 1, 1]


def test_pictures_give_a_row_a_pixel() -> None:
    net, images = tiny.Cnn().eval(), tiny.uneven(5, 3, 4, 6)
    m = Model(net)
    found = observed(m, images, ["conv1:out", "bn:out", "head:out"])
    with torch.no_grad():
        conv = net.conv1(images)
        normal = net.bn(conv)
    assert_close(found["conv1:out"]["acts"], conv.flatten(2).transpose(1, 2).reshape(-1, 7))
    assert_close(found["bn:out"]["acts"], normal.flatten(2).transpose(1, 2).reshape(-1, 7))
    assert found["conv1:out"]["position"].tolist() == list(range(24)) * 5
    assert found["head:out"]["acts"].shape == (5, 5)
    assert found["head:out"]["sample"].tolist() == [0, 1, 2, 3, 4]


def test_each_site_has_its_own_copy_and_the_templates_stay_empty(m: Model) -> None:
    template = Kept()
    own = m.observe(TEXTS, {"resid_post.*": [template, template], "z.1": [template]})
    assert not template.acts
    assert [*own] == ["resid_post.0", "resid_post.1", "resid_post.2", "z.1"]
    readings = [r for rs in own.values() for r in rs]
    assert len({id(r) for r in readings}) == len(readings) == 7
    twice = m.observe(TEXTS, {"resid_post.*": [template], "resid_post.1": [template]})
    assert [len(r) for r in twice.values()] == [1, 2, 1]


def test_edits_are_seen(m: Model) -> None:
    vector = tiny.uneven(48)
    edits = [ak.set("resid_post.1", vector, ak.Where(tokens=0))]
    found = observed(m, TEXTS, ["resid_post.1"], edits=edits)["resid_post.1"]
    first = found["position"] == 0
    assert_close(found["acts"][first], vector.expand(5, -1))
    assert not (found["acts"][~first] == vector).all(-1).any()


def test_a_position_that_only_some_texts_have_is_no_error(m: Model) -> None:
    found = observed(
        m, TEXTS, ["z.0"], batch_size=1, edits=[ak.set("z.0", 5.0, ak.Where(tokens=3))]
    )
    hit = (found["z.0"]["acts"] == 5).all(-1).all(-1)
    assert found["z.0"]["sample"][hit].tolist() == [0, 2]


def test_data_is_streamed(m: Model) -> None:
    """No more than a batch is drawn ahead, and nothing of an earlier batch is kept."""
    drawn: list[int] = []
    past: list[weakref.ref[Tensor]] = []

    class Counting(Kept):
        def update(self, acts_ND: Tensor, rows: Rows) -> None:
            gc.collect()
            assert not [r for r in past if r() is not None]
            base = acts_ND if acts_ND._base is None else acts_ND._base
            past.extend([weakref.ref(acts_ND), weakref.ref(base)])
            assert len(drawn) <= len(past)

    def texts() -> Iterator[str]:
        for i in range(12):
            drawn.append(i)
            yield "w1 w2 w3 w4 w5"

    m.observe(texts(), {"resid_post.1": [Counting()]}, batch_size=2)
    assert len(drawn) == len(past) == 12


def test_a_run_stops_after_the_last_site(m: Model) -> None:
    calls, remove = tiny.counted(m.module, "model.layers.2.self_attn")
    m.observe(TEXTS, {"resid_post.1": [Kept()]})
    remove()
    assert not calls


def test_batches_group_samples() -> None:
    assert [*batches("abc", 2)] == [["abc"]]
    assert [*batches(["a", "b", "c"], 2)] == [["a", "b"], ["c"]]
    whole = [{"x": 1}, {"x": 2}]
    assert [*batches(whole, 8)] == whole
    assert len([*batches([torch.ones(3), torch.ones(2)], 2)]) == 1
    assert len([*batches([torch.ones(3, 1), torch.ones(2, 1)], 2)]) == 2


def test_what_observe_refuses(m: Model) -> None:
    with pytest.raises(InputError, match="at least one sample, got none"):
        m.observe([], {"z.0": [Kept()]})
    with pytest.raises(InputError, match="at least 1 sample, got 0"):
        m.observe(TEXTS, {"z.0": [Kept()]}, batch_size=0)
    with pytest.raises(SiteError, match="unknown site"):
        m.observe(TEXTS, {"nothing": [Kept()]})
    with pytest.raises(InputError, match="a prompt must not be empty"):
        m.observe([*TEXTS, ""], {"z.0": [Kept()]})
    with tiny.untouched(m.module), pytest.raises(EditError, match="width 48, the add has width 2"):
        m.observe(TEXTS, {"z.2": [Kept()]}, edits=[ak.add("resid_post.0", torch.ones(2))])


def test_an_error_in_a_reading_leaves_nothing_behind(m: Model) -> None:
    class Broken(Kept):
        def update(self, acts_ND: Tensor, rows: Rows) -> None:
            raise KeyboardInterrupt

    with tiny.untouched(m.module), pytest.raises(KeyboardInterrupt):
        m.observe(TEXTS, {"attn_probs.*": [Broken()]})


@dataclass
class Together(JointReading):
    """Keeps what it is given of several sites."""

    acts: list[list[Tensor]] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)

    def update(self, acts: Sequence[Tensor], rows: Rows) -> None:
        self.acts.append([a.clone() for a in acts])
        self.samples.append(rows.sample)

    def merge(self, other: Self) -> Self:
        raise NotImplementedError

    def result(self) -> list[Tensor]:
        return [torch.cat(parts) for parts in zip(*self.acts, strict=True)]


def test_a_tuple_of_sites_is_read_together_in_its_order(m: Model) -> None:
    names = ("resid_post.*", "embeddings", "z.1")
    plain = {site: [Kept()] for site in ("resid_post.0", "z.1")}
    fed = m.observe(TEXTS, {names: [Together()], **plain}, batch_size=2)
    (together,) = fed[names]
    sites = [s.name for name in names for s in m.sites(name)]
    found = together.result()
    assert len(found) == len(sites) == 5
    for site, acts in zip(sites, found, strict=True):
        alone = m.observe(TEXTS, {site: [Kept()]}, batch_size=2)[site][0]
        assert_close(acts, torch.cat(alone.acts), rtol=0, atol=0)
    assert {*torch.cat(together.samples).tolist()} == {*range(len(TEXTS))}
    assert set(fed) == {names, *plain}


def test_sites_with_other_rows_cannot_be_read_together() -> None:
    convs = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.MaxPool2d(2))
    with pytest.raises(InputError, match=r"0:out has 32 and 1:out has 8"):
        Model(convs).observe([torch.ones(2, 3, 4, 4)], {("0:out", "1:out"): [Together()]})


def test_what_is_written_over_in_place_is_held_as_it_flowed() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(inplace=True))
    x_ND = torch.randn(4, 3, generator=torch.manual_seed(0))
    fed = Model(net).observe([x_ND], {("0:out", "1:out"): [Together()]})
    before, after = fed["0:out", "1:out"][0].result()
    assert_close(before, net[0](x_ND).detach())
    assert (before < 0).any() and (after >= 0).all()
