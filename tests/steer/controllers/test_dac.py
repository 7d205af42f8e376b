"""Dynamic activation composition: nuclei, divergences and steps by hand, on a tiny network."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.edits.controller import Controller, SideRun
from actkit.core.errors import InputError
from actkit.core.run.context import ForwardContext
from actkit.model import Model
from actkit.steer.controllers.dac import DAC, Compose, divergence, nucleus
from tests._evidence import Evidence
from tests.core import tiny

PAIRS = [(f"w{i} w{2 * i + 1} w7", f"w{i} w{2 * i + 2} w60 w8") for i in range(1, 8)]
OTHERS = [(f"w{5 * i} w3", f"w{4 * i} w2 w{i}") for i in range(1, 6)]
STEPS = 3
ALPHAS: list[Tensor] = []


@dataclass(frozen=True, eq=False)
class Spy(Controller):
    """Keep the alphas of each pass; the last of a step's passes is the run itself."""

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        ALPHAS.append(memory["alpha"])
        return x


@dataclass(frozen=True, eq=False)
class Constant(Compose):
    """All properties at full strength at every step."""

    def before(self, beside: SideRun, memory: dict[str, Any], context: ForwardContext) -> None:
        memory["alpha"] = torch.full((1, len(self.steps_PSHK)), self.most)


def alphas(model: Model, prompts: list[str], edits: list[ak.Edit], num: int) -> tuple[Any, Tensor]:
    """Generate; return the texts and the (steps, B, P) alphas that were used."""
    ALPHAS.clear()
    spy = ak.Edit("z.2", Spy(key=edits[0].operation.key))  # type: ignore[attr-defined]
    texts = model.generate(prompts, edits=[*edits, spy], max_new_tokens=num)
    passes = len(ALPHAS) // num
    return texts, torch.stack(ALPHAS[passes - 1 :: passes])


def logits(model: Model, text: str, edits: list[ak.Edit]) -> Tensor:
    found = model.run(text, edits=edits, logits=True).logits
    assert found is not None
    return found[:, -1]


def sorted_loop(probs: list[float], top_p: float) -> list[bool]:
    kept, total = [False] * len(probs), 0.0
    for i in sorted(range(len(probs)), key=lambda i: -probs[i]):
        kept[i] = True
        total += probs[i]
        if total > top_p:
            break
    return kept


@pytest.mark.paper("multi-property-steering-large")
def test_nucleus_equals_a_sorted_loop(evidence: Evidence) -> None:
    gen = torch.Generator().manual_seed(0)
    logits_BV = 3 * torch.randn(100, 37, generator=gen, dtype=torch.float64) + 5
    for top_p in (0.4, 0.8, 0.95):
        found = nucleus(logits_BV, top_p)
        expected = [sorted_loop(row.softmax(-1).tolist(), top_p) for row in logits_BV]
        wrong = (found != torch.tensor(expected)).any(-1).sum()
        evidence(f"nuclei of 100 that differ from a sorted loop, p {top_p}",
                 measured=wrong, at_most=0)  # fmt: skip
    union = nucleus(logits_BV[:50], 0.4) | nucleus(logits_BV[50:], 0.4)
    rows = torch.arange(50)
    both = union[rows, logits_BV[:50].argmax(-1)] & union[rows, logits_BV[50:].argmax(-1)]
    evidence("unions that hold both likeliest tokens (share)", measured=both.double().mean(),
             at_least=1.0)  # fmt: skip


def test_divergence_is_of_the_plain_from_the_steered_over_the_union() -> None:
    p, q = torch.tensor([0.6, 0.3, 0.1, 0.0]), torch.tensor([0.1, 0.2, 0.6, 0.1])
    found = divergence(p.log()[None], q.log()[None], 0.65)
    kept = torch.tensor([True, True, True, False])  # {0, 1} of p, {2, 1} of q
    a, b = p[kept] / p[kept].sum(), q[kept] / q[kept].sum()
    torch.testing.assert_close(found[0], (a * (a / b).log()).sum())
    assert divergence(p.log()[None], p.log()[None], 0.65) == 0


