"""Operations against float64 brute force; strengths, batches and order; what is refused.

Shapes: B batch, T tokens, D width, H heads, K head width, J directions.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import actkit as ak
from actkit.core.edits.edit import Edit
from actkit.core.errors import EditError, SiteError
from actkit.core.run.context import ForwardContext
from actkit.model import Model
from tests.core import tiny

B, T, D = 3, 5, 7
X_BTD = tiny.uneven(B, T, D, dtype=torch.float64)
V_D = tiny.uneven(D, seed=1, dtype=torch.float64)
V_BD = tiny.uneven(B, D, seed=2, dtype=torch.float64)
V_BTD = tiny.uneven(B, T, D, seed=3, dtype=torch.float64)
M_DD = tiny.uneven(D, D, seed=4, dtype=torch.float64)
TWO_JD = tiny.uneven(2, D, seed=5, dtype=torch.float64)


def brute(row: Callable[[int, int, Tensor], Tensor]) -> Tensor:
    """Apply a rule (b, t, x_D) to each row in turn."""
    return torch.stack([torch.stack([row(b, t, X_BTD[b, t]) for t in range(T)]) for b in range(B)])


def without_span(x_D: Tensor, directions: Tensor) -> Tensor:
    """Return what least squares cannot explain by the directions."""
    directions_JD = directions.reshape(-1, D)
    fit_J = np.linalg.lstsq(directions_JD.T.numpy(), x_D.numpy(), rcond=None)[0]
    return x_D - directions_JD.T @ torch.from_numpy(fit_J)


def along(x_D: Tensor) -> Tensor:
    """Return x with its coordinate along V_D kept in [-0.5, 1]."""
    unit = V_D / math.sqrt(sum(float(v) ** 2 for v in V_D))
    c = sum(float(a * b) for a, b in zip(x_D, unit, strict=True))
    return x_D + (min(max(c, -0.5), 1.0) - c) * unit


CASES: dict[str, tuple[Edit, Callable[[int, int, Tensor], Tensor]]] = {
    "add D": (ak.add("s", V_D, 1.7), lambda b, t, x: x + 1.7 * V_D),
    "add BD": (ak.add("s", V_BD, -2), lambda b, t, x: x - 2 * V_BD[b]),
    "add BTD": (ak.add("s", V_BTD), lambda b, t, x: x + V_BTD[b, t]),
    "add with strengths": (
        ak.add("s", V_D, torch.tensor([1.0, 0.0, -3.0])),
        lambda b, t, x: x + [1, 0, -3][b] * V_D,
    ),
    "set number": (ak.set("s", 2.5), lambda b, t, x: torch.full_like(x, 2.5)),
    "set D": (ak.set("s", V_D), lambda b, t, x: V_D),
    "set BD": (ak.set("s", V_BD), lambda b, t, x: V_BD[b]),
    "set BTD": (ak.set("s", V_BTD), lambda b, t, x: V_BTD[b, t]),
    "scale number": (ak.scale("s", -0.5), lambda b, t, x: -0.5 * x),
    "scale D": (ak.scale("s", V_D), lambda b, t, x: V_D * x),
    "scale rows": (ak.scale("s", V_BD[:, :1]), lambda b, t, x: V_BD[b, 0] * x),
    "project_out D": (ak.project_out("s", 3 * V_D), lambda b, t, x: without_span(x, V_D)),
    "project_out JD": (ak.project_out("s", TWO_JD), lambda b, t, x: without_span(x, TWO_JD)),
    "project_out dependent": (
        ak.project_out("s", torch.stack([V_D, -2 * V_D, TWO_JD[0]])),
        lambda b, t, x: without_span(x, torch.stack([V_D, TWO_JD[0]])),
    ),
    "clamp": (
        ak.clamp("s", -0.1, 0.6),
        lambda b, t, x: torch.tensor([min(max(float(v), -0.1), 0.6) for v in x]).double(),
    ),
    "clamp direction": (ak.clamp("s", -0.5, 1.0, 2 * V_D), lambda b, t, x: along(x)),
    "affine": (
        ak.affine("s", M_DD, V_D),
        lambda b, t, x: torch.stack([sum(M_DD[i] * x) + V_D[i] for i in range(D)]),
    ),
    "apply": (ak.apply("s", lambda x: x.flip(-1)), lambda b, t, x: x.flip(0)),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_equal_brute_force(name: str) -> None:
    edit, rule = CASES[name]
    kept_BTD = X_BTD.clone()
    edit = Edit("s", edit.operation.like(X_BTD, "BTD"), edit.where)
    want_BTD = brute(rule)
    got_BTD = edit.write(X_BTD, ForwardContext())
    atol = 1e-7 if name == "clamp" else 1e-12
    assert_close(got_BTD, want_BTD, rtol=0, atol=atol)
    assert torch.equal(X_BTD, kept_BTD)
    assert not torch.allclose(got_BTD, X_BTD)


def test_project_out_of_dependent_directions_keeps_the_rest() -> None:
    """Three directions of rank 2 in a space of 3 must leave one dimension."""
    edit = ak.project_out("s", torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [1.0, 1.0, 0]]))
    x_BTD = torch.tensor([[[3.0, 4.0, 5.0]]])
    assert_close(edit.operation(x_BTD), torch.tensor([[[0.0, 0.0, 5.0]]]))


def test_values_handed_on_are_copies() -> None:
    """A network that overwrites its input must not reach an edit's own tensors."""
    value_BTD = V_BTD.clone()
    for edit in (ak.set("s", value_BTD), ak.set("s", 1.0), ak.apply("s", lambda x: x)):
        edit.write(X_BTD.clone(), ForwardContext()).mul_(0)
    assert torch.equal(value_BTD, V_BTD)
    given = X_BTD.clone()
    ak.apply("s", lambda x: x.mul_(2)).write(given, ForwardContext())
    assert torch.equal(given, X_BTD)


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


