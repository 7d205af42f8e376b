"""Operations with a strength for each row, and operations with a memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.edits.controller import Controller, SideRun, StrengthOperation
from actkit.core.edits.where import Where
from actkit.core.errors import DataError, EditError
from actkit.core.run.context import ForwardContext
from actkit.model import Model
from tests.core import tiny

PROMPTS = tiny.PROMPTS
VECTOR = tiny.uneven(tiny.WIDTH)


@dataclass(frozen=True, eq=False)
class Pull(StrengthOperation):
    """Move towards a point."""

    point: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return x + s (point - x)."""
        return x + self.dose(x) * (self.point - x)


@dataclass(frozen=True, eq=False)
class Watch(Controller):
    """Keep the last token's state."""

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Return x, unchanged."""
        memory["seen"] = x[:, -1:]
        return x


@dataclass(frozen=True, eq=False)
class Echo(Controller):
    """Add what the watcher saw, and count the steps of each row."""

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Return x + s seen."""
        STEPS.append((memory.get("steps", 0), context.step, len(x)))
        memory["steps"] = memory.get("steps", 0) + 1
        seen: Tensor = memory["seen"]
        return x + self.dose(x) * seen


@dataclass(frozen=True, eq=False)
class Look(Controller):
    """Add a vector beside only, and keep the logits that it leads to."""

    vector: Tensor

    def before(self, beside: SideRun, memory: dict[str, Any], context: ForwardContext) -> None:
        """Run twice beside: as it is, and with the vector."""
        memory["on"] = False
        plain = beside.logits("plain")
        memory["on"] = True
        LOGITS.append((plain, beside.logits("steered")))
        memory["on"] = False

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Return x, with the vector if it is the run beside."""
        return x + self.vector.to(x) if memory["on"] else x


STEPS: list[tuple[int, int, int]] = []
LOGITS: list[tuple[Tensor, Tensor]] = []


@pytest.fixture
def model() -> Model:
    STEPS.clear()
    LOGITS.clear()
    return tiny.model()


def logits(model: Model, edits: Any, prompts: Any = PROMPTS) -> Tensor:
    found = model.run(prompts, edits=edits, logits=True).logits
    assert found is not None
    return found[:, -1]


def test_each_row_has_its_own_dose(model: Model) -> None:
    doses = torch.tensor([0.0, 1.0, 0.3])
    rec = model.run(
        PROMPTS, ["resid_post.1"], [ak.Edit("resid_post.1", Pull(VECTOR, strength=doses))]
    )
    bare = model.run(PROMPTS, ["resid_post.1"])["resid_post.1"]
    expected = bare + doses[:, None, None] * (VECTOR - bare)
    torch.testing.assert_close(rec["resid_post.1"], expected)


def test_doses_with_rows_and_units_chosen(model: Model) -> None:
    doses = torch.tensor([0.5, 1.0, 0.3])
    edit = ak.Edit("resid_post.1", Pull(VECTOR, strength=doses), Where(rows=[2, 0], units=[1, 5]))
    found = model.run(PROMPTS, ["resid_post.1"], [edit])["resid_post.1"]
    bare = model.run(PROMPTS, ["resid_post.1"])["resid_post.1"]
    expected = bare.clone()
    for row in (0, 2):
        for unit in (1, 5):
            own = bare[row, :, unit]
            expected[row, :, unit] = own + doses[row] * (VECTOR[unit] - own)
    torch.testing.assert_close(found, expected)


def test_a_dose_of_zero_is_not_even_installed(model: Model) -> None:
    for dose in (0.0, torch.zeros(3)):
        edit = ak.Edit("resid_post.1", Pull(VECTOR, strength=dose))
        assert torch.equal(logits(model, [edit]), logits(model, []))


@dataclass(frozen=True, eq=False)
class Above(StrengthOperation):
    """Pull up what is lower than a bound, which may be infinite."""

    boundless = frozenset({"low"})
    low: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return max(x, low)."""
        return torch.maximum(x, self.low)


def test_infinite_bounds_are_kept_in_half_precision_and_in_a_file(tmp_path: Path) -> None:
    low = torch.full((tiny.WIDTH,), -torch.inf)
    low[3] = 50.0
    edits = [ak.Edit("resid_post.1", Above(low))]
    ak.save_edits(tmp_path / "e.safetensors", edits)
    for own in (edits, ak.load_edits(tmp_path / "e.safetensors")):
        rec = tiny.model(torch.bfloat16).run(PROMPTS[0], ["resid_post.1"], own)
        assert (rec["resid_post.1"][..., 3] == 50).all()
        assert rec["resid_post.1"].isfinite().all()


def pair(strength: float | Tensor = 0.5, key: str = "pair") -> list[ak.Edit]:
    return [
        ak.Edit("resid_post.0", Watch(key=key), Where(tokens="last")),
        ak.Edit("resid_post.2", Echo(strength=strength, key=key), Where(tokens="last")),
    ]


def test_one_watches_and_another_acts(model: Model) -> None:
    seen = model.run(PROMPTS, ["resid_post.0"])["resid_post.0"][:, -1]
    bare = model.run(PROMPTS, ["resid_post.2"])["resid_post.2"]
    found = model.run(PROMPTS, ["resid_post.2"], pair())["resid_post.2"]
    torch.testing.assert_close(found[:, -1], bare[:, -1] + 0.5 * seen)
    assert torch.equal(found[:, :-1], bare[:, :-1])


