"""A weighted controller: its formula by hand, and refusal prompts of SmolLM2."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import actkit as ak
from actkit.core.edits.controller import Controller
from actkit.core.errors import InputError
from actkit.core.run.context import ForwardContext
from actkit.model import Model
from actkit.steer._states import states
from actkit.steer.controllers.weighted_controller import WeightedController
from tests._evidence import Evidence
from tests.core import tiny

PAIRS = [
    (f"w{i} w{2 * i + 1} w{40 + i} w7", f"w{i} w{2 * i + 2} w{60 + i} w8") for i in range(1, 12)
]
QUICK = {"num_hidden": 37, "rate": 1e-3}


def fitted(model: Model, **settings: object) -> WeightedController:
    chosen = {"reads": (0, 1), **QUICK, **settings}
    return WeightedController(**chosen).fit(model, PAIRS)  # type: ignore[arg-type]


@pytest.mark.parametrize("gain", ["raw", "sigmoid", "relu"])
def test_the_edit_is_the_formula(gain: str) -> None:
    """Against one `Linear(K D, H)`, ReLU, `Linear(H, 1 + L)` in float64."""
    model, prompt = tiny.model(), tiny.PROMPTS[0]
    own = fitted(model, gain=gain)
    sites = ["resid_post.0", "resid_post.1", "resid_post.2"]
    bare = model.run(prompt, sites)
    net = nn.Sequential(nn.Linear(2 * tiny.WIDTH, 37), nn.ReLU(), nn.Linear(37, 2)).double()
    into_HF = own.network_.into_KHD.transpose(0, 1).flatten(1)
    flat = [into_HF, *own.network_.tensors()[1:]]
    for parameter, value in zip(net.parameters(), flat, strict=True):
        parameter.data = value.double()
    x = torch.cat([bare[site][0, -1] for site in sites[:2]]).double()
    s, w = net(x).detach()
    gained = {"raw": s, "sigmoid": s.sigmoid(), "relu": s.relu()}[gain]
    moved = model.run(prompt, sites, own.edits(1.5))
    expected = bare[sites[2]][0, -1] + 1.5 * 4.0 * gained * w.sigmoid() * own.direction_.double()
    torch.testing.assert_close(moved[sites[2]][0, -1].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(moved[sites[2]][0, :-1], bare[sites[2]][0, :-1])
    for site in sites[:2]:
        assert torch.equal(moved[site], bare[site]), "a layer that is read was edited"
    asked, weight = own.demand(model, [prompt])
    torch.testing.assert_close(
        torch.cat([asked, weight[0]]).double(), torch.stack([s, w.sigmoid()])
    )


def test_the_direction_is_the_unit_mean_difference() -> None:
    model = tiny.model()
    own = fitted(model, source=2)
    yes, no = (states(model, [p[i] for p in PAIRS], "resid_post.2") for i in (0, 1))
    r_D = (yes["resid_post.2"].double() - no["resid_post.2"].double()).mean(0)
    torch.testing.assert_close(own.direction_.double(), r_D / r_D.norm(), rtol=1e-4, atol=1e-5)


def test_training_tells_the_sides_apart_and_keeps_weights_near_a_half() -> None:
    model = tiny.model()
    before, after = fitted(model, num_epochs=0), fitted(model, num_epochs=60)
    yes, no = ([p[i] for p in PAIRS] for i in (0, 1))

    def gap(own: WeightedController) -> float:
        return float(own.demand(model, yes)[0].mean() - own.demand(model, no)[0].mean())

    assert gap(after) > gap(before) + 2
    spread = (after.demand(model, yes)[1] - 0.5).abs().mean()
    assert spread < (before.demand(model, yes)[1] - 0.5).abs().mean()


@dataclass(frozen=True, eq=False)
class Spy(Controller):
    """Keep the hidden units that the memory holds when the edited layer is reached."""

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        HIDDEN.append(memory["hidden"])
        return x


HIDDEN: list[Tensor] = []


def test_it_is_asked_anew_at_every_step() -> None:
    """Only the last layer is edited, so what is read equals runs of the whole texts."""
    HIDDEN.clear()
    model = tiny.model()
    own = fitted(model, gain="raw", scale=40.0)
    edits = own.edits()
    spy = ak.Edit("resid_post.2", Spy(key=edits[0].operation.key))  # type: ignore[attr-defined]
    text = tiny.PROMPTS[1]
    written = model.generate([text], edits=[*edits, spy], max_new_tokens=4)[0].split()
    asked = [own.demand(model, [" ".join([text, *written[:n]])])[0] for n in range(4)]
    out = own.network_
    found = [(h.relu() @ out.out_EH.mT + out.bias_E)[:, 0] for h in HIDDEN]
    torch.testing.assert_close(torch.cat(found), torch.cat(asked), rtol=1e-4, atol=1e-4)
    assert len(set(torch.cat(found).tolist())) == 4


def test_bad_settings_and_data_are_refused() -> None:
    model = tiny.model()
    with pytest.raises(InputError, match="layer above those that are read"):
        WeightedController(reads=2).fit(model, PAIRS)
    with pytest.raises(InputError, match="layers must be among 0 to 2"):
        WeightedController(reads=(0, 7)).fit(model, PAIRS)
    with pytest.raises(InputError, match=r"gain must be one of raw, .* got 'loud'"):
        WeightedController(gain="loud").fit(model, PAIRS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="differ in their mean"):
        WeightedController().fit(model, [("w1 w2", "w1 w2")])


def last(model: Model, texts: list[str], edits: list[ak.Edit]) -> Tensor:
    parts = []
    for start in range(0, len(texts), 12):
        logits = model.run(texts[start : start + 12], edits=edits, logits=True).logits
        parts.append(logits[:, -1].log_softmax(-1))
    return torch.cat(parts)


@pytest.mark.slow
@pytest.mark.paper("guiding-giants")
def test_it_steers_only_what_needs_it(smollm2: Model, evidence: Evidence) -> None:
    """Harmful requests are to be steered, harmless ones like them not; a third is held out."""
    rows = ak.data.refusal()
    own = WeightedController().fit(smollm2, [r for i, r in enumerate(rows) if i % 3])
    harmful, harmless = ([getattr(r, s) for r in rows[::3]] for s in ("positive", "negative"))
    (s_yes, w_yes), (s_no, _) = own.demand(smollm2, harmful), own.demand(smollm2, harmless)
    auroc = roc_auc_score([1] * len(s_yes) + [0] * len(s_no), torch.cat([s_yes, s_no]).numpy())
    evidence("AUROC of s, held out", measured=auroc, at_least=0.97)

    bare = {"yes": last(smollm2, harmful, []), "no": last(smollm2, harmless, [])}

    def kl(side: str, edits: list[ak.Edit]) -> float:
        moved = last(smollm2, harmful if side == "yes" else harmless, edits)
        return float((moved.exp() * (moved - bare[side])).sum(-1).mean())

    edits = own.edits(4.0)
    evidence("KL(steered, base) on harmless requests as a share of that on harmful ones",
             measured=kl("no", edits) / kl("yes", edits), at_most=0.1)  # fmt: skip
    dose_L = 4.0 * own.scale * (s_yes.sigmoid()[:, None] * w_yes).mean(0)
    fixed = [
        ak.add(f"resid_post.{n}", own.direction_, float(d), ak.Where(tokens="last"))
        for n, d in zip(own.layers_, dose_L, strict=True)
    ]
    evidence("the same share with the harmful ones' mean dose for all",
             measured=kl("no", fixed) / kl("yes", fixed), at_least=0.5)  # fmt: skip

    own.gain, own.network_.out_EH[0], own.network_.bias_E[0] = "raw", 0.0, 0.0
    change = (last(smollm2, harmful, own.edits(4.0)) - bare["yes"]).abs().max()
    evidence("change of the logits with s forced to 0", measured=change, at_most=0.0)