SITE, VECTOR = "resid_post.1", tiny.uneven(tiny.WIDTH, seed=6)


def logits(m: Model, *edits: Edit, inputs: Any = tiny.PROMPTS) -> Tensor:
    found = m.run(inputs, edits=edits, logits=True).logits
    assert found is not None
    return found


@pytest.mark.parametrize("site", ["resid_post.1", "z.0", "attn_probs.1", "attn_scores.2", "q.1.3"])
def test_strength_zero_changes_no_bit(m: Model, site: str) -> None:
    plain = logits(m)
    width = 7 if "attn" in site else (8 if site[0] in "zq" else tiny.WIDTH)
    vector = tiny.uneven(width, seed=7)
    for edit in (ak.add(site, vector, 0), ak.add(site, vector, torch.zeros(3)), ak.scale(site, 1)):
        assert torch.equal(logits(m, edit), plain)
    assert not torch.equal(logits(m, ak.scale(site, 0.5)), plain)


def test_neutral_edits_still_name_unknown_sites(m: Model) -> None:
    with pytest.raises(SiteError, match="unknown site"):
        m.run("w1", edits=[ak.scale("resid_past.1", 1)])


def test_a_batch_of_different_edits_equals_them_one_by_one(m: Model) -> None:
    vectors_BD, strengths_B = tiny.uneven(3, tiny.WIDTH, seed=8), torch.tensor([0.5, -2.0, 3.0])
    one_by_one = [
        logits(m, ak.add(SITE, v, float(s)), inputs=p)[0]
        for v, s, p in zip(vectors_BD, strengths_B, tiny.PROMPTS, strict=True)
    ]
    by_strength = logits(m, ak.add(SITE, vectors_BD, strengths_B))
    by_rows = logits(
        m,
        *[
            ak.add(SITE, v, float(s), ak.Where(rows=i))
            for i, (v, s) in enumerate(zip(vectors_BD, strengths_B, strict=True))
        ],
    )
    for i, want in enumerate(one_by_one):
        assert_close(by_strength[i, -len(want) :], want, rtol=0, atol=1e-5)
        assert_close(by_rows[i, -len(want) :], want, rtol=0, atol=1e-5)


def test_edits_at_one_site_act_in_order(m: Model) -> None:
    add, double = ak.add(SITE, VECTOR), ak.scale(SITE, 2.0)
    plain = m.run(tiny.PROMPTS, record=SITE)[SITE]
    first = m.run(tiny.PROMPTS, record=SITE, edits=[add, double])[SITE]
    second = m.run(tiny.PROMPTS, record=SITE, edits=[double, add])[SITE]
    assert_close(first, (plain + VECTOR) * 2)
    assert_close(second, plain * 2 + VECTOR)


@pytest.mark.parametrize("other", ["model.layers.1:out", "blocks.1.hook_resid_post"])
def test_order_holds_when_one_tensor_has_several_names(m: Model, other: str) -> None:
    edits = [ak.add(SITE, VECTOR), ak.scale(other, 2.0), ak.clamp(SITE, -1.0, 1.0)]
    plain = m.run(tiny.PROMPTS, record=SITE)[SITE]
    rec = m.run(tiny.PROMPTS, record=[SITE, other], edits=edits)
    want = ((plain + VECTOR) * 2).clamp(-1, 1)
    assert_close(rec[SITE], want)
    assert_close(rec[other], want)


