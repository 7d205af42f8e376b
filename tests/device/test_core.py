"""The instrument on the pretended device: whatever it gives equals what the CPU gives.

What users hand over (vectors, masks, strengths, recordings) is on the CPU, as a file's would be.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.model import Model
from actkit.read.streaming.moments import Moments
from actkit.read.streaming.sinks import Sinks
from actkit.trace.training.optogenetics import Optogenetics
from tests.core import tiny
from tests.core.tiny import PROMPTS, WIDTH, uneven
from tests.pretended_device import DEVICE

CPU = torch.device("cpu")
POINTS = ["embeddings", "q.0", "k.1", "v.1", "attn_scores.1", "attn_probs.0", "z.2", "mlp_hidden.1",
          "resid_mid.0", "resid_post.*", "final_norm", "logits"]  # fmt: skip


@pytest.fixture(scope="module")
def models() -> tuple[Model, Model]:
    """Return one network on the device and the same on the CPU."""
    there, here = tiny.model(), tiny.model()
    here.module.to(CPU)
    return there, here


def last(model: Model, edits: Any, **settings: Any) -> Tensor:
    logits = model.run(PROMPTS, edits=edits, logits=True, **settings).logits
    assert logits.device == next(model.module.parameters()).device
    return logits[:, -1].cpu()


def close(there: Tensor, here: Tensor) -> None:
    torch.testing.assert_close(there.cpu(), here.cpu(), rtol=1e-4, atol=1e-4, equal_nan=True)


VECTOR, MASK = uneven(WIDTH), torch.zeros(3, 7, dtype=torch.bool)
MASK[0, 2] = MASK[1, 5] = MASK[2, 6] = True
SITE = "resid_post.1"
EDITS: dict[str, Callable[[], Any]] = {
    "add": lambda: ak.add(SITE, VECTOR, 0.7),
    "add of a strength for each row": lambda: ak.add(SITE, VECTOR, torch.tensor([0.0, 1.0, -0.5])),
    "add of a row each": lambda: ak.add(SITE, uneven(3, WIDTH)),
    "add of a vector there": lambda: ak.add(SITE, VECTOR.to(DEVICE)),
    "set": lambda: ak.set(SITE, VECTOR, ak.Where(tokens="last")),
    "scale": lambda: ak.scale(SITE, 0.3),
    "scale of units": lambda: ak.scale(SITE, uneven(WIDTH)),
    "project_out": lambda: ak.project_out(SITE, uneven(2, WIDTH)),
    "clamp": lambda: ak.clamp(SITE, -0.5, 0.5),
    "clamp of a direction": lambda: ak.clamp(SITE, -0.5, 0.5, VECTOR),
    "affine": lambda: ak.affine(SITE, uneven(WIDTH, WIDTH) / 9, VECTOR),
    "apply": lambda: ak.apply(SITE, torch.tanh),
    "a mask of tokens": lambda: ak.add(SITE, VECTOR, 1.0, ak.Where(tokens=MASK)),
    "positions": lambda: ak.add(SITE, VECTOR, 1.0, ak.Where(tokens=[0, -1])),
    "a slice": lambda: ak.add(SITE, VECTOR, 1.0, ak.Where(tokens=slice(1, -1))),
    "the last token": lambda: ak.add(SITE, VECTOR, 1.0, ak.Where(tokens="last")),
    "rows": lambda: ak.add(SITE, VECTOR, 1.0, ak.Where(rows=torch.tensor([True, False, True]))),
    "row": lambda: ak.add(SITE, VECTOR, 1.0, ak.Where(rows=-1)),
    "units": lambda: ak.set(SITE, torch.zeros(2), ak.Where(units=[3, 5])),
    "heads": lambda: ak.scale("z.1", 0.0, ak.Where(heads=[0, 4])),
    "scores": lambda: ak.add("attn_scores.1", uneven(7), 1.0, ak.Where(heads=2)),
    "probs": lambda: ak.scale("attn_probs.0", 0.5, ak.Where(heads=1, tokens="last")),
    "logits": lambda: ak.scale("logits", 0.5, ak.Where(units=[4])),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_of_cpu_tensors(name: str, models: Any) -> None:
    there, here = models
    edits = [EDITS[name]()]
    found = last(there, edits)
    close(found, last(here, edits))
    assert not torch.equal(found, last(there, []))


@pytest.mark.parametrize("whose", [0, 1], ids=["there", "here"])
def test_swaps_across_devices(models: Any, whose: int) -> None:
    """A recording of either device goes into the network of the other."""
    other = ["w9 w2 w3 w8 w5 w6 w1", "w11 w30 w13", "w21 w40 w23 w24 w3"]
    edits = [ak.swap(SITE, models[whose].run(other, record=SITE))]
    for model in models:
        close(last(model, edits), last(models[1], edits))


def test_recordings_are_where_the_network_is(models: Any) -> None:
    there, here = models
    recs = [m.run(PROMPTS, record=POINTS, logits=True) for m in (there, here)]
    for name in recs[1]:
        assert recs[0][name].device == DEVICE and recs[0].rows_of(name).valid.device == DEVICE
        close(recs[0][name], recs[1][name])
        for own, other in zip(recs[0].flat(name)[:1], recs[1].flat(name)[:1], strict=True):
            close(own, other)


@pytest.mark.parametrize("inputs", [[[3, 1, 2], [5, 4]], torch.tensor([[3, 1, 2]]), "w1 w2"])
def test_inputs_are_moved(models: Any, inputs: Any) -> None:
    found = [m.run(inputs, logits=True).logits for m in models]
    close(*found)


def test_gradients_reach_edits_and_recordings(models: Any) -> None:
    grads = []
    for model in models:
        vector = VECTOR.clone().requires_grad_()
        rec = model.run(PROMPTS, ["z.0"], [ak.add("resid_post.0", vector)], logits=True, grad=True)
        rec.logits[:, -1, 3].sum().backward()
        assert vector.grad is not None and vector.grad.device == CPU
        grads.append(vector.grad)
        model.module.zero_grad()
    close(*grads)


def test_generation_writes_the_same(models: Any) -> None:
    edits = [EDITS[name]() for name in ("rows", "positions", "heads")]
    after = ak.add(SITE, VECTOR, 2.0, ak.Where(tokens="generated", steps=[1, 2]))
    settings: Any = {"edits": [*edits, after], "max_new_tokens": 4}
    assert models[0].generate(PROMPTS, **settings) == models[1].generate(PROMPTS, **settings)


@pytest.mark.parametrize("at", ["last", slice(-2, None), 1])
def test_sweeps_share_work(models: Any, at: Any) -> None:
    variants = [
        [],
        [EDITS["add"]()],
        [EDITS["rows"]()],
        [ak.add("resid_post.2", VECTOR, 1.0, ak.Where(tokens="last"))],
        [ak.set("z.2", torch.zeros(8), ak.Where(heads=1, tokens=-1))],
        [EDITS["a mask of tokens"]()],
    ]

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 4]

    found = [m.sweep(PROMPTS, variants, metric, at=at) for m in models]
    assert found[0].shape == (6, 3)
    close(*found)


def test_observing_and_harvesting(models: Any, tmp_path: Path) -> None:
    readings = {SITE: [Moments()], "attn_probs.1": [Sinks()]}
    there, here = (m.observe(PROMPTS * 2, readings, batch_size=2) for m in models)
    for site in readings:
        for a, b in zip(there[site], here[site], strict=True):
            for key, value in b.result().summary().items():
                assert a.result().summary()[key] == pytest.approx(value, rel=1e-4, nan_ok=True)
    stores = [m.harvest(PROMPTS, SITE, tmp_path / str(i)) for i, m in enumerate(models)]
    close(stores[0][SITE][:], stores[1][SITE][:])


def test_edits_come_back_from_their_file(models: Any, tmp_path: Path) -> None:
    edits = [ak.add(SITE, VECTOR.to(DEVICE), 0.5), EDITS["project_out"]()]
    ak.save_edits(tmp_path / "edits.safetensors", edits)
    loaded = ak.load_edits(tmp_path / "edits.safetensors")
    assert all(t.device == CPU for e in loaded for t in e.operation.tensors().values())
    assert torch.equal(last(models[0], loaded), last(models[0], edits))


def test_baking(models: Any, tmp_path: Path) -> None:
    from actkit.export.lower import bake, save_peft

    edits = [ak.add("mlp_out.1", VECTOR), ak.project_out("attn_out.0", uneven(1, WIDTH))]
    baked = bake(models[0], edits)
    assert {p.device for p in baked.module.parameters()} == {DEVICE}
    close(last(baked, []), last(models[0], edits))
    save_peft(tmp_path / "adapter", models[0], edits)


def test_closed_loops(models: Any) -> None:
    """Controllers watch one site and write at another."""
    tokens = torch.tensor([[3, 1, 2, 3, 1], [5, 4, 4, 5, 4]])
    light = Optogenetics(tokens)
    for edits in (
        light.copy(1, 0, [1, 4]),
        [light.previous_token(0, 1)],
        [light.match(1, 2)],
        [light.no_previous(1)],
    ):
        found = [m.run(tokens, edits=edits, logits=True).logits for m in models]
        close(*found)


def test_images_have_their_rows_beside_them() -> None:
    net = tiny.Cnn().eval()
    images = uneven(2, 3, 6, 7)
    here = Model(net).run(images, record="conv1:out")
    there = Model(net.to(DEVICE)).run(images, record="conv1:out")
    assert there.rows_of("conv1:out").position.device == DEVICE
    close(there["conv1:out"], here["conv1:out"])
    close(there.flat("conv1:out")[0], here.flat("conv1:out")[0])


def test_other_kinds_of_network() -> None:
    """GPT-2, and recurrent layers."""
    there, here = (Model(tiny.gpt2(), tiny.tokenizer()) for _ in range(2))
    here.module.to(CPU)
    edits = [ak.add("resid_post.0", uneven(36)), ak.scale("attn_probs.1", 0.5)]
    close(last(there, edits), last(here, edits))
    recurrent, x = tiny.Recurrent().eval(), uneven(3, 4, 5)
    bare = Model(recurrent).run(x, record="lstm:out")["lstm:out"]
    close(Model(recurrent.to(DEVICE)).run(x, record="lstm:out")["lstm:out"], bare)


def test_modules_that_stand_in(models: Any) -> None:
    stand = nn.Linear(WIDTH, WIDTH).to(DEVICE)
    with models[0].replaced({"model.layers.1.mlp": stand}):
        assert last(models[0], []).isfinite().all()