def test_differences_equal_runs_of_the_written_texts() -> None:
    model = tiny.model()
    dac = DAC(num_steps=STEPS, batch_size=3).fit(model, PAIRS)
    sides = []
    for prompts in zip(*PAIRS, strict=True):
        written = [model.generate([p], max_new_tokens=STEPS)[0].split() for p in prompts]
        sides.append([
            [model.run(" ".join([p, *w[:step]]), "z.1")["z.1"][0, -1].double()
             for step in range(STEPS)]
            for p, w in zip(prompts, written, strict=True)
        ])  # fmt: skip
    plus, minus = (torch.stack([torch.stack(s) for s in side]).mean(0) for side in sides)
    found = dac.differences_[1]
    assert found.shape == (1, STEPS, tiny.HEADS, tiny.WIDTH // tiny.HEADS)
    torch.testing.assert_close(found[0].double(), plus - minus, rtol=1e-4, atol=1e-5)


def test_each_step_equals_runs_of_its_own() -> None:
    """Every alpha and token follows from whole-text runs with all past positions edited."""
    model, prompt = tiny.model(), "w11 w12 w13"
    dac = DAC(num_steps=STEPS).fit(model, {"a": PAIRS, "b": OTHERS})
    texts, found = alphas(model, [prompt], dac.edits(0.3), num=5)
    written = texts[0].split()
    assert len(written) == 5

    def steered(step: int, alpha_SP: Tensor) -> list[ak.Edit]:
        """Return edits of the positions 2 to 2 + step, which are the prompt's end and on."""
        return [
            ak.add(f"z.{n}", torch.einsum("p,phk->hk", alpha_SP[i], d[:, min(i, STEPS - 1)]), 0.3,
                   ak.Where(tokens=[2 + i]))
            for n, d in dac.differences_.items() for i in range(step + 1)
        ]  # fmt: skip

    for step in range(5):
        text = " ".join([prompt, *written[:step]])
        plain = logits(model, text, [])
        for p in range(2):
            full = 2.0 * torch.eye(2)[p].expand(step + 1, 2)
            kl = divergence(plain, logits(model, text, steered(step, full)), 0.95)
            torch.testing.assert_close(found[step, 0, p], kl[0].clamp(0, 2), rtol=1e-3, atol=1e-4)
        own = logits(model, text, steered(step, found[:, 0]))
        assert f"w{own.argmax()}" == written[step]
    assert (found < 2).any(), "all alphas are at the bound"


def test_rows_do_not_meet_and_one_property_is_a_list() -> None:
    model = tiny.model()
    dac = DAC(num_steps=STEPS).fit(model, PAIRS)
    assert dac.about_ is not None
    assert dac.about_["data"]["positive"] == len(PAIRS)
    texts, together = alphas(model, tiny.PROMPTS, dac.edits(0.3), num=4)
    for i, prompt in enumerate(tiny.PROMPTS):
        text, alone = alphas(model, [prompt], dac.edits(0.3), num=4)
        assert text == [texts[i]]
        torch.testing.assert_close(alone[:, 0], together[:, i], rtol=1e-3, atol=1e-4)


def test_properties_by_name_equal_single_fits() -> None:
    model = tiny.model()
    both = DAC(num_steps=STEPS).fit(model, {"a": PAIRS, "b": OTHERS})
    single = DAC(num_steps=STEPS).fit(model, OTHERS)
    assert torch.equal(both.differences_[2][1:], single.differences_[2])
    assert both.about_ is not None
    assert {k: v["positive"] for k, v in both.about_["data"].items()} == {"a": 7, "b": 5}


def test_bad_settings_and_data_are_refused() -> None:
    model = tiny.model()
    with pytest.raises(InputError, match="at least 1, got an empty mapping"):
        DAC().fit(model, {})
    with pytest.raises(InputError, match="num_steps must be at least 1, got 0"):
        DAC(num_steps=0).fit(model, PAIRS)
    with pytest.raises(InputError, match=r"top_p must lie in \(0, 1\], got 1.5"):
        DAC(top_p=1.5).fit(model, PAIRS)
    with pytest.raises(InputError, match="must be pairs"):
        DAC().fit(model, {"a": "w1 w2"})


@pytest.mark.paper("multi-property-steering-large")
def test_a_difference_of_zero_leaves_the_model_as_it_is(evidence: Evidence) -> None:
    model = tiny.model()
    dac = DAC(num_steps=STEPS).fit(model, {"a": PAIRS, "b": OTHERS})
    dac.differences_ = {n: torch.zeros_like(d) for n, d in dac.differences_.items()}
    texts, found = alphas(model, tiny.PROMPTS, dac.edits(), num=6)
    evidence("largest alpha with differences of zero", measured=found.abs().max(), at_most=0.0)
    bare = model.generate(tiny.PROMPTS, max_new_tokens=6)
    same = sum(a == b for a, b in zip(texts, bare, strict=True)) / len(bare)
    evidence("texts equal to the base model's (share)", measured=same, at_least=1.0)


def test_constant_strength_needs_no_look_ahead() -> None:
    """The baseline of the evidence on SmolLM2: the sum of all differences times `most`."""
    model = tiny.model()
    dac = DAC(num_steps=STEPS).fit(model, {"a": PAIRS, "b": OTHERS})
    found = logits(model, "w4 w9", constant(dac, 0.3))
    end = ak.Where(tokens="last")
    added = [ak.add(f"z.{n}", d[:, 0].sum(0), 0.6, end) for n, d in dac.differences_.items()]
    torch.testing.assert_close(found, logits(model, "w4 w9", added), rtol=1e-4, atol=1e-4)


def constant(dac: DAC, strength: float) -> list[ak.Edit]:
    return [
        replace(e, operation=Constant(d, dac.most, dac.top_p, key="constant", strength=strength))
        for e, d in zip(dac.edits(), dac.differences_.values(), strict=True)
    ]
