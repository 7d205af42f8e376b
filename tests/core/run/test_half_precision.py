"""In bfloat16 and float16 an edit is computed in float32 and rounded once; wider, as ever.

Shapes: B batch, T tokens, D width, J directions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.edits.controller import Controller, StrengthOperation
from actkit.core.edits.edit import Edit
from actkit.core.edits.operation import Operation
from actkit.core.edits.where import Where
from actkit.core.errors import EditError
from actkit.core.run.context import ForwardContext
from actkit.model import Model
from actkit.steer.controllers.lqr import Regulate
from actkit.steer.images.cross_attn_steer import TurnCrossAttention as Cross
from actkit.steer.maps._transport import Transport
from actkit.steer.maps.flexac import TurnAssociation as Flex
from actkit.steer.maps.gaussian_ot._low_rank import LowRankMap
from actkit.steer.vectors.control_vector import TurnState as Repeng
from actkit.steer.vectors.persona import Remove
from actkit.steer.vectors.vista import TurnTowardsEvidence as Vista
from tests.core import tiny

B, T, D = 3, 5, 48
V, W = tiny.uneven(D), tiny.uneven(D, seed=1)
M = torch.eye(D) + 0.3 * tiny.uneven(D, D, seed=2)
BASIS = torch.linalg.qr(torch.stack([V, W]).double().mT).Q.mT.float()
HALF = [torch.bfloat16, torch.float16]


def stream(dtype: torch.dtype) -> Tensor:
    """Values as a stream has them, with a massive channel on one token."""
    x = 3 * tiny.uneven(B, T, D, seed=3)
    x[0, 0, 7] = 9000.0
    return x.to(dtype)


def along(x: Tensor, u: Tensor) -> Tensor:
    return (x * u).sum(-1, keepdim=True)


U = V / V.norm()
OPERATIONS: dict[str, tuple[Edit, Callable[[Tensor], Tensor]]] = {
    "add": (ak.add("s", V, 0.3), lambda x: x + 0.3 * V),
    "scale by a number": (ak.scale("s", 0.3), lambda x: 0.3 * x),
    "scale units": (ak.scale("s", V), lambda x: V * x),
    "project out": (ak.project_out("s", V), lambda x: x - (x @ U[:, None]) @ U[None]),
    "project out two": (
        ak.project_out("s", torch.stack([V, W])),
        lambda x: x - (x @ BASIS.mT) @ BASIS,
    ),
    "clamp": (ak.clamp("s", -1.3, 2.7), lambda x: x.clamp(-1.3, 2.7)),
    "clamp along a direction": (
        ak.clamp("s", -1.3, 2.7, V),
        lambda x: x + (along(x, U).clamp(-1.3, 2.7) - along(x, U)) * U,
    ),
    "affine": (ak.affine("s", M, W), lambda x: torch.nn.functional.linear(x, M, W)),
}
each = pytest.mark.parametrize("name", OPERATIONS)


def written(edit: Edit, x: Tensor) -> Tensor:
    ready = Edit(edit.site, edit.operation.like(x, "BTD"), edit.where)
    return ready.write(x, ForwardContext())


@each
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_it_is_float32_rounded_once(name: str, dtype: torch.dtype) -> None:
    edit, formula = OPERATIONS[name]
    x = stream(dtype)
    new = written(edit, x)
    assert new.dtype == dtype
    wide = formula(x.float())
    # the order of a sum may move float32's last digit, and with it a tie of the rounding
    assert (new == wide.to(dtype)).float().mean() > 0.995
    torch.testing.assert_close(new.float(), wide, rtol=torch.finfo(dtype).eps, atol=4e-3)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wider_dtypes_are_computed_in_themselves(name: str, dtype: torch.dtype) -> None:
    edit, x = OPERATIONS[name][0], stream(dtype)
    operation = edit.operation.like(x, "BTD")
    assert all(t.dtype == dtype for t in operation.tensors().values())
    assert torch.equal(written(edit, x), operation(x))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_projection_leaves_what_rounding_leaves(dtype: torch.dtype) -> None:
    """The control, a basis and sums in half precision, leaves many times more."""
    x = (stream(torch.float32) + 3000 * U).to(dtype)
    u = U.double()
    left = (written(ak.project_out("s", V), x).double() @ u).abs()
    best = ((x.double() - (x.double() @ u)[..., None] * u).to(dtype).double() @ u).abs()
    basis = U.to(dtype)[None]
    crude = ((x - (x @ basis.mT) @ basis).double() @ u).abs()
    torch.testing.assert_close(left, best, rtol=1e-3, atol=2e-2)
    assert crude.max() > 3 * left.max()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_directions_in_half_precision_keep_their_span(dtype: torch.dtype) -> None:
    v = V.to(dtype)
    (basis,) = ak.project_out("s", v).operation.tensors().values()
    assert basis.dtype == torch.float32
    torch.testing.assert_close(basis[0].abs(), (v.float() / v.float().norm()).abs())
    direction = ak.clamp("s", 0, 1, v).operation.tensors()["direction"]
    torch.testing.assert_close(direction, v.float() / v.float().norm())


S: Any = torch.tensor([0.0, 0.7, -1.1])
STEERED: dict[str, Callable[[Any], Operation]] = {
    "remove": lambda s: Remove(BASIS, strength=s),
    "low rank": lambda s: LowRankMap(BASIS, BASIS.flip(1), W, V, strength=s),
    "repeng": lambda s: Repeng(V, strength=s),
    "cross": lambda s: Cross(U, threshold=0.1, strength=s),
    "flex": lambda s: Flex(V, True, strength=s),
    "regulate": lambda s: Regulate(V, W, BASIS, strength=s),
    "transport": lambda s: Transport(V, W, strength=s),
    "vista": lambda s: Vista(V, strength=s),
}


@pytest.mark.parametrize("name", STEERED)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_operations_of_methods_are_wide_too(name: str, dtype: torch.dtype) -> None:
    operation, x = STEERED[name](S), stream(dtype)
    new = written(Edit("s", operation), x)
    wide = operation.like(x.float(), "BTD")(x.float())
    assert new.dtype == dtype
    assert torch.equal(new, wide.to(dtype))
    assert not torch.equal(new[1:], x[1:])


@pytest.mark.parametrize("name", STEERED)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_strength_zero_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    x = stream(dtype)
    assert torch.equal(written(Edit("s", STEERED[name](S)), x)[0], x[0])


@dataclass(frozen=True, eq=False)
class _Sum(StrengthOperation):
    """A method's own operation that never heard of half precision."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.dose(x) * x.sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class _Remember(Controller):
    """A controller that leaves even steps alone."""

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        memory["dtype"] = x.dtype
        return x if memory.setdefault("calls", 0) % 2 == 0 else x + 1


