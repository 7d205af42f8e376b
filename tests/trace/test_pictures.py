"""Pictures of scores: maps, circuits, pages and the graph's JSON, read back as a browser would."""

import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.show.graph import groups, split
from actkit.show.heat_map import label
from actkit.show.style import MINUS, NONE, PLUS
from actkit.trace import Scores, Task
from tests.core import tiny

SVG = "{http://www.w3.org/2000/svg}"
NASTY = ["<b>x</b>", " Mary", "( & )", "\n", "a" * 60]
VALUES = torch.tensor(
    [[0.5, -1.0, 0.0, math.nan, 0.25], [1.0, 0.1, -0.5, 0.0, -0.25], [0.0, 2.0, 0.3, 0.2, -0.1]]
)
MAP = Scores(VALUES, ["012", NASTY], ("layer", "position"), "resid", "patch", "a <task>", "share",
             "2 of 2 right & good", facts={"window": 3})  # fmt: skip
SENDERS = ["input", "head 0.0", "head 0.1", "head 0.2", "head 0.3", "mlp 0", "head 1.0", "mlp 1"]
RECEIVERS = ["head 0.0 q", "kv 0.0 k", "kv 0.1 v", "mlp 0", "head 1.0 q", "mlp 1", "logits"]


def edges(**given: float) -> Scores:
    values = torch.full((len(RECEIVERS), len(SENDERS)), math.nan)
    values[6, :] = 0.0
    values[6, 1], values[1, 0], values[2, 0] = 2.0, 1.0, -0.5
    values[4, 5], values[6, 6] = -4.0, 3.0
    for name, value in given.items():
        receiver, sender = name.split("_")[1:]
        values[int(receiver), int(sender)] = value
    return Scores(values, [RECEIVERS, SENDERS], ("receiver", "sender"), "edges", "eap", "toy", "x")


def shapes(text: str, tag: str) -> list[Any]:
    return ElementTree.fromstring(text).findall(f".//{SVG}{tag}")


