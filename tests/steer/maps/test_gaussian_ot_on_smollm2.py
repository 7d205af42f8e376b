"""Transport on SmolLM2: harmful requests become harmless ones to probes, prose stays."""

from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import actkit as ak
from actkit.core.edits.where import Where
from actkit.core.run.recording import Recording
from actkit.model import Model
from actkit.steer._states import states
from actkit.steer.maps.gaussian_ot import GaussianOT, transport
from tests._evidence import Evidence
from tests.steer._sentiment import prose_loss

SITE, LATE = "resid_post.15", "resid_post.28"
LATER = Where(tokens=slice(1, None))
Sides = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def requests(smollm2: Model) -> dict[str, Sides]:
    """Return the states of 72 harmful and 72 harmless requests at two layers."""
    pairs = ak.data.refusal()
    sides = [[getattr(p, s) for p in pairs] for s in ("positive", "negative")]
    harmful, harmless = (states(smollm2, side, [SITE, LATE]) for side in sides)
    return {site: (harmful[site], harmless[site]) for site in (SITE, LATE)}


def aurocs(edit: Any, sides: Sides, held: Tensor) -> dict[str, float]:
    """Return what probes that are trained on what an edit leaves make of held-out requests."""
    told = np.r_[np.ones(len(held)), np.zeros(len(held))]
    acts = torch.cat([edit(sides[0]), sides[1]]).numpy()
    test = np.r_[held.numpy(), held.numpy()]
    probes = {
        "linear": make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)),
        "quadratic": make_pipeline(
            PCA(16, svd_solver="full"), QuadraticDiscriminantAnalysis(reg_param=0.1)
        ),
    }
    found = {}
    for name, probe in probes.items():
        probe.fit(acts[~test], told[~test])
        found[name] = float(roc_auc_score(told[test], probe.decision_function(acts[test])))
    return found


@pytest.mark.slow
@pytest.mark.paper("efficient-refusal-ablation-llm")
def test_probes_see_less_than_after_ablation(
    smollm2: Model, requests: dict[str, Sides], evidence: Evidence
) -> None:
    """Mean of three divisions into 54 pairs to fit on and 18 held-out ones."""
    found: dict[str, list[dict[str, float]]] = {"bare": [], "transport": [], "ablation": []}
    ratios, bare_loss = [], prose_loss(smollm2)
    for seed in range(3):
        gen = torch.Generator().manual_seed(seed)
        held = torch.zeros(72, dtype=torch.bool)
        held[torch.randperm(72, generator=gen)[:18]] = True
        sides = requests[SITE]
        x, y = (side[~held] for side in sides)
        ot = transport(x, y, num_components=16, shrinkage=0.3)
        r = (x.mean(0) - y.mean(0)) / (x.mean(0) - y.mean(0)).norm()
        edits: dict[str, Any] = {
            "bare": lambda z: z,
            "transport": lambda z, ot=ot: ot(z[:, None])[:, 0],
            "ablation": lambda z, r=r: z - (z @ r)[:, None] * r,
        }
        for name, edit in edits.items():
            found[name].append(aurocs(edit, sides, held))
        loss = prose_loss(smollm2, [ak.Edit(SITE, ot, LATER)])
        ratios.append(np.exp(loss - bare_loss))
    for probe in ("linear", "quadratic"):
        bare, moved, ablated = (
            fmean(own[probe] for own in found[name]) for name in ("bare", "transport", "ablation")
        )
        evidence(f"{probe} probe's AUROC, held out, before", measured=bare, at_least=0.9)
        evidence(f"{probe} probe's AUROC after transport", measured=moved, at_most=0.75)
        gap = ablated - moved
        evidence(f"{probe} probe's AUROC, ablation less transport", measured=gap, at_least=0.2)
    evidence("perplexity of prose (ratio)", measured=fmean(ratios), at_most=1.05)


@pytest.mark.slow
@pytest.mark.paper("efficient-refusal-ablation-llm")
def test_the_audit_of_a_late_probe(
    smollm2: Model, requests: dict[str, Sides], evidence: Evidence
) -> None:
    """The safeguard is a monitor of layer 28, since this network itself refuses nothing.

    Log-odds of a refusal are lower after its harmful requests than after its harmless ones.
    """
    pairs = ak.data.refusal()
    harmful, harmless = requests[LATE]
    both = torch.cat([harmful[:54], harmless[:54]])
    mean, std = both.mean(0), both.std(0)
    told = np.r_[np.ones(54), np.zeros(54)]
    probe = LogisticRegression(C=0.01, max_iter=2000).fit(((both - mean) / std).numpy(), told)
    w = torch.from_numpy(probe.coef_[0]).float()

    def monitor(rec: Recording) -> Tensor:
        return ((rec[LATE][:, -1] - mean) / std) @ w

    fitted, held = pairs[:54], pairs[54:]
    ot = GaussianOT(toward="negative", num_components=16).fit(smollm2, fitted)
    source, target = [p.positive for p in held], [p.negative for p in held]
    found = ot.localisation(smollm2, source, target, monitor, LATE, layers=[4, 15, 28, 29])
    evidence("monitor removed at half of the depth (share)", measured=found[15], at_least=0.5)
    evidence("monitor removed at its own layer (share)", measured=found[28], at_least=0.5)
    evidence("monitor removed after it (share)", measured=abs(found[29]), at_most=0.0)
    less = found[15] - found[4]
    evidence("half of the depth less layer 4 (share)", measured=less, at_least=0.1)
