"""Subspace patching: the three-neuron network of the paper, and a planted feature in random MLPs.

Shapes: B pairs, D width, J directions, O outputs, K head width.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Task
from actkit.trace._subspace import orthonormal
from actkit.trace.interventions.subspace_patch import (
    Illusion,
    das,
    illusion_test,
    rank_one_edit,
    subspace_edits,
    subspace_patch,
)
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace._lookup import Planted, Three

XS = [1.0, -2.0, 0.5, 3.0, -0.7, 0.2]
ILLUSORY, TRUE = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
DISCONNECTED, DORMANT = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
SEEDS = range(10)
SITE = "down:in"


def logit(logits_nPV: Tensor) -> Tensor:
    return logits_nPV[:, -1, 0]


THREE = Task(torch.tensor([[0], [2], [4]]), torch.tensor([[1], [3], [5]]), metric=logit)


@pytest.fixture
def three() -> Model:
    return Model(Three(XS))


@pytest.mark.paper("this-subspace-you-looking")
def test_three_neurons(three: Model, evidence: Evidence) -> None:
    trial = THREE.on(three)
    for name, v, share in (
        ("the illusory direction (1, 1, 0)", ILLUSORY, 1.0),
        ("the true direction (0, 0, 1)", TRUE, 1.0),
        ("its dormant part (0, 1, 0)", DORMANT, 0.0),
        ("its disconnected part (1, 0, 0)", DISCONNECTED, 0.0),
    ):
        found = subspace_patch(three, trial, SITE, v)
        evidence(f"effect of patching {name}", measured=found.effect, equals=share, tolerance=1e-6)
        target = trial.clean_values if share else trial.corrupt_values
        torch.testing.assert_close(found.values, target, rtol=0, atol=1e-6)
        assert found.accuracy == share


@pytest.mark.paper("this-subspace-you-looking")
def test_the_illusion_is_flagged_and_the_feature_is_not(three: Model, evidence: Evidence) -> None:
    flagged = illusion_test(three, THREE, SITE, ILLUSORY)
    cleared = illusion_test(three, THREE, SITE, TRUE)
    evidence("(1, 1, 0) called an illusion", measured=flagged.illusory, equals=1, tolerance=0)
    evidence("(0, 0, 1) called an illusion", measured=cleared.illusory, equals=0, tolerance=0)
    assert flagged.row is not None and flagged.null is not None and cleared.row is not None
    assert flagged.row.effect == flagged.null.effect == 0
    assert flagged.spread_row == 0
    assert flagged.share_row == pytest.approx(0.5)
    assert cleared.null is None
    assert cleared.row.effect == flagged.full.effect == pytest.approx(1)
    assert flagged.table().splitlines()[1].split() == ["direction", "+1.000", "1.00"]


def test_rows_of_a_map_that_depend_on_each_other_add_nothing(three: Model) -> None:
    weight = three.module.get_parameter("down.weight")
    twice = illusion_test(three, THREE, SITE, ILLUSORY, readout=torch.cat([weight, 3 * weight]))
    assert twice.illusory
    assert twice.share_row == pytest.approx(0.5)


def test_a_map_to_one_number_hides_the_illusion(three: Model) -> None:
    """Its row space is the line along which anything works: (0, 2, 1) does all that is done."""
    found = illusion_test(three, THREE, SITE, ILLUSORY, readout=torch.tensor([[0.0, 2.0, 1.0]]))
    assert not found.illusory
    assert found.row is not None
    assert found.row.effect == pytest.approx(1, abs=1e-5)


def planted(seed: int, ignores: bool) -> Illusion:
    """Train a direction on half of the pairs of a network; return its test on the others."""
    m = Model(Planted(width=32, seed=seed, ignores=ignores, num=48))
    ids = torch.arange(96)[:, None]
    halves = [Task(ids[i:j:2], ids[i + 1 : j : 2], metric=logit) for i, j in ((0, 48), (48, 96))]
    return illusion_test(m, halves[1], SITE, das(m, halves[0], SITE, steps=40, seed=seed)[0])


@pytest.mark.paper("this-subspace-you-looking")
def test_directions_are_found_where_the_feature_is_not_used(evidence: Evidence) -> None:
    found = [planted(seed, ignores=True) for seed in SEEDS]
    effect, seen, full = (torch.tensor(x) for x in zip(*map(effects_of, found), strict=True))
    evidence("seeds with effect > 0.5 and effect of the part that is seen < 0.1 (share)",
             measured=((effect > 0.5) & (seen < 0.1)).float().mean(), at_least=0.8)  # fmt: skip
    evidence("mean effect of the trained direction on new pairs", measured=effect.mean(),
             at_least=0.5)  # fmt: skip
    evidence("mean size of the effect of all hidden units", measured=full.abs().mean(),
             at_most=0.1)  # fmt: skip
    evidence("mean size of the effect of random directions", measured=by_chance(), at_most=0.1)
    assert all(f.illusory for f in found)


def by_chance() -> float:
    """Return the mean size of the effect of ten random directions in a planted network."""
    m, ids = Model(Planted(width=32, seed=0)), torch.arange(48)[:, None]
    trial = Task(ids[::2], ids[1::2], metric=logit).on(m)
    random_JD = torch.randn(10, 128, generator=torch.Generator().manual_seed(0))
    return sum(abs(subspace_patch(m, trial, SITE, v_D).effect) for v_D in random_JD) / 10


@pytest.mark.paper("this-subspace-you-looking")
def test_and_where_the_map_back_is_random(evidence: Evidence) -> None:
    """A random row space holds a quarter of the feature, so the part that is seen works a little:
    the bound on it is 0.6 of the whole effect here, not the 0.1 / 0.5 of a row space without it.
    """
    found = [planted(seed, ignores=False) for seed in SEEDS]
    effect, seen, full = (torch.tensor(x) for x in zip(*map(effects_of, found), strict=True))
    evidence("random MLPs: mean effect of the trained direction", measured=effect.mean(),
             at_least=0.5)  # fmt: skip
    evidence("random MLPs: effect of the part that is seen, of the direction's",
             measured=seen.mean() / effect.mean(), at_most=0.6)  # fmt: skip
    evidence("random MLPs: mean size of the effect of all hidden units",
             measured=full.abs().mean(), at_most=0.3)  # fmt: skip


def effects_of(found: Illusion) -> tuple[float, float, float]:
    assert found.row is not None
    return found.direction.effect, found.row.effect, found.full.effect


@pytest.mark.paper("this-subspace-you-looking")
def test_a_rank_one_edit_writes_what_the_patch_writes(evidence: Evidence) -> None:
    net = Planted(width=16, seed=3, ignores=False).double()
    m, v_D = Model(net), tiny.uneven(64, seed=2).double()
    task = Task(torch.tensor([[4]]), torch.tensor([[9]]), metric=logit)
    source, base = (m.run(torch.tensor([[i]]), record=SITE)[SITE][0, 0] for i in (4, 9))
    weight = net.down.weight.detach()
    edited = rank_one_edit(weight, v_D, source, base)
    rank = torch.linalg.matrix_rank(edited - weight, rtol=1e-9)
    evidence("rank of the change of the weight", measured=rank, equals=1, tolerance=0)
    patched = subspace_patch(m, task, SITE, v_D).values
    net.down.weight.data = edited
    logits = m.run(torch.tensor([[9]]), logits=True).logits
    evidence("rank-one edit less subspace patch (logit)", measured=(logit(logits) - patched).abs(),
             at_most=1e-9)  # fmt: skip
    with pytest.raises(InputError, match="must have a part along the direction, got 0"):
        rank_one_edit(weight, v_D, source, torch.zeros(64).double())


@pytest.mark.parametrize("site", ["z.1.2", "mlp_hidden.0", "resid_post.1"])
def test_the_patch_is_the_projection_by_hand(site: str) -> None:
    m = tiny.model()
    prompts = ["w1 w2 w3", "w6 w7 w8"], ["w1 w9 w3", "w6 w4 w8"]
    task = Task(*prompts, metric=lambda x: x[:, -1, 5] - 2 * x[:, -1, 7])
    trial = task.on(m)
    clean, corrupt = (m.run(p, record=site)[site] for p in prompts)
    raw_JD = tiny.uneven(3, clean.shape[-1], seed=1)
    q_DJ = torch.linalg.qr(raw_JD.mT).Q
    by_hand = corrupt.clone()
    by_hand[:, 1] += (clean - corrupt)[:, 1] @ q_DJ @ q_DJ.mT
    edit = ak.apply(site, lambda _: by_hand)
    logits = m.run(prompts[1], edits=[edit], logits=True).logits
    found = subspace_patch(m, trial, site, raw_JD, ak.Where(tokens=1))
    torch.testing.assert_close(found.values, trial.metric(logits[:, -1:]), rtol=1e-4, atol=1e-5)
    mixed = subspace_patch(m, trial, site, tiny.uneven(3, 3, seed=4) @ raw_JD, ak.Where(tokens=1))
    assert mixed.effect == pytest.approx(found.effect, rel=1e-3, abs=1e-5)
    whole = subspace_patch(m, trial, site, torch.eye(clean.shape[-1]))
    full = illusion_test(m, trial, site, raw_JD[0], readout=raw_JD).full
    assert whole.effect == pytest.approx(full.effect, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("net", ["llama", "gpt2"])
@pytest.mark.parametrize("site", ["z.1.2", "mlp_hidden.1"])
def test_the_null_part_is_cut_off_by_the_next_map(net: str, site: str) -> None:
    m = tiny.model() if net == "llama" else Model(tiny.gpt2())
    task = Task(torch.tensor([[1, 2, 3]]), torch.tensor([[1, 9, 4]]), metric=logit)
    width = m.sites(site)[0].unit_shape[-1]  # type: ignore[index]
    found = illusion_test(m, task, site, tiny.uneven(width, seed=1))
    assert found.direction.effect != 0
    if found.null is not None:  # heads are narrower than the stream: nothing is cut off
        assert found.null.effect == pytest.approx(0, abs=1e-4)
        assert 0 < found.share_row < 1
    else:
        assert "z" in site


def test_directions_depend_on_the_seed_alone(three: Model) -> None:
    before = torch.get_rng_state()
    with tiny.untouched(three.module):
        first = das(three, THREE, SITE, num=2, steps=5)
    assert torch.equal(das(three, THREE, SITE, num=2, steps=5), first)
    assert not torch.allclose(das(three, THREE, SITE, num=2, steps=5, seed=1), first)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first @ first.mT, torch.eye(2))
    frozen = Model(Three(XS).requires_grad_(False))
    torch.testing.assert_close(das(frozen, THREE, SITE, num=2, steps=5), first)


def test_edits_are_data(three: Model, tmp_path: Path) -> None:
    source = THREE.on(three).source("clean", [SITE])
    ak.save_edits(tmp_path / "edits", subspace_edits(SITE, source, orthonormal(TRUE)))
    again = ak.load_edits(tmp_path / "edits")
    logits = three.run(THREE.corrupt, edits=again, logits=True).logits
    torch.testing.assert_close(logit(logits), torch.tensor([1.0, 0.5, -0.7]))


def test_bad_directions_are_refused(three: Model) -> None:
    with pytest.raises(InputError, match=r"linearly independent, got shape \(2, 3\)"):
        subspace_patch(three, THREE, SITE, torch.stack([TRUE, 2 * TRUE]))
    with pytest.raises(InputError, match="independent"):
        illusion_test(three, THREE, SITE, torch.zeros(3))
    with pytest.raises(InputError, match="finite"):
        subspace_patch(three, THREE, SITE, torch.tensor([1.0, torch.nan, 0.0]))
    with pytest.raises(InputError, match=r"as wide as down:in, 3, got shape \(4,\)"):
        subspace_patch(three, THREE, SITE, torch.ones(4))
    with pytest.raises(InputError, match=r"one of width 3 at down:in, got shape \(1, 3\)"):
        illusion_test(three, THREE, SITE, TRUE[None])
    with pytest.raises(InputError, match=r"readout must be \(O, 3\), got \(3, 2\)"):
        illusion_test(three, THREE, SITE, TRUE, readout=torch.ones(3, 2))
    with pytest.raises(InputError, match="up:out is not the input of a linear map"):
        illusion_test(three, THREE, "up:out", TRUE)
    for num in (0, 4):
        with pytest.raises(InputError, match=f"must be 1 to 3 at down:in, got {num}"):
            das(three, THREE, SITE, num=num)
