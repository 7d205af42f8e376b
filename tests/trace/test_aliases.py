"""TransformerLens names do in the families what actkit's own names do."""

from typing import Any

import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError, SiteError
from actkit.core.sites.site_names import ALIASES, layer_of, points_of
from actkit.model import Model
from actkit.steer._states import by_layer
from actkit.trace import Part, Task
from actkit.trace._causal import others
from actkit.trace.nodes.path_patch import path_patch
from tests.core import tiny

TOKENS = torch.tensor([[3, 1, 7, 2], [5, 4, 6, 2]])


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def task(m: Model) -> Task:
    logits = m.run(TOKENS, logits=True).logits
    best, worst = logits[:, -1].argmax(-1), logits[:, -1].argmin(-1)
    return Task(TOKENS, TOKENS.flip(1).roll(1, 1), best, worst, name="four tokens")


def test_every_alias_of_a_block_has_a_layer_and_its_points(m: Model) -> None:
    for hook, points in ALIASES.items():
        known = [s.name for s in m.sites() if s.name.rpartition(".")[0] in points]
        for name in known:
            layer = int(name.rpartition(".")[2])
            alias = f"blocks.{layer}.{hook}"
            assert layer_of(alias) == layer_of(name) == layer
            assert {*points_of(name)} <= {*points_of(alias)}


@pytest.mark.parametrize("name", ["logits", "blocks.1.nothing", "model.layers.1.mlp:out", "wq.3"])
def test_what_lies_in_no_block_has_no_layer(name: str) -> None:
    with pytest.raises(SiteError, match="a point of one block is needed"):
        layer_of(name)


def test_states_are_found_by_layer(m: Model) -> None:
    own = by_layer(dict(m.run(TOKENS, record="resid_post.*").items()))
    other = by_layer(dict(m.run(TOKENS, record="blocks.*.hook_resid_post").items()))
    assert [*own] == [*other] == [0, 1, 2]
    assert all(torch.equal(own[n], other[n]) for n in own)


@pytest.mark.parametrize("receivers", ["logits", "parts"])
def test_paths_are_patched_between_aliases(m: Model, task: Task, receivers: str) -> None:
    found = []
    for z, q in (("z.{}", "q.{}"), ("blocks.{}.attn.hook_z", "blocks.{}.attn.hook_q")):
        senders = [Part(z.format(0), head=1), Part(z.format(1), head=4)]
        into: Any = "logits" if receivers == "logits" else [Part(q.format(2), head=3)]
        found.append(path_patch(m, task, senders, into))
    assert torch.equal(*found) and found[0].abs().min() > 1e-4


def test_a_head_of_a_recording_counts_by_its_block_not_by_its_number(m: Model) -> None:
    opto = ak.get("optogenetics")(TOKENS)
    for names, want in (
        (["attn_probs.2", "attn_probs.0"], ["attn_probs.2"]),
        (["blocks.2.attn.hook_pattern", "blocks.0.attn.hook_pattern"],
         ["blocks.2.attn.hook_pattern"]),
        (["attn_probs.0.5", "attn_probs.2.1"], ["attn_probs.2.1"]),
    ):  # fmt: skip
        edits = opto.ablate([(1, 0)], m.run(TOKENS, record=names))
        assert [e.site for e in edits] == ["z.1", *want]


def test_places_of_variables_are_taken_out_of_the_others(m: Model) -> None:
    own = others(m, {"x": [Part("z.1", head=2)]}, ("heads",))
    assert others(m, {"x": [Part("blocks.1.attn.hook_z", head=2)]}, ("heads",)) == own
    assert len(own) == 3 * 6 - 1
    with pytest.raises(InputError, match="places must be of the network's heads"):
        others(m, {"x": [Part("blocks.1.attn.hook_z", head=6)]}, ("heads",))


@pytest.mark.parametrize(
    ("method", "settings", "alias"),
    [
        ("lqr", {"sites": "resid_post.*"}, {"sites": "blocks.*.hook_resid_post"}),
        ("linear_act", {"sites": "mlp_out.*"}, {"sites": "blocks.*.hook_mlp_out"}),
    ],
)
def test_steering_at_aliases_is_steering_at_the_sites(
    m: Model, method: str, settings: dict[str, Any], alias: dict[str, Any]
) -> None:
    pairs = [("w3 w5 w7", "w4 w6 w2"), ("w2 w9 w8", "w5 w5 w3"), ("w8 w7", "w9 w4")]
    logits: list[Any] = [
        m.run(
            ["w3 w4 w6"], edits=ak.get(method)(**own).fit(m, pairs).edits(0.5), logits=True
        ).logits
        for own in (settings, alias)
    ]
    plain = m.run(["w3 w4 w6"], logits=True).logits
    assert plain is not None
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], plain)
