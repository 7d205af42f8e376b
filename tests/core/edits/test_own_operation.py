"""Operations that are defined here, in one file, do all that the core's own do."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.edits.edit import Edit
from actkit.core.edits.operation import AffineForm, Operation
from actkit.core.edits.where import Where
from actkit.core.errors import EditError
from actkit.core.sweep.derivative import derivative
from actkit.export.llama_cpp import load_vectors, save_gguf
from actkit.export.lower import bake, save_peft
from actkit.model import Model
from tests.core import tiny

V, W = tiny.uneven(tiny.WIDTH), tiny.uneven(tiny.WIDTH, seed=5)
ODD = [[7, 3, 11, 2, 5], [60, 4]]


@dataclass(frozen=True, eq=False)
class Shear(Operation):
    """Add what points along one vector along another, `amount` times, and a constant."""

    identifier: ClassVar[str] = "test_own_operation.shear"
    tokenwise: ClassVar[bool] = True
    read: Tensor
    write: Tensor
    shift: Tensor
    amount: float | Tensor = 0.1

    def __call__(self, x: Tensor) -> Tensor:
        """Return x + amount (x . read) write + shift."""
        return x + self.amount * (x * self.read).sum(-1, keepdim=True) * self.write + self.shift

    def affine_form(self) -> AffineForm:
        """Return the form of I + amount write read^T, and a shift."""
        turned = replace(self, read=self.write, write=self.read)
        return AffineForm("any", constant=True, transposed=turned)

    def scaled(self, factor: float | Tensor) -> Self:
        """Return the operation with a larger amount and shift."""
        return replace(self, amount=self.amount * factor, shift=self.shift * factor)


@dataclass(frozen=True, eq=False)
class Nudge(Operation):
    """Add two vectors."""

    identifier: ClassVar[str] = "test_own_operation.nudge"
    one: Tensor
    other: Tensor
    by: float | Tensor = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return x + by (one + other)."""
        by = self.by
        by = by.reshape(-1, 1, 1) if isinstance(by, Tensor) and by.dim() else by
        return x + by * (self.one + self.other)

    def affine_form(self) -> AffineForm:
        """Return the form of a constant."""
        return AffineForm("identity", constant=True)


@dataclass(frozen=True, eq=False)
class Flip(Operation):
    """Turn the sign of every second unit."""

    identifier: ClassVar[str] = "test_own_operation.flip"

    def __call__(self, x: Tensor) -> Tensor:
        """Return x, -x, x, ..."""
        return x * (1 - 2 * (torch.arange(x.shape[-1], device=x.device) % 2))

    def affine_form(self) -> AffineForm:
        """Return the form of signs."""
        return AffineForm("diagonal")


@dataclass(frozen=True, eq=False)
class Forget(Operation):
    """Empty the first units."""

    identifier: ClassVar[str] = "test_own_operation.forget"
    units: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return x without its first units."""
        return torch.cat([torch.zeros_like(x[..., : self.units]), x[..., self.units :]], -1)

    def affine_form(self) -> AffineForm:
        """Return the form of a projection."""
        return AffineForm("projection")


@dataclass(frozen=True, eq=False)
class Liar(Flip):
    """Says that it is a diagonal map, and is none."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return x times its length."""
        longer: Tensor = x * x.norm(dim=-1, keepdim=True)
        return longer


SHEAR = Shear(V, W, tiny.uneven(tiny.WIDTH, seed=6))
STREAM = ["resid_pre.*", "resid_mid.*", "resid_post.*"]
EDITS: dict[str, list[Edit]] = {
    "a map that is written": [Edit("mlp_out.1", SHEAR)],
    "a map that is read": [Edit("mlp_in.1", SHEAR)],
    "signs": [Edit("mlp_out.1", Flip(), Where(units=slice(3, 40)))],
    "a constant in the stream": [Edit("resid_post.1", Nudge(V, W, 0.5))],
}
each = pytest.mark.parametrize("name", EDITS)


def logits(model: Model, edits: Any = ()) -> Tensor:
    rec = model.run(ODD, edits=edits, logits=True)
    return rec.logits[rec.rows.valid]


def loaded(edits: list[Edit], path: Path) -> list[Edit]:
    ak.save_edits(path, edits)
    return ak.load_edits(path)


@each
def test_it_is_saved_loaded_and_baked(name: str, tmp_path: Path) -> None:
    model, edits = tiny.model(), loaded(EDITS[name], tmp_path / "e")
    expected = logits(model, EDITS[name])
    assert torch.equal(logits(model, edits), expected)
    torch.testing.assert_close(logits(bake(model, edits)), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits(model)).abs().max() > 1e-2