def test_an_operation_from_outside_and_a_controller_that_rests() -> None:
    x = stream(torch.bfloat16)
    new = written(Edit("s", _Sum(strength=0.01)), x)
    assert torch.equal(new, (x.float() + 0.01 * x.float().sum(-1, keepdim=True)).bfloat16())
    context = ForwardContext()
    assert Edit("s", _Remember(key="k")).write(x, context) is x
    assert context.memory["k"]["dtype"] == torch.float32


def test_functions_values_and_recordings_keep_the_sites_dtype() -> None:
    x, seen = stream(torch.bfloat16), []

    def keep(y: Tensor) -> Tensor:
        seen.append(y.dtype)
        return y * 2

    assert torch.equal(written(ak.apply("s", keep), x), x * 2)
    assert seen == [torch.bfloat16]
    assert torch.equal(written(ak.set("s", V), x)[1, 2], V.bfloat16())


def test_what_the_site_cannot_hold_is_still_refused() -> None:
    with pytest.raises(EditError, match=r"finite in its site's torch.float16"):
        written(ak.add("s", 1e6 * V), stream(torch.float16))


@pytest.mark.parametrize("where", [Where(), Where(tokens=[0, 2]), Where(rows=1, units=[3, 9])])
def test_in_a_run_it_is_a_hook_that_computes_in_float32(where: Where) -> None:
    model = tiny.model(torch.bfloat16)
    edit = ak.add("resid_post.1", torch.tensor(1.7), 1.0, where) if where.units else None
    edit = edit or ak.project_out("resid_post.1", V, where)
    rec = model.run(tiny.PROMPTS[:2], record="resid_post.1", edits=[edit])
    plain = model.run(tiny.PROMPTS[:2], record="resid_post.1")
    x = plain["resid_post.1"]
    new = x.float() + 1.7 if where.units else x.float() - (x.float() @ U)[..., None] * U
    meant = torch.ones_like(x, dtype=torch.bool)
    if where.units:
        meant = torch.zeros_like(meant)
        meant[1, :, [3, 9]] = True
    elif where.tokens != "all":
        position = plain.rows.position[..., None]
        meant = ((position == 0) | (position == 2)) & plain.rows.valid[..., None] & meant
    want = torch.where(meant, new.bfloat16(), x)
    assert (rec["resid_post.1"] == want).float().mean() > 0.998
    torch.testing.assert_close(rec["resid_post.1"], want)
    untouched = rec["resid_post.1"][~meant]
    assert torch.equal(untouched, x[~meant])


def test_gradients_pass_through_the_rounding() -> None:
    model = tiny.model(torch.bfloat16)
    v = V.clone().requires_grad_()
    rec = model.run("w1 w2 w3", edits=[ak.add("resid_post.1", v)], logits=True, grad=True)
    (grad,) = torch.autograd.grad(rec.logits.float().square().sum(), v)
    assert grad.dtype == torch.float32 and grad.any()


def test_a_massive_direction_is_gone_from_a_real_stream() -> None:
    """The residue is what rounding float32 once to bfloat16 leaves, to the bit."""
    m: Model = ak.open("smollm2", dtype="bfloat16")
    text, site = "It was the best of times, it was the worst of times.", "resid_post.20"
    x = m.run(text, record=site)[site]
    u = torch.nn.functional.normalize(x[0, 0].float(), dim=-1)
    new = m.run(text, record=site, edits=[ak.project_out(site, x[0, 0])])[site]
    wide = x.float() - (x.float() @ u)[..., None] * u
    torch.testing.assert_close(new, wide.bfloat16(), rtol=2**-7, atol=2e-2)
    left, before = ((y.double() @ u.double()).abs().max() for y in (new, x))
    basis = u.bfloat16()[None]
    crude = ((x - (x @ basis.mT) @ basis).double() @ u.double()).abs().max()
    assert before > 10_000 and left < 0.5
    assert crude > 20 * left