def test_a_map_has_a_coloured_cell_for_each_score(tmp_path: Path) -> None:
    MAP.plot(tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    cells = [r for r in shapes(text, "rect") if r.find(f"{SVG}title") is not None]
    assert len(cells) == VALUES.numel()
    told = [c.find(f"{SVG}title").text for c in cells]
    colours = [c.get("fill") for c in cells]
    assert told[0] == "layer 0, position 0 <b>x</b>: 0.5"
    assert told[3].endswith(": nan") and colours[3] == NONE
    assert colours[2] == "#ffffff" and colours[11] == PLUS  # zero and the largest
    assert colours[0] != colours[4] != colours[1]
    ys = [float(c.get("y")) for c in cells]
    assert ys[0] > ys[5] > ys[10], "later layers stand above"


def test_colours_are_the_same_on_both_sides_of_zero() -> None:
    values = torch.tensor([[2.0, -2.0]])
    text = Scores(values, ["0", "ab"], ("layer", "head")).plot().to_json()
    heat = json.loads(text)["data"][0]
    assert (heat["zmin"], heat["zmax"]) == (-2.0, 2.0)
    assert [c for _, c in heat["colorscale"]] == [MINUS, "#ffffff", PLUS]


def test_the_figure_shows_gaps_and_escapes_names() -> None:
    plot = json.loads(MAP.plot().to_json())
    heat = plot["data"][0]
    assert heat["z"][0] == [0.5, -1.0, 0.0, None, 0.25]
    assert plot["layout"]["xaxis"]["ticktext"][0] == "&lt;b&gt;x&lt;/b&gt;"
    assert plot["layout"]["xaxis"]["ticktext"][1:4] == ["Mary", "(&amp;)", "↵"]
    assert plot["layout"]["yaxis"]["ticktext"] == ["0", "1", "2"]
    assert "A &lt;task&gt;: resid" in plot["layout"]["title"]["text"]
    assert heat["customdata"][2][1] == "layer 2, position 1 Mary"


def test_tokens_that_come_twice_keep_their_own_columns() -> None:
    scores = Scores(torch.eye(3), ["012", [" a", " b", " a"]], ("layer", "position"))
    assert "x" not in json.loads(scores.plot().to_json())["data"][0]
    assert scores.top(3)[2][0] == "layer 2, position 2 a"


@pytest.mark.parametrize(
    ("name", "shown"),
    [(" Mary", "Mary"), ("\n", "↵"), ("\t", "⇥"), (" ", "␣"), ("", "␣"), ("( x)", "(x)"),
     ("()", "()"), ("\x00a", "a"), ("b" * 15, f"{'b' * 14}…"), ("b" * 14, "b" * 14)],
)  # fmt: skip
def test_labels_can_be_read(name: str, shown: str) -> None:
    assert label(name) == shown


def test_one_layer_one_axis_zeros_and_gaps_alone_are_drawn() -> None:
    one = Scores(torch.tensor([[0.3, -0.2]]), ["0", "01"], ("layer", "head"))
    alone = Scores(torch.tensor([0.1, 0.2, -0.3]), ["012"], ("layer",), parts="mlps")
    zeros = Scores(torch.zeros(2, 3), ["01", "012"], ("layer", "head"))
    gaps = Scores(torch.full((2, 3), math.nan), ["01", "012"], ("layer", "head"))
    for scores in (one, alone, zeros, gaps):
        assert scores.plot().data[0].zmax > 0
        assert "</html>" in scores.to_html()
    assert json.loads(alone.plot().to_json())["layout"]["xaxis"]["ticktext"] == ["mlps"]


def test_many_names_are_thinned_out() -> None:
    wide = Scores(torch.randn(3, 300), ["012", [str(i) for i in range(300)]], ("layer", "unit"))
    ticks = json.loads(wide.plot().to_json())["layout"]["xaxis"]["ticktext"]
    assert ticks[:3] == ["0", "10", "20"] and len(ticks) == 30


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.html or \.svg, got 'map\.png'"):
        MAP.plot(tmp_path / "map.png")
    cube = Scores(torch.zeros(1, 2, 1), ["0", "01", "0"], ("layer", "position", "head"))
    with pytest.raises(InputError, match=r"two axes .* shape \(1, 2, 1\)"):
        cube.plot()
    names = [[str(i) for i in range(200)]] * 2
    with pytest.raises(InputError, match="20,000 cells, got 200 x 200"):
        Scores(torch.zeros(200, 200), names, ("layer", "unit")).plot(tmp_path / "map.svg")
    for call in (MAP.circuit, MAP.to_neuronpedia):
        with pytest.raises(InputError, match="a circuit needs scores with axes"):
            call()
    with pytest.raises(InputError, match="at least one edge, got top=0"):
        edges().circuit(top=0)


# -- circuits ------------------------------------------------------------------------------------


def test_a_circuit_draws_the_strongest_edges_and_their_nodes(tmp_path: Path) -> None:
    path = edges().circuit(tmp_path / "new" / "circuit.svg", top=4)
    assert path == tmp_path / "new" / "circuit.svg"
    text = edges().circuit(top=4)
    assert path.read_text(encoding="utf-8") == text
    lines = [p for p in shapes(text, "path") if p.find(f"{SVG}title") is not None]
    told = {p.find(f"{SVG}title").text: p for p in lines}
    assert [*told] == ["input -> kv 0.0 k: +1", "head 0.0 -> logits: +2", "head 1.0 -> logits: +3",
                       "mlp 0 -> head 1.0 q: -4"]  # fmt: skip
    width = {name: float(p.get("stroke-width")) for name, p in told.items()}
    assert width["mlp 0 -> head 1.0 q: -4"] == pytest.approx(
        4 * width["input -> kv 0.0 k: +1"], 0.1
    )
    assert told["mlp 0 -> head 1.0 q: -4"].get("stroke") == MINUS
    assert told["head 1.0 -> logits: +3"].get("stroke") == PLUS
    place = {g.find(f"{SVG}text").text: float(g.find(f"{SVG}text").get("y"))
             for g in shapes(text, "g")}  # fmt: skip
    order = ["input", "kv 0.0", "head 0.0", "mlp 0", "head 1.0", "logits"]
    assert sorted(place, key=place.__getitem__, reverse=True) == order, "time runs upwards"
    dashed = [p for p in shapes(text, "path") if p.get("stroke-dasharray")]
    assert len(dashed) == 1, "the key-value head of head 0.0"


def test_nodes_of_one_row_do_not_overlap() -> None:
    text = edges(_6_2=1.0, _6_3=0.9, _6_4=0.8).circuit()
    rows: dict[str, list[float]] = {}
    for rect in (g.find(f"{SVG}rect") for g in shapes(text, "g")):
        rows.setdefault(rect.get("y"), []).append(float(rect.get("x")))
    for xs in rows.values():
        assert all(b - a >= 74 for a, b in zip(sorted(xs), sorted(xs)[1:], strict=False))
        assert min(xs) >= 0


def test_zero_edges_are_left_out_and_none_is_said_so() -> None:
    empty = Scores(torch.zeros(1, 1), [["logits"], ["input"]], ("receiver", "sender"))
    assert "no edge has a score" in empty.circuit()
    ElementTree.fromstring(empty.circuit())


def test_ports_and_groups_are_read_off_the_names() -> None:
    assert split("head 3.5 q") == ("head 3.5", "q") and split("logits") == ("logits", "")
    assert groups(RECEIVERS, SENDERS) == {
        "kv 0.0": ["head 0.0", "head 0.1"],
        "kv 0.1": ["head 0.2", "head 0.3"],
    }


# -- the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", [MAP, edges()], ids=["map", "circuit"])
def test_the_page_holds_everything_and_asks_for_nothing(tmp_path: Path, scores: Scores) -> None:
    path = scores.to_html(tmp_path / "new" / "page.html", top=3)
    assert path == tmp_path / "new" / "page.html"
    text = scores.to_html(top=3)
    assert path.read_text(encoding="utf-8") == text
    body = text[text.index("<body>") :]
    assert "<b>x</b>" not in body and "a <task>" not in body
    assert body.count('class="bar"') == 3
    assert unescape(body).count(scores.top(1)[0][0]) >= 1
    assert ("<svg" in body) == (scores.axes[0] == "receiver")
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=.https?:", text)
    if scores is MAP:
        assert "2 of 2 right &amp; good" in body and "<td>window</td><td>3</td>" in body
        assert "14 of 15 have a score" in body


# -- the graph's JSON ----------------------------------------------------------------------------


NODE = {"node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str,
        "token_prob": float, "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int,
        "jsNodeId": str, "clerp": str}  # fmt: skip
"""Fields of a node in circuit-tracer's files."""


def test_the_graph_has_the_fields_of_an_attribution_graph(tmp_path: Path) -> None:
    model = Model(tiny.llama(), tiny.tokenizer(), name="tiny")
    trial = Task(["w1 w2 w3"], ["w1 w9 w3"], ["w5"], ["w7"]).on(model)
    path = edges().to_neuronpedia(tmp_path / "new" / "graph.json", trial, top=5, slug="mine")
    assert path == tmp_path / "new" / "graph.json"
    text = edges().to_neuronpedia(None, trial, top=5, slug="mine")
    assert json.loads(path.read_text())["nodes"] == json.loads(text)["nodes"]
    graph = json.loads(text)
    assert list(graph) == ["metadata", "qParams", "nodes", "links"]
    about = graph["metadata"]
    assert (about["slug"], about["scan"], about["prompt"]) == ("mine", "tiny", "w1 w2 w3")
    assert about["prompt_tokens"] == ["w1", "w2", "w3"]
    assert {*graph["qParams"]} == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    for node in graph["nodes"]:
        assert {name: type(node[name]) for name in NODE} == NODE
        assert 0 <= node["ctx_idx"] < 3
    ids = [node["node_id"] for node in graph["nodes"]]
    assert len({*ids}) == len(ids)
    kinds = {node["clerp"].partition(" ")[0]: node["feature_type"] for node in graph["nodes"]}
    assert kinds == {
        "input": "embedding",
        "head": "attention head",
        "mlp": "mlp",
        "Output": "logit",
    }
    (target,) = (node for node in graph["nodes"] if node["is_target_logit"])
    assert target["clerp"].startswith('Output "w5" (p=') and target["feature"] == 5
    chance = trial.clean_logits[0, -1].softmax(-1)[5]
    assert target["token_prob"] == pytest.approx(float(chance))
    assert (target["layer"], target["node_id"]) == ("3", "3_5_2")


def test_links_are_the_edges_and_shared_ones_are_split() -> None:
    graph = json.loads(edges(_4_0=0.25).to_neuronpedia())
    name = {node["node_id"]: node["clerp"] for node in graph["nodes"]}
    links = {(name[k["source"]], name[k["target"]]): k["weight"] for k in graph["links"]}
    assert links == {
        ("mlp 0", "head 1.0"): -4.0, ("head 1.0", "logits"): 3.0, ("head 0.0", "logits"): 2.0,
        ("input", "head 0.0"): 0.5, ("input", "head 0.1"): 0.5, ("input", "head 0.2"): -0.25,
        ("input", "head 0.3"): -0.25, ("input", "head 1.0"): 0.25,
    }  # fmt: skip
    assert graph["metadata"]["prompt_tokens"] == ["input"]


def test_nodes_of_another_kind_are_refused() -> None:
    odd = Scores(torch.ones(1, 1), [["logits"], ["latent 7"]], ("receiver", "sender"))
    with pytest.raises(InputError, match=r"and logits, got \['latent 7'\]"):
        odd.to_neuronpedia()
    ElementTree.fromstring(odd.circuit())
