"""The neuron that raises a word most: by differences of runs, one neuron at a time."""

from pathlib import Path

import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError
from actkit.steer.vectors.top_neuron import TopNeuron
from tests.core import tiny

PROMPTS = ["w1 w2 w3 w4 w5 w6 w7", "w11 w12 w13"]


def test_it_is_the_neuron_of_the_largest_difference() -> None:
    """A step of .001 up and down in each of 240 neurons, in float64."""
    model = tiny.model(torch.float64)
    top = TopNeuron("w17").fit(model, PROMPTS)

    def log_p(layer: int, unit: int, step: float) -> float:
        where = ak.Where(tokens="last", units=[unit])
        edit = ak.add(f"mlp_hidden.{layer}", torch.tensor([step], dtype=torch.float64), where=where)
        logits = model.run(PROMPTS, edits=[edit], logits=True).logits
        return float(logits[:, -1].log_softmax(-1)[:, 17].mean())

    slopes = {
        (n, i): (log_p(n, i, 1e-3) - log_p(n, i, -1e-3)) / 2e-3
        for n in range(tiny.LAYERS)
        for i in range(tiny.HIDDEN)
    }
    best = max(slopes, key=lambda place: slopes[place])
    assert top.neuron_ == best
    assert top.gradient_ == pytest.approx(slopes[best], rel=1e-3)


def test_prompts_twice_give_the_same() -> None:
    """More prompts than a batch holds, of unequal lengths; the network keeps no gradient."""
    model = tiny.model()
    prompts = [f"w{i} w{i + 1} w{2 * i}" + " w5" * (i % 3) for i in range(1, 8)]
    once, twice = (TopNeuron("w17").fit(model, prompts * n) for n in (1, 2))
    assert once.neuron_ == twice.neuron_
    assert twice.gradient_ == pytest.approx(once.gradient_, rel=1e-4)
    assert all(p.grad is None for p in model.module.parameters())


def test_strengths_rows_and_files(tmp_path: Path) -> None:
    model = tiny.model()
    top = TopNeuron("w17", delta=2.0).fit(model, PROMPTS)
    layer, unit = top.neuron_
    site = f"mlp_hidden.{layer}"
    bare = model.run(tiny.PROMPTS, site)[site]
    found = model.run(tiny.PROMPTS, site, top.edits(torch.tensor([0.0, 1.5, -1.0])))[site]
    moved = torch.zeros_like(bare)
    moved[1, ..., unit], moved[2, ..., unit] = 3.0, -2.0
    torch.testing.assert_close(found, bare + moved)
    top.save(tmp_path / "edits", model, strength=0.5)
    loaded = ak.load_edits(tmp_path / "edits", model)
    again = model.run(tiny.PROMPTS, site, loaded)[site]
    assert torch.equal(again, model.run(tiny.PROMPTS, site, top.edits(0.5))[site])
    assert torch.equal(model.run(tiny.PROMPTS, site, top.edits(0.0))[site], bare)


def test_bad_input_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(InputError, match="one token, got 2"):
        TopNeuron("w1 w2").fit(model, PROMPTS)
    with pytest.raises(InputError, match="at least one, got"):
        TopNeuron("w1").fit(model, [])
    with pytest.raises(InputError, match="list of texts"):
        TopNeuron("w1").fit(model, "w1 w2")
