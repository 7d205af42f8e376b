"""Optimal transport between normals: closed forms, what a classifier sees after it, the audit."""

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.core.run.recording import Recording
from actkit.steer._states import states
from actkit.steer.maps.gaussian_ot import GaussianOT, bures, transport
from actkit.steer.maps.gaussian_ot._low_rank import LowRankMap
from tests._evidence import Evidence
from tests.core import tiny

PAIRS = [(f"w{i} w{2 * i + 1} w{40 + i}", f"w{i} w{2 * i + 2} w{60 + i} w8") for i in range(1, 12)]


def normal(num: int, width: int, offset: float, seed: int) -> Tensor:
    """Return rows with a mean and a full covariance of their own."""
    gen = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=gen, dtype=torch.float64)
    raw = torch.randn(num, width, generator=gen, dtype=torch.float64)
    return offset + raw @ mix * torch.linspace(0.3, 2, width)


def moved(by: LowRankMap, x: Tensor) -> Tensor:
    return by(x[:, None])[:, 0]


def root(S: Tensor) -> Tensor:
    return torch.from_numpy(np.real(scipy.linalg.sqrtm(S.numpy())))


def cost(way: Tensor) -> float:
    """Return the mean squared length, with the variance as covariances have it."""
    return float((way.mean(0) ** 2).sum() + way.var(0).sum())


@pytest.mark.paper("efficient-refusal-ablation-llm")
def test_moments_and_cost_are_the_closed_forms(evidence: Evidence) -> None:
    x, y = normal(301, 7, 4.0, 0), normal(223, 7, -1.0, 1)
    new = moved(transport(x, y, 7, 0.0), x)
    S0, S1 = torch.cov(x.mT), torch.cov(y.mT)
    off = (new.mean(0) - y.mean(0)).abs().max()
    evidence("mean off by", measured=off, at_most=1e-5)
    evidence("covariance off by", measured=(torch.cov(new.mT) - S1).abs().max(), at_most=1e-5)
    A = bures(S0, S1)
    evidence("map off symmetric by", measured=(A - A.mT).abs().max(), at_most=1e-9)
    evidence("smallest eigenvalue", measured=torch.linalg.eigvalsh(A).min(), at_least=0.0)
    both = root(root(S0) @ S1 @ root(S0))
    closed = float(((x.mean(0) - y.mean(0)) ** 2).sum() + torch.trace(S0 + S1 - 2 * both))
    off_share = abs(cost(new - x) / closed - 1)
    evidence("cost off the Bures-Wasserstein distance (share)", measured=off_share, at_most=1e-6)
    colouring = root(S1) @ torch.linalg.inv(root(S0))
    other = (x - x.mean(0)) @ colouring.mT + y.mean(0)
    torch.testing.assert_close(torch.cov(other.mT), S1)
    more = cost(other - x) / cost(new - x)
    evidence("cost of whitening and colouring over this", measured=more, at_least=1.01)


@pytest.mark.paper("efficient-refusal-ablation-llm")
def test_equal_covariances_give_a_mean_shift(evidence: Evidence) -> None:
    x = normal(101, 5, 4.0, 0)
    shift = torch.tensor([3.0, -1.0, 0.5, 9.0, 0.0], dtype=torch.float64)
    way = moved(transport(x, x + shift, 5, 0.3), x) - x
    evidence("way less the mean shift", measured=(way - shift).abs().max(), at_most=1e-9)


def test_what_lies_outside_of_the_components_stays() -> None:
    x, y = normal(301, 9, 4.0, 0), normal(223, 9, -1.0, 1)
    both = torch.cat([x, y])
    U = torch.from_numpy(np.linalg.svd((both - both.mean(0)).numpy())[2][:3])
    new = moved(transport(x, y, 3, 0.0), x)
    assert ((new - x) - (new - x) @ U.mT @ U).abs().max() < 1e-9
    torch.testing.assert_close(torch.cov((new @ U.mT).mT), torch.cov((y @ U.mT).mT))
    torch.testing.assert_close((new @ U.mT).mean(0), (y @ U.mT).mean(0))