def test_order_holds_between_a_site_and_one_of_its_heads(m: Model) -> None:
    edits = [ak.set("z.1", 1.0), ak.scale("z.1.3", 5.0), ak.add("z.1", torch.ones(8))]
    rec = m.run(tiny.PROMPTS, record=["z.1", "z.1.3", "z.1.4"], edits=edits)
    assert_close(rec["z.1.3"], torch.full((3, 7, 8), 6.0))
    assert_close(rec["z.1.4"], torch.full((3, 7, 8), 2.0))
    assert_close(rec["z.1"][:, :, 3], rec["z.1.3"])


def test_a_pattern_edits_every_site_that_it_means(m: Model) -> None:
    rec = m.run("w1 w2", record="resid_post.*", edits=[ak.set("resid_post.*", VECTOR)])
    assert len(rec) == tiny.LAYERS
    for site in rec:
        assert_close(rec[site], VECTOR.expand(1, 2, -1))


def test_swap_puts_in_another_run(m: Model) -> None:
    other = m.run(["w31 w32 w33"] * 3, record=["resid_post.*", "z.*", "attn_probs.0"])
    prompts = ["w1 w2 w3", "w4 w5 w6", "w7 w8 w9"]
    end = f"resid_post.{tiny.LAYERS - 1}"
    assert torch.equal(
        logits(m, ak.swap(end, other), inputs=prompts), logits(m, inputs=["w31 w32 w33"] * 3)
    )
    for site in ("z.1", "attn_probs.0"):
        rec = m.run(prompts, record=site, edits=[ak.swap(site, other)])
        assert torch.equal(rec[site], other[site])


def test_swap_of_chosen_rows_takes_the_same_rows_of_the_recording(m: Model) -> None:
    other = m.run(["w31 w32 w33", "w41 w42 w43", "w51 w52 w53"], record=["resid_post.1", "z.1"])
    prompts = ["w1 w2 w3", "w4 w5 w6", "w7 w8 w9"]
    plain = m.run(prompts, record=["resid_post.1", "z.1"])
    rec = m.run(prompts, record=SITE, edits=[ak.swap(SITE, other, ak.Where(rows=[2, 0]))])
    assert torch.equal(rec[SITE], torch.stack([other[SITE][0], plain[SITE][1], other[SITE][2]]))
    where = ak.Where(rows=1, heads=[4, 1], units=[3], tokens=1)
    rec = m.run(prompts, record="z.1", edits=[ak.swap("z.1", other, where)])
    want = plain["z.1"].clone()
    want[1, 1, [4, 1], 3] = other["z.1"][1, 1, [4, 1], 3]
    assert torch.equal(rec["z.1"], want)


def test_tensors_may_be_sized_for_the_site_or_for_the_choice() -> None:
    x_BTHK = tiny.uneven(2, 3, 4, 5)
    for vector in (tiny.uneven(4, 5, seed=1), tiny.uneven(2, 5, seed=1), tiny.uneven(5, seed=1)):
        edit = ak.add("s", vector, where=ak.Where(heads=[3, 1]))
        want = x_BTHK.clone()
        for i, h in enumerate((3, 1)):
            own = vector if vector.dim() == 1 else vector[h if len(vector) == 4 else i]
            want[:, :, h] += own
        assert_close(edit.write(x_BTHK, ForwardContext()), want)
    x_BTD = tiny.uneven(2, 3, 6)
    for vector in (tiny.uneven(6, seed=2), tiny.uneven(2, seed=2)):
        edit = ak.add("s", vector, where=ak.Where(units=[5, 0]))
        want = x_BTD.clone()
        for i, u in enumerate((5, 0)):
            want[..., u] += vector[u if len(vector) == 6 else i]
        assert_close(edit.write(x_BTD, ForwardContext()), want)


def test_half_precision_networks_take_float32_vectors() -> None:
    m = tiny.model(torch.bfloat16)
    rec = m.run(tiny.PROMPTS, record=SITE, edits=[ak.set(SITE, VECTOR)])
    assert rec[SITE].dtype == torch.bfloat16
    assert torch.equal(rec[SITE][0, 0], VECTOR.bfloat16())


def test_a_network_in_another_precision_is_left_alone_by_strength_zero() -> None:
    m = tiny.model(torch.bfloat16)
    assert torch.equal(logits(m, ak.add(SITE, VECTOR, 0)), logits(m))


