"""Every steerer of the catalog that learns from examples with and without a concept."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.catalog import Entry, methods
from actkit.core.edits.files import edit_facts
from actkit.core.errors import EditError, InputError, NotFittedError
from actkit.model import Model
from actkit.steer._base import ContrastSteerer
from tests.contract import check_copies, check_restored
from tests.core import tiny

PAIRS = [
    (f"w{i} w{2 * i + 1} w{40 + i} w7", f"w{i} w{2 * i + 2} w{60 + i} w8") for i in range(1, 12)
]
PROMPTS = tiny.PROMPTS


def takes_no_settings(entry: Entry) -> bool:
    made = entry.load()
    if not (isinstance(made, type) and issubclass(made, ContrastSteerer)):
        return False
    settings = list(inspect.signature(made).parameters.values())
    return all(s.default is not inspect.Parameter.empty for s in settings)


STEERERS = [e for e in methods("steer") if takes_no_settings(e)]
each = pytest.mark.parametrize("entry", STEERERS, ids=lambda e: e.name)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


class Fitted(dict[str, Any]):
    """Each steerer, fitted when it is first asked for."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def __missing__(self, name: str) -> Any:
        self[name] = ak.get(name)().fit(self.model, PAIRS)
        return self[name]


@pytest.fixture(scope="module")
def fitted(model: Model) -> Fitted:
    return Fitted(model)


def logits(model: Model, edits: Any, prompts: Any = PROMPTS) -> Tensor:
    found = model.run(prompts, edits=edits, logits=True).logits
    assert found is not None
    return found[:, -1]


def test_there_are_steerers() -> None:
    assert "caa" in [e.name for e in STEERERS]


@each
def test_fit_returns_itself_and_leaves_the_network(entry: Entry) -> None:
    model, steerer = tiny.model(), entry.load()()
    check_restored(model.module, lambda: steerer.fit(model, PAIRS))
    assert steerer.fit(model, PAIRS) is steerer
    assert steerer.about_["data"]["positive"] == len(PAIRS)


@each
def test_strength_zero_changes_no_bit(entry: Entry, model: Model, fitted: Any) -> None:
    bare = logits(model, [])
    assert torch.equal(logits(model, fitted[entry.name].edits(0.0)), bare)
    none = fitted[entry.name].edits(torch.zeros(len(PROMPTS)))
    assert torch.equal(logits(model, none), bare)


@each
def test_strength_one_changes_the_answer(entry: Entry, model: Model, fitted: Any) -> None:
    assert not torch.equal(logits(model, fitted[entry.name].edits(1.0)), logits(model, []))


@each
def test_each_row_has_its_own_strength(entry: Entry, model: Model, fitted: Any) -> None:
    """A batch of different strengths equals the same strengths one by one."""
    strengths = torch.tensor([0.0, 1.0, 0.4])
    together = logits(model, fitted[entry.name].edits(strengths))
    for i, strength in enumerate(strengths.tolist()):
        alone = logits(model, fitted[entry.name].edits(strength), [PROMPTS[i]])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-4)


@each
def test_a_saved_file_steers_the_same(
    entry: Entry, model: Model, fitted: Any, tmp_path: Path
) -> None:
    path = tmp_path / "edits.safetensors"
    fitted[entry.name].save(path, model, strength=0.7, note="kept")
    loaded = ak.load_edits(path, model)
    assert torch.equal(logits(model, loaded), logits(model, fitted[entry.name].edits(0.7)))
    said = edit_facts(path)["settings"]
    assert (said["method"], said["strength"], said["note"]) == (entry.name, 0.7, "kept")
    with pytest.raises(EditError, match="fitted on"):
        ak.load_edits(path, Model(tiny.gpt2(), tiny.tokenizer()))


@each
def test_it_steers_every_step_of_generate(entry: Entry, model: Model, fitted: Any) -> None:
    """Written tokens equal those of a loop in the user's own hands, under the same edits."""
    edits = fitted[entry.name].edits(1.0)
    written = model.generate(PROMPTS, edits=edits, max_new_tokens=6)
    batch = model.encode(PROMPTS).kwargs
    given = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with model.edited(edits), torch.no_grad():
        module: Any = model.module
        ids = module.generate(**given, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert written == model.tokenizer.batch_decode(ids[:, 7:], skip_special_tokens=True)
    again = model.generate(PROMPTS, edits=edits, max_new_tokens=6)
    assert again == written


@each
def test_it_composes_with_other_edits(entry: Entry, model: Model, fitted: Any) -> None:
    other = ak.add("resid_post.0", tiny.uneven(tiny.WIDTH), 0.5)
    own = fitted[entry.name].edits(1.0)
    both = logits(model, [other, *own])
    assert not torch.equal(both, logits(model, own))
    assert not torch.equal(both, logits(model, [other]))


@each
def test_fitting_again_gives_the_same(entry: Entry, model: Model, fitted: Any) -> None:
    again = entry.load()().fit(model, PAIRS)
    one, other = logits(model, again.edits(1.0)), logits(model, fitted[entry.name].edits(1.0))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@each
def test_copies_steer_the_same(entry: Entry, model: Model, fitted: Any) -> None:
    check_copies(fitted[entry.name], lambda made: logits(model, made.edits(1.0)))


@each
def test_it_must_be_fitted_first(entry: Entry) -> None:
    with pytest.raises(NotFittedError, match="fitted"):
        entry.load()().edits(1.0)


@each
@pytest.mark.parametrize("data", ["empty", "one-sided", "a text", "odd"])
def test_bad_examples_are_refused(entry: Entry, model: Model, data: str) -> None:
    given: Any = {
        "empty": [],
        "one-sided": {"positive": ["w1"], "negative": []},
        "a text": "w1 w2",
        "odd": [("w1", "w2", "w3")],
    }[data]
    with pytest.raises(InputError):
        entry.load()().fit(model, given)


@each
@pytest.mark.parametrize("strength", [float("nan"), float("inf"), torch.ones(2, 2)], ids=str)
def test_bad_strengths_are_refused(entry: Entry, fitted: Any, strength: Any) -> None:
    with pytest.raises(EditError, match="strength"):
        fitted[entry.name].edits(strength)


@each
def test_layers_can_be_chosen_after_fitting(entry: Entry, model: Model, fitted: Any) -> None:
    steerer = fitted[entry.name]
    if not hasattr(steerer, "layers"):
        with pytest.raises(InputError, match="itself"):
            steerer.at(1)
        return
    before = logits(model, steerer.edits(1.0))
    moved = steerer.at(0)
    assert not torch.equal(logits(model, moved.edits(1.0)), before)
    assert torch.equal(logits(model, steerer.edits(1.0)), before), "`at` changed the original"
    with pytest.raises(InputError, match="layers must be among"):
        steerer.at(99).edits(1.0)


@each
def test_half_precision(entry: Entry) -> None:
    model = tiny.model(torch.bfloat16)
    steerer = entry.load()().fit(model, PAIRS)
    found = logits(model, steerer.edits(1.0))
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()