def test_components_that_commute_scale_by_ratios_of_deviations() -> None:
    S0, S1 = torch.tensor([[4.0, 0.0], [0.0, 9.0]]), torch.tensor([[1.0, 0.0], [0.0, 36.0]])
    expected = torch.tensor([[0.5, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(bures(S0, S1), expected)


def auroc(x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor) -> float:
    """Return how well a quadratic classifier, trained on x and y, tells held-out rows apart."""
    told = np.r_[np.ones(len(x)), np.zeros(len(y))]
    # a direction that was ablated has no variance left, which the classifier must bear
    judge = QuadraticDiscriminantAnalysis(reg_param=0.01).fit(torch.cat([x, y]).numpy(), told)
    held = np.r_[np.ones(len(held_x)), np.zeros(len(held_y))]
    scores = judge.decision_function(torch.cat([held_x, held_y]).numpy())
    return float(roc_auc_score(held, scores))


@pytest.mark.paper("efficient-refusal-ablation-llm")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_quadratic_classifier_is_blind_after_it(seed: int, evidence: Evidence) -> None:
    """The classifier is trained anew on what each edit leaves."""
    x, y = normal(6000, 8, 1.0, 2 * seed), normal(6000, 8, -1.0, 2 * seed + 1)
    train, held = slice(0, 4000), slice(4000, None)
    ot = transport(x[train], y[train], 8, 0.0)
    r = x[train].mean(0) - y[train].mean(0)
    r = r / r.norm()

    def left(edit: Any) -> float:
        return auroc(edit(x[train]), y[train], edit(x[held]), y[held])

    evidence("AUROC before", measured=left(lambda z: z), at_least=0.95)
    evidence("AUROC after transport", measured=left(lambda z: moved(ot, z)), at_most=0.55)
    ablated = left(lambda z: z - (z @ r)[:, None] * r)
    evidence("AUROC after directional ablation", measured=ablated, at_least=0.8)
    shifted = left(lambda z: z - x[train].mean(0) + y[train].mean(0))
    evidence("AUROC after a mean shift", measured=shifted, at_least=0.8)


def test_either_side_may_be_the_target() -> None:
    model, site = tiny.model(), "resid_post.1"
    texts = dict(zip(("positive", "negative"), zip(*PAIRS, strict=True), strict=True))
    for toward, source in (("positive", "negative"), ("negative", "positive")):
        ot = GaussianOT(toward=toward, layers=1, shrinkage=0.0).fit(model, PAIRS)  # type: ignore[arg-type]
        new = states(model, texts[source], site, edits=ot.edits())[site]
        aim = states(model, texts[toward], site)[site]
        U = ot.maps_[1].read
        torch.testing.assert_close((new @ U.mT).mean(0), (aim @ U.mT).mean(0), rtol=1e-3, atol=1e-3)


def test_the_first_token_stays() -> None:
    model, site = tiny.model(), "resid_post.1"
    edits = GaussianOT(layers=1).fit(model, PAIRS).edits()
    bare, new = (model.run(tiny.PROMPTS[0], site, e)[site][0] for e in ([], edits))
    assert torch.equal(bare[0], new[0])
    assert (bare[1:] - new[1:]).abs().amax(-1).min() > 0


@pytest.mark.paper("efficient-refusal-ablation-llm")
def test_the_audit_finds_the_layer_that_a_safeguard_reads(evidence: Evidence) -> None:
    """The safeguard is the state at layer 1 along the components' part of the mean difference."""
    model, site = tiny.model(), "resid_post.1"
    ot = GaussianOT(toward="negative").fit(model, PAIRS)
    r = -ot.maps_[1].shift

    def safeguard(rec: Recording) -> Tensor:
        return rec[site][:, -1] @ r

    source, target = ([pair[i] for pair in PAIRS] for i in (0, 1))
    found = ot.localisation(model, source, target, safeguard, site)
    evidence("share removed at its layer", measured=found[1], equals=1.0, tolerance=1e-3)
    evidence("share removed after its layer", measured=abs(found[2]), at_most=0.0)
    most, left, least = (
        float(safeguard(model.run(texts, site, edits)).mean())
        for texts, edits in ((source, []), (source, ot.at(0).edits()), (target, []))
    )
    assert found[0] == pytest.approx((most - left) / (most - least), rel=1e-4)
    with pytest.raises(InputError, match="source above the target"):
        ot.localisation(model, target, source, safeguard, site)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_components": 11}, r"components must be 1 to 10.* got 11 .*\(11, 48\)"),
        ({"num_components": 0}, "components must be 1 to 10"),
        ({"toward": "both"}, "toward.* got 'both'"),
    ],
    ids=["above rows", "none", "unknown side"],
)
def test_bad_settings_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        GaussianOT(**settings).fit(tiny.model(), PAIRS)


def test_bad_rows_are_refused() -> None:
    x, y = normal(9, 3, 4.0, 0), normal(9, 3, 1.0, 1)
    with pytest.raises(InputError, match="not along 1"):
        transport(torch.cat([x[:, :2], 0 * x[:, 2:]], 1), y, 3, 0.0)
    x[2, 1] = torch.inf
    with pytest.raises(InputError, match="finite, got 1 "):
        transport(x, y, 2, 0.0)
    with pytest.raises(InputError, match=r"1 to 0.*\(1, 3\)"):
        transport(x[:1], y, 1, 0.0)


def test_edits_can_be_saved_and_combined(tmp_path: Any) -> None:
    model = tiny.model()
    edits = GaussianOT(layers=(0, 1)).fit(model, PAIRS).edits(0.6)
    ak.save_edits(tmp_path / "e", edits)
    one, other = (
        model.run(tiny.PROMPTS, "resid_post.2", e)["resid_post.2"]
        for e in (edits, ak.load_edits(tmp_path / "e"))
    )
    assert torch.equal(one, other)