# ---- what is refused -----------------------------------------------------------------------


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN vector": (
        lambda: ak.add("s", torch.tensor([1.0, float("nan")])),
        r"finite, got 1 .* \(2,\)",
    ),
    "infinite value": (lambda: ak.set("s", float("inf")), "finite"),
    "NaN scale": (lambda: ak.add("s", V_D, float("nan")), "finite number, got nan"),
    "NaN factor": (lambda: ak.scale("s", float("nan")), "finite number, got nan"),
    "text factor": (lambda: ak.scale("s", "2"), "finite number, got '2'"),  # type: ignore[arg-type]
    "integer vector": (
        lambda: ak.add("s", torch.tensor([1, 2])),
        r"floating point, got torch.int64 .*\(2,\)",
    ),
    "complex vector": (
        lambda: ak.add("s", torch.tensor([1j])),
        "floating point, got torch.complex64",
    ),
    "zero direction": (lambda: ak.project_out("s", torch.zeros(4)), "must not be zero"),
    "zero clamp": (lambda: ak.clamp("s", 0, 1, torch.zeros(4)), "not zero"),
    "clamp matrix": (lambda: ak.clamp("s", 0, 1, torch.ones(2, 4)), r"one vector .* \(2, 4\)"),
    "empty clamp": (lambda: ak.clamp("s", 1, 0), "low <= high, got 1 and 0"),
    "NaN clamp": (lambda: ak.clamp("s", float("nan"), 0), "low <= high"),
    "oblong matrix": (lambda: ak.affine("s", torch.ones(2, 3)), r"square, got shape \(2, 3\)"),
    "no function": (lambda: ak.apply("s", 3), "needs a function, got int"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_numbers_are_refused_when_the_edit_is_made(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(EditError, match=message):
        make()


WRONG: dict[str, tuple[Edit, str]] = {
    "narrow add": (ak.add(SITE, torch.ones(3)), "resid_post.1 has width 48, the add has width 3"),
    "wide set": (ak.set(SITE, torch.ones(64)), "width 48, the set has width 64"),
    "narrow scale": (ak.scale(SITE, torch.ones(4)), "width 48, the scale has width 4"),
    "narrow project_out": (ak.project_out(SITE, torch.ones(5)), "the project_out has width 5"),
    "narrow affine": (ak.affine(SITE, torch.eye(4)), "width 48, the affine has width 4"),
    "narrow clamp": (ak.clamp(SITE, 0, 1, torch.ones(7)), "width 48, the clamp has width 7"),
    "narrow head": (ak.add("z.1.3", torch.ones(48)), "z.1.3 has width 8, the add has width 48"),
    "narrow units": (
        ak.affine(SITE, torch.eye(3), where=ak.Where(units=[0, 1])),
        "width 48 and 2 chosen units, the affine has width 3",
    ),
    "rows of another batch": (ak.add(SITE, torch.ones(2, 48)), r"broadcast .*\(3, 7, 48\), got"),
    "strengths of another batch": (
        ak.add(SITE, VECTOR, torch.ones(2)),
        r"one for each of 3 rows, got shape \(2,\)",
    ),
    "shape of a function": (ak.apply(SITE, lambda x: x[:, :1]), r"shape \(3, 7, 48\), got .*1, 48"),
    "dtype of a function": (
        ak.apply(SITE, lambda x: x.double()),
        "torch.float32 .* got torch.float64",
    ),
    "function returns none": (ak.apply(SITE, lambda x: None), "got NoneType"),  # type: ignore[arg-type, return-value]
}


@pytest.mark.parametrize("name", WRONG)
def test_edits_that_do_not_fit_are_refused_where_they_are_used(m: Model, name: str) -> None:
    edit, message = WRONG[name]
    with tiny.untouched(m.module), pytest.raises(EditError, match=message):
        m.run(tiny.PROMPTS, record="resid_post.2", edits=[edit])


def test_a_recording_of_another_shape_is_refused(m: Model) -> None:
    other = m.run("w1 w2", record=SITE)
    with pytest.raises(EditError, match=r"the run has \(3, 7, 48\), the recording \(1, 2, 48\)"):
        m.run(tiny.PROMPTS, edits=[ak.swap(SITE, other)])
    with pytest.raises(SiteError, match=r"was not recorded; recorded: resid_post\.1"):
        ak.swap("resid_post.2", other)


def test_a_vector_that_overflows_in_the_networks_dtype_is_refused() -> None:
    m = tiny.model(torch.float16)
    with pytest.raises(EditError, match=r"finite in its site's torch\.float16, .* 1e\+06"):
        m.run("w1", edits=[ak.add(SITE, torch.full((48,), 1e6))])