@each
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
def test_it_is_exported_as_an_adapter(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tiny.model()
    save_peft(tmp_path / "adapter", model, EDITS[name])
    adapted = Model(peft.PeftModel.from_pretrained(tiny.llama(), tmp_path / "adapter"))
    torch.testing.assert_close(logits(adapted), logits(model, EDITS[name]), rtol=1e-4, atol=1e-4)


def test_signs_go_into_the_gain_of_a_norm() -> None:
    model, edits = tiny.model(), [Edit("model.layers.1.post_attention_layernorm:out", Flip())]
    torch.testing.assert_close(
        logits(bake(model, edits)), logits(model, edits), rtol=1e-4, atol=1e-4
    )


def test_a_projection_of_the_whole_stream_goes_into_what_writes_to_it() -> None:
    model, edits = tiny.model(), [Edit(site, Forget(7)) for site in STREAM]
    baked = bake(model, edits)
    torch.testing.assert_close(logits(baked), logits(model, edits), rtol=1e-4, atol=1e-4)
    assert not baked.run(ODD, "resid_post.2")["resid_post.2"][..., :7].any()
    other = [*edits[:-1], Edit(STREAM[-1], Forget(8))]
    with pytest.raises(EditError, match="comes by other ways than one map"):
        bake(model, other)


def test_what_says_wrongly_that_it_is_a_map_is_found_out() -> None:
    with pytest.raises(EditError, match="must do what the edits do"):
        bake(tiny.model(), [Edit("mlp_out.1", Liar())])


def test_it_is_exported_as_a_control_vector(tmp_path: Path) -> None:
    save_gguf(tmp_path / "v.gguf", tiny.model(), [Edit("resid_post.1", Nudge(V, W, 0.5))])
    (edit,) = load_vectors(tmp_path / "v.gguf")
    torch.testing.assert_close(edit.operation.tensors()["vector"], 0.5 * (V + W))
    with pytest.raises(EditError, match=r"holds add at resid_post\.n, got shear"):
        save_gguf(tmp_path / "w.gguf", tiny.model(), [Edit("resid_post.1", SHEAR)])


def test_it_is_turned_up() -> None:
    (edit,) = ak.steer.rescaled([Edit("resid_post.1", SHEAR)], 2.0)
    x = tiny.uneven(2, 3, tiny.WIDTH)
    torch.testing.assert_close(edit.operation(x) - x, 2 * (SHEAR(x) - x))
    with pytest.raises(EditError, match=r"has a strength can be turned up, got flip at resid_post"):
        ak.steer.rescaled([Edit("resid_post.1", Flip())], 2.0)


# torch 2.15 scripts its own forward derivatives, by what it calls deprecated itself
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_its_derivative_by_the_strength() -> None:
    model = tiny.model()
    _, slope = derivative(model, ODD, lambda s: [Edit("resid_post.0", Nudge(V, W, s))], "logits")
    _, added = derivative(model, ODD, lambda s: [ak.add("resid_post.0", V + W, s)], "logits")
    torch.testing.assert_close(slope, added)
    assert added.any()
    with pytest.raises(EditError, match="needs edits that add, got shear"):
        derivative(model, ODD, lambda s: [Edit("resid_post.0", SHEAR)])


@dataclass(frozen=True, eq=False)
class Bounded(Operation):
    """Adds `by`, or nothing if it is None, though its default is 2."""

    identifier: ClassVar[str] = "test_own_operation.bounded"
    by: float | None = 2.0
    names: tuple[Any, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.by is None else x + self.by


def test_none_against_a_default_comes_back_as_none(tmp_path: Path) -> None:
    for by in (None, 2.0, 3.0):
        ak.save_edits(tmp_path / "e.st", [Edit("resid_post.0", Bounded(by, ("a", "b")))])
        (loaded,) = ak.load_edits(tmp_path / "e.st")
        assert isinstance(loaded.operation, Bounded)
        assert (loaded.operation.by, loaded.operation.names) == (by, ("a", "b"))


def test_a_tensor_inside_a_tuple_is_refused_in_a_line(tmp_path: Path) -> None:
    edit = Edit("resid_post.0", Bounded(1.0, (torch.ones(2),)))
    with pytest.raises(EditError, match="edits are saved as data"):
        ak.save_edits(tmp_path / "e.st", [edit])
