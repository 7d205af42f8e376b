"""One edit or reading needs no list, a class is told apart, and what is printed is short."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import actkit as ak
from actkit.core.edits.edit import as_edits
from actkit.core.edits.operations import Add
from actkit.core.edits.where import Where
from actkit.core.errors import EditError, InputError, SiteError
from actkit.export.llama_cpp import save_gguf
from actkit.export.lower import bake, save_peft
from actkit.model import Model
from actkit.read.streaming.moments import Moments
from actkit.read.streaming.spectrum import Spectrum
from actkit.steer.vectors.caa import CAA
from actkit.steer.vectors.persona import Remove
from tests.core import tiny

V = tiny.uneven(tiny.WIDTH)
EDIT = ak.add("resid_post.1", V, 0.5)


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


def logits(m: Model, edits: Any) -> torch.Tensor:
    found = m.run(tiny.PROMPTS, edits=edits, logits=True).logits
    assert found is not None
    return found


def test_one_edit_is_a_list_of_one(m: Model, tmp_path: Path) -> None:
    one: Any = EDIT
    want = logits(m, [EDIT])
    assert torch.equal(logits(m, one), want)
    assert torch.equal(logits(m, (e for e in [EDIT])), want)
    with m.edited(one), torch.no_grad():
        inside = m.module(**m.encode(tiny.PROMPTS).kwargs).logits
    assert torch.equal(inside, want)
    assert m.generate(tiny.PROMPTS, one, 3) == m.generate(tiny.PROMPTS, [EDIT], 3)
    swept = m.sweep(tiny.PROMPTS, [one, [EDIT]], lambda x: x[:, -1].max(-1).values)
    assert torch.equal(swept[0], swept[1])
    ak.save_edits(tmp_path / "e", one)
    assert len(ak.load_edits(tmp_path / "e")) == 1
    save_gguf(tmp_path / "v.gguf", m, one)
    torch.testing.assert_close(logits(bake(m, one), []), want, rtol=1e-4, atol=1e-4)


def test_in_every_batch_of_a_stream(m: Model, tmp_path: Path) -> None:
    """A generator of edits must not be used up by the first batch."""
    for edits in (EDIT, (e for e in [EDIT])):
        both: dict[str, Any] = {"batch_size": 1, "edits": edits}
        read = m.observe(tiny.PROMPTS, {"resid_post.2": [Moments()]}, **both)
        want = m.observe(tiny.PROMPTS, {"resid_post.2": [Moments()]}, 1, [EDIT])
        got, asked = read["resid_post.2"][0].result(), want["resid_post.2"][0].result()
        assert torch.equal(got.variance_D, asked.variance_D)
    m.harvest(tiny.PROMPTS, "resid_post.2", tmp_path / "s", edits=EDIT, batch_size=1)
    m.harvest(tiny.PROMPTS, "resid_post.2", tmp_path / "t", edits=[EDIT], batch_size=1)
    one, two = (ak.Store(tmp_path / n)["resid_post.2"] for n in "st")
    assert torch.equal(one[:], two[:])


WRONG: dict[str, tuple[Any, str]] = {
    "a class": (CAA, "got the class CAA: make one, fit it and give what its edits"),
    "a class in a list": ([CAA], "among them is the class CAA"),
    "a method": (CAA(), "got a CAA: give what its edits"),
    "methods": ([EDIT, CAA()], "among them is a CAA: give what its edits"),
    "a text": ("resid_post.1", "an edit or a list of them, got str 'resid_post.1'"),
    "an operation": (EDIT.operation, r"got the operation add\(vector .* without a site"),
    "a list in it": ([[EDIT]], "among them is list"),
    "a tensor": (V, r"got Tensor \(48,\) of norm"),
    "nothing": (None, "got NoneType None"),
    "a mapping": ({"a": EDIT}, "got dict"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_edit_is_told(m: Model, name: str, tmp_path: Path) -> None:
    wrong, rule = WRONG[name]
    doors: list[Any] = [
        as_edits,
        lambda e: m.run("w1", edits=e),
        lambda e: m.edited(e).__enter__(),
        lambda e: m.observe(["w1"], {"resid_post.*": [Spectrum()]}, edits=e),
        lambda e: m.harvest(["w1"], "resid_post.1", tmp_path / "s", edits=e),
        lambda e: m.sweep("w1", [e], lambda x: x[:, -1, 0]),
        lambda e: ak.save_edits(tmp_path / "e", e),
        lambda e: save_gguf(tmp_path / "g", m, e),
        lambda e: save_peft(tmp_path / "p", m, e),
        lambda e: bake(m, e),
    ]
    for door in doors:
        with pytest.raises(EditError, match=rule):
            door(wrong)
    assert not list(tmp_path.glob("[egps]"))


def test_one_edit_is_no_list_of_variants(m: Model) -> None:
    one: Any = EDIT
    with pytest.raises(EditError, match="variants must be lists of edits, got one edit"):
        m.sweep("w1", one, lambda x: x[:, -1, 0])


def test_one_reading_is_a_list_of_one(m: Model) -> None:
    one: Any = {"resid_post.[01]": Moments(), ("mlp_out.0",): Joint()}
    read = m.observe(tiny.PROMPTS, one)
    want = m.observe(tiny.PROMPTS, {"resid_post.[01]": [Moments()]})
    assert read.keys() == {"resid_post.0", "resid_post.1", ("mlp_out.0",)}
    for site, (reading,) in want.items():
        (own,) = read[site]
        assert torch.equal(own.result().variance_D, reading.result().variance_D)
    assert read["mlp_out.0",][0].rows == 15


class Joint:
    """Counts rows."""

    rows = 0

    def update(self, acts: Any, rows: Any) -> None:
        self.rows += len(rows)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        (Spectrum, r"an instance, Spectrum\(\), got the class Spectrum"),
        ([Moments(), Spectrum], r"an instance, Spectrum\(\), got the class Spectrum"),
        ([torch.linalg.matrix_rank], r"must have update\(acts, rows\).*, got builtin"),
        ({"rank": Spectrum()}, r"must have update\(acts, rows\).*, got dict"),
        ("spectrum", r"must have update\(acts, rows\).*, got str"),
        (None, r"must have update\(acts, rows\).*, got NoneType"),
    ],
)
def test_what_is_no_reading_is_told(m: Model, wrong: Any, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        m.observe(tiny.PROMPTS, {"resid_post.*": wrong})


LONG = torch.full((576,), 1.25)
SHOWN: list[tuple[Any, str]] = [
    (ak.add("s.1", LONG, 2.0), "Edit(add at s.1: vector (576,) of norm 30, scale 2)"),
    (ak.set("s", 0.0), "Edit(set at s: value 0)"),
    (ak.scale("s", torch.tensor([0.5, 1.0])), "Edit(scale at s: factor [0.5, 1])"),
    (
        ak.clamp("s", -1, float("inf"), where=Where(tokens="last")),
        "Edit(clamp at s: low -1, high inf; where tokens='last')",
    ),
    (
        ak.add("s", LONG.bfloat16(), where=Where(tokens=torch.ones(4, 900).bool(), rows=1)),
        "Edit(add at s: vector (576,) bfloat16 of norm 30, scale 1; "
        "where tokens=tensor(4, 900), rows=1)",
    ),
    (ak.apply("s", torch.relu), "Edit(apply at s: fn relu)"),
    (
        ak.affine("s", torch.eye(9)).operation,
        "affine(matrix (9, 9) of norm 3)",
    ),
    (
        Remove(torch.eye(50)[:2], strength=torch.ones(9)),
        "remove(strength (9,) of norm 3, basis_JD (2, 50) of norm 1.41)",
    ),
]


@pytest.mark.parametrize(("thing", "line"), SHOWN, ids=lambda x: str(x)[:20])
def test_an_edit_is_one_short_line(thing: Any, line: str) -> None:
    assert repr(thing) == str(thing) == line
    assert "\n" not in line and len(line) < 130


def test_edits_in_a_graph_on_meta_or_with_a_long_field() -> None:
    assert repr(ak.add("s", LONG.clone().requires_grad_())) == repr(ak.add("s", LONG))
    meta = ak.Edit("s", Add(LONG.to("meta")))
    assert repr(meta) == "Edit(add at s: vector (576,) on meta, scale 1)"
    swapped = ak.swap("s", ak.Recording({"s": tiny.uneven(2, 9, 48)}, {}, rows()))
    assert repr([swapped, swapped]).count("value (2, 9, 48) of norm") == 2


def rows() -> ak.Rows:
    return ak.Rows.of(torch.ones(2, 9).bool())


def test_sites_print_as_a_table_and_stay_a_list(m: Model) -> None:
    sites = m.sites()
    lines = str(sites).splitlines()
    assert lines[0] == f"{len(sites)} sites" and len(lines) == 1 + 19
    assert "  resid_post.0 to resid_post.2 (3)    (batch, token, 48)" in lines
    assert isinstance(sites, list) and list(sites) == sites == pickle.loads(pickle.dumps(sites))
    assert [*sites, sites[0]][-1] is sites[0] and type(sites[:2]) is list
    assert copy.copy(sites) == sites
    refused = str(m.sites("router_logits.*", refused=True))
    assert "router_logits.0 to router_logits.2 (3)  refused: the MLP of this" in refused
    assert repr(sites[0]) == "Site(embeddings: (batch, token, 48) at model.embed_tokens:out)"
    assert str(m.sites("z.1.*")).splitlines()[1] == "  z.1.0  (batch, token, 8)"
    html = sites._repr_html_()  # type: ignore[attr-defined]
    assert html.count("<tr>") == 20 and "resid_post.0 to resid_post.2" in html


def test_sites_of_a_network_without_a_table() -> None:
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(70)])
    lines = str(ak.open(net).sites()).splitlines()
    assert lines[0] == "70 sites" and lines[-1].strip() == "and 10 more"
    assert len(lines) == 62


def test_a_site_stands_for_its_name(m: Model, tmp_path: Path) -> None:
    sites = m.sites("resid_post.*")
    assert list(m.run(tiny.PROMPTS, record=sites)) == [s.name for s in sites]
    one: Any = sites[1]
    assert list(m.run(tiny.PROMPTS, record=one)) == ["resid_post.1"]
    edit = ak.add(one, V, 0.5)
    assert torch.equal(logits(m, edit), logits(m, EDIT))
    ak.save_edits(tmp_path / "edit.safetensors", [edit])
    (loaded,) = ak.load_edits(tmp_path / "edit.safetensors")
    assert loaded.site == "resid_post.1"


@pytest.mark.parametrize("given", [3, None, [None], [["resid_post.1"]]])
def test_what_names_no_site_is_told(m: Model, given: Any) -> None:
    with pytest.raises(SiteError, match="asked for by name or pattern, got"):
        m.run(tiny.PROMPTS, record=given)
