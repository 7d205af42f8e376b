"""The number of a page and its findings are one number, and untrained copies are told by it."""

from typing import Any

import pytest
import torch
from torch import nn

import actkit as ak
from actkit.model import Model
from actkit.scanning.answer import Page
from actkit.scanning.questions import QUESTIONS
from actkit.scanning.questions._base import CONTROL
from actkit.scanning.report import Report
from tests.core import tiny

TEXTS = [" ".join(f"w{(7 * i + j * j) % 88 + 1}" for j in range(23 + i)) for i in range(20)]


def uneven() -> Model:
    """Return blocks of unlike widths and rows, so that layers and activations weigh differently."""
    torch.manual_seed(3)
    blocks = [
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(5, 17, 3, stride=2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(17, 40, 3, stride=2), nn.ReLU()),
    ]
    for scale, block in zip((0.02, 1.0, 9.0), blocks, strict=True):
        conv: Any = block[0]
        conv.weight.data *= scale  # small in some layers, large in others
        conv.bias.data *= scale
    return Model(nn.Sequential(*blocks), name="uneven")


def images() -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 31, 29, generator=gen) + 0.3 for _ in range(4)]


def reports() -> list[Report]:
    return [ak.scan(tiny.model(), TEXTS, num_tokens=400), ak.scan(uneven(), images())]


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    return [page for report in reports() for page in report.pages]


def test_the_headline_stands_in_the_findings(pages: list[Page]) -> None:
    assert {p.key for p in pages} == {q.key for q in QUESTIONS}
    for page in pages:
        assert page.answer is not None
        own = [f for f in page.findings if "untrained" not in f]
        shown = page.answer.shown()
        said = "the median size there is 0" if shown == "∞" else shown
        assert any(said in finding for finding in own), (page.key, page.answer, own)


def test_small_activations_are_counted_among_all_not_layer_by_layer() -> None:
    model, data = uneven(), images()
    acts = [
        rec[f"{i}.1:out"].flatten()
        for batch in data
        for rec in [model.run(batch, record=[f"{i}.1:out" for i in range(3)])]
        for i in range(3)
    ]
    want = float((torch.cat(acts).abs() <= 0.1).double().mean())
    (page,) = ak.scan(model, data, control=False, questions=["sparsity"]).pages
    assert page.answer is not None
    assert next(iter(page.answer.values.values())) == pytest.approx(want, abs=1e-6)
    layers = [(torch.cat(acts[i::3]).abs() <= 0.1).double().mean() for i in range(3)]
    assert abs(float(torch.stack(layers).mean()) - want) > 0.05


def test_what_an_untrained_copy_has_too_is_said_by_the_page(pages: list[Page]) -> None:
    same = "no different from the untrained copy"
    for page in pages:
        assert page.answer is not None
        own, *_ = page.answer.values.values()
        control = page.answer.values.get(CONTROL)
        alike = control is not None and abs(own - control) <= 0.05 * max(abs(own), abs(control))
        assert any(same in finding for finding in page.findings) == alike, page.key


@pytest.mark.parametrize(("other", "alike"), [(0.247, True), (0.246, True), (0.30, False)])
def test_no_different_is_within_a_twentieth(other: float, alike: bool) -> None:
    question = next(q for q in QUESTIONS if q.key == "voids")
    assert bool(question._untold({"mine": 0.246, CONTROL: other})) == alike
    assert not question._untold({"mine": 0.246, "another": 0.246})
    assert not question._untold({"mine": float("nan"), CONTROL: 0.2})


def test_no_page_says_that_a_head_does_nothing(pages: list[Page]) -> None:
    (page,) = [p for p in pages if p.key == "first_token"]
    told = " ".join([page.question, page.note, *page.findings, *(f.title for f in page.figures)])
    assert "rest on the first token" in told
    assert "do nothing" not in told and "dormant" not in told