def test_memory_lasts_a_generation_and_no_longer(model: Model) -> None:
    for _ in range(2):
        STEPS.clear()
        model.generate(PROMPTS, edits=pair(), max_new_tokens=4)
        assert STEPS == [(0, 0, 3), (1, 1, 3), (2, 2, 3), (3, 3, 3)]
    STEPS.clear()
    with model.edited(pair()), torch.no_grad():
        for _ in range(2):
            model.module(**model.encode(PROMPTS).kwargs)
    assert STEPS == [(0, 0, 3), (0, 0, 3)]


def test_controllers_of_two_keys_do_not_meet(model: Model) -> None:
    model.generate(PROMPTS, edits=[*pair(key="a"), *pair(key="b")], max_new_tokens=2)
    assert STEPS == [(0, 0, 3), (0, 0, 3), (1, 1, 3), (1, 1, 3)]


def test_rows_of_a_batch_do_not_meet(model: Model) -> None:
    doses = torch.tensor([0.5, 0.0, -0.4])
    together = logits(model, pair(doses))
    for i, dose in enumerate(doses.tolist()):
        alone = logits(model, pair(dose), [PROMPTS[i]])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-5, atol=1e-5)


def test_variants_of_a_sweep_have_memories_of_their_own(model: Model) -> None:
    variants = [pair(0.5), pair(-0.4), []]
    swept = model.sweep(PROMPTS, variants, lambda found: found[:, -1, 7], batch=9)
    alone = torch.stack([logits(model, v)[:, 7] for v in variants])
    torch.testing.assert_close(swept, alone, rtol=1e-5, atol=1e-5)


def test_looking_ahead_equals_runs_of_their_own(model: Model) -> None:
    """Every step's logits beside equal those of separate generations on the same tokens."""
    look = [ak.Edit("resid_post.1", Look(VECTOR, key="look"))]
    bare = model.generate(PROMPTS, max_new_tokens=4)
    assert model.generate(PROMPTS, edits=look, max_new_tokens=4) == bare
    assert len(LOGITS) == 4
    written = [[int(w[1:]) for w in text.split()] for text in bare]
    for step, (plain, steered) in enumerate(LOGITS):
        texts = [
            " ".join([p, *(f"w{t}" for t in own[:step])])
            for p, own in zip(PROMPTS, written, strict=True)
        ]
        torch.testing.assert_close(plain, logits(model, [], texts), rtol=1e-4, atol=1e-4)
        expected = logits(model, [ak.add("resid_post.1", VECTOR)], texts)
        torch.testing.assert_close(steered, expected, rtol=1e-4, atol=1e-4)


def test_looking_ahead_is_neither_read_nor_counted(model: Model) -> None:
    look = [ak.Edit("resid_post.1", Look(VECTOR, key="look")), *pair()]
    rec = model.run(PROMPTS, ["resid_pre.0", "resid_post.2"], look)
    expected = model.run(PROMPTS, ["resid_pre.0", "resid_post.2"], pair())
    for site in rec:
        assert torch.equal(rec[site], expected[site])


def test_looking_ahead_is_refused_in_a_sweep(model: Model) -> None:
    look = [ak.Edit("resid_post.1", Look(VECTOR, key="look"))]
    with pytest.raises(EditError, match=r"Look at resid_post\.1"):
        model.sweep(PROMPTS, [look, []], lambda found: found[:, -1, 7])


def test_a_controller_needs_a_run() -> None:
    with pytest.raises(EditError, match="in a run"):
        Watch(key="x")(torch.zeros(1, 1, 3))


def test_operations_of_other_modules_are_saved(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "edits.safetensors"
    edits = [ak.Edit("resid_post.1", Pull(VECTOR, strength=0.7)), *pair()]
    ak.save_edits(path, edits)
    loaded = ak.load_edits(path)
    assert torch.equal(logits(model, loaded), logits(model, edits))
    data = path.read_bytes().replace(b"actkit_sha256", b"no_seal_at_al")
    path.write_bytes(data.replace(b"test_controller:Pull", b"test_controller:Pulp"))
    with pytest.raises(DataError, match="unknown operation"):
        ak.load_edits(path)


def test_a_file_cannot_name_code_that_is_no_operation(tmp_path: Path) -> None:
    path = tmp_path / "edits.safetensors"
    ak.save_edits(path, [ak.Edit("resid_post.1", Pull(VECTOR))])
    data = path.read_bytes().replace(b"actkit_sha256", b"no_seal_at_al")
    own = f"{Pull.__module__}:Pull".encode()
    evil = b"os:system".ljust(len(own))
    path.write_bytes(data.replace(own, evil))
    with pytest.raises(DataError, match="unknown operation"):
        ak.load_edits(path)


def test_a_strength_that_drives_logits_to_nan_is_named(model: Model) -> None:
    edits = [ak.add("resid_post.0", VECTOR, 0.1), ak.add("resid_post.1", VECTOR, 1e39)]
    for call in (
        lambda: model.generate(PROMPTS, edits=edits, max_new_tokens=3),
        lambda: model.run(PROMPTS, edits=edits, logits=True),
    ):
        with pytest.raises(EditError, match=r"NaN at step 0 in row 0.* at resid_post\.1"):
            call()
    late = [ak.add("resid_post.1", VECTOR, 1e39, Where(steps=2))]
    with pytest.raises(EditError, match=r"NaN at step 2 in row 0.* at resid_post\.1"):
        model.generate(PROMPTS, edits=late, max_new_tokens=4)
    assert model.generate(PROMPTS, max_new_tokens=3)
