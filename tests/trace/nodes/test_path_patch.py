"""Path patching: against two passes by hand, and on networks whose paths are known."""

from itertools import product

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Part, Parts, Task
from actkit.trace.nodes.path_patch import PathPatch, path_patch
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace import _relay

CLEAN = ["w1 w2 w3 w4 w5", "w6 w2 w3 w4 w7"]
CORRUPT = ["w1 w12 w3 w4 w5", "w6 w13 w3 w9 w7"]


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def task(m: Model) -> Task:
    return Task(CLEAN, CORRUPT, best(m, CLEAN), best(m, CLEAN, largest=False))


def best(m: Model, texts: list[str], largest: bool = True) -> Tensor:
    logits = m.run(texts, logits=True).logits
    return logits[:, -1].argmax(-1) if largest else logits[:, -1].argmin(-1)


def last(m: Model, edits: list[ak.Edit]) -> Tensor:
    logits = m.run(CLEAN, edits=edits, logits=True).logits
    return logits[:, -1:]


def test_to_the_logits_equals_freezing_every_head_by_hand(m: Model, task: Task) -> None:
    """Earlier heads are frozen too; that must make no difference."""
    trial, scores = task.on(m), PathPatch()(m, task).values
    clean, corrupt = m.run(CLEAN, record="z.*"), m.run(CORRUPT, record="z.*")
    for layer, head in product(range(tiny.LAYERS), range(tiny.HEADS)):
        edits = [ak.swap(z, clean) for z in clean]
        edits.append(ak.swap(f"z.{layer}", corrupt, ak.Where(heads=head)))
        value = trial.metric(last(m, edits)).mean()
        lost = (trial.clean_values.mean() - value) / trial.gap
        assert float(scores[layer, head]) == pytest.approx(float(lost), abs=1e-5)


@pytest.mark.parametrize("point", ["q", "k", "v"])
def test_to_a_head_equals_two_passes_by_hand(m: Model, task: Task, point: str) -> None:
    trial = task.on(m)
    clean, corrupt = m.run(CLEAN, record="z.*"), m.run(CORRUPT, record=["z.0", "mlp_out.1"])
    where = ak.Where(heads=1)
    edits = [*(ak.swap(z, clean) for z in clean), ak.swap("z.0", corrupt, ak.Where(heads=4))]
    edits.append(ak.swap("mlp_out.1", corrupt))
    inputs = m.run(CLEAN, record=f"{point}.2", edits=edits)
    value = trial.metric(last(m, [ak.swap(f"{point}.2", inputs, where)]))
    senders = [Part("z.0", head=4), Part("mlp_out.1")]
    lost = path_patch(m, task, senders, [Part(f"{point}.2", head=1)])
    torch.testing.assert_close(lost, trial.clean_values - value, atol=1e-5, rtol=1e-4)
    assert lost.abs().max() > 1e-4


def test_mlps_send_and_positions_are_told_apart(m: Model, task: Task) -> None:
    """In the last block nothing recomputes what a part sends: paths are plain patching there."""
    by_mlp = PathPatch("mlps")(m, task).values
    lost = path_patch(m, task, [Part("mlp_out.2")])
    assert float(by_mlp[2]) == pytest.approx(float(lost.mean()) / task.on(m).gap, abs=1e-5)
    where = PathPatch(Parts("z", ("position", "head")))(m, task).values
    assert where.shape == (tiny.LAYERS, 5, tiny.HEADS)
    assert where[:, :-1].abs().max() < 1e-6  # later heads are frozen, so nothing moves on
    torch.testing.assert_close(where[2, -1], PathPatch()(m, task).values[2], atol=1e-5, rtol=1e-4)


def test_earlier_heads_and_the_head_itself_receive_nothing(m: Model, task: Task) -> None:
    scores = PathPatch(receivers=[Part("q.1", head=2), Part("v.1", head=1)])(m, task).values
    assert scores[1:].abs().max() < 1e-6
    assert scores[0].abs().min() > 1e-6


def test_bad_settings_are_refused(m: Model, task: Task) -> None:
    with pytest.raises(InputError, match="receivers must be 'logits' or parts, got 'heads'"):
        PathPatch(receivers="heads")(m, task)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a receiver must be a part of one block at q, k, v, got"):
        PathPatch(receivers=[Part("z.1", head=0)])(m, task)
    with pytest.raises(InputError, match=r"a sender must be .* got 'z\.1\.2'"):
        path_patch(m, task, [Part("z.1.2")])
    with pytest.raises(InputError, match=r"a sender must be .* got 'resid_pre\.0'"):
        PathPatch("resid")(m, task)


@pytest.mark.paper("interpretability-wild-circuit-indirect")
def test_only_the_true_edges_of_a_known_path(evidence: Evidence) -> None:
    """All edges from nine heads to the logits and to q, k and v of six later heads."""
    m = _relay.relay()
    trial = _relay.task().on(m)
    senders = list(product(range(3), range(3)))
    true = {((0, 1), "v.1", 2), ((1, 2), "v.2", 0)}
    on = [PathPatch()(m, trial).values[2, 0] * trial.gap]
    off = [v * trial.gap for i, v in enumerate(PathPatch()(m, trial).values.flatten()) if i != 6]
    for site, head in product([f"{p}.{b}" for p in "qkv" for b in (1, 2)], range(3)):
        effects = PathPatch(receivers=[Part(site, head=head)])(m, trial).values * trial.gap
        for sender in senders:
            (on if (sender, site, head) in true else off).append(effects[sender])
    evidence("smallest effect of a true edge (logits)", measured=min(on), at_least=4.6)
    assert float(min(on)) == pytest.approx(2 * _relay.WORTH, rel=1e-5)
    evidence("largest effect of 168 other edges", measured=max(off, key=abs), at_most=1e-6)
    assert len(on) == 3
    assert len(off) == 168


@pytest.mark.paper("circuit-component-reuse-across")
def test_no_sender_changes_nothing_and_all_senders_everything(
    m: Model, smollm2: Model, evidence: Evidence
) -> None:
    """The last token is the same on both sides, so heads and MLPs carry all of the corruption."""
    for name, model, task in (
        ("tiny Llama", m, Task(CLEAN, CORRUPT, best(m, CLEAN), best(m, CLEAN, largest=False))),
        ("relay", _relay.relay(), _relay.task()),
        ("SmolLM2", smollm2, ak.trace.tasks.ioi(2)),
    ):
        trial = task.on(model)
        none = path_patch(model, trial, []).abs().max()
        evidence(f"{name}: change without a sender", measured=none, at_most=1e-6)
        heads = [Part(site.name) for site in model.sites("z.*")]
        lost = path_patch(model, trial, heads)
        full = trial.clean_values - trial.corrupt_values
        error = ((lost - full) / full).abs().max()
        evidence(f"{name}: all heads, error of full corruption", measured=error, at_most=1e-4)
