"""What every reading of several sites must hold, as `test_contract.py` does for one site."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.recording import Rows
from actkit.read._base import JointReading
from actkit.read.extreme_tokens import ExtremeTokens
from actkit.read.stream_dynamics import StreamDynamics
from actkit.read.voids import STREAM, Voids
from tests import contract
from tests.contract import acts, probs, rows
from tests.core import tiny

NUM = 37
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def stream(num: int = NUM, *, dtype: Any = torch.float64, seed: int = 0) -> list[Tensor]:
    """Return five sites of width 6 whose lengths grow."""
    return [acts(num, 6, dtype=dtype, seed=seed + 10 * s) * 1.3**s for s in range(5)]


def layer(num: int = NUM, *, dtype: Any = torch.float64, seed: int = 0) -> list[Tensor]:
    """Return attention of 4 heads, values of 2 heads and a stream of width 5."""
    values = acts(num, 6, dtype=dtype, seed=seed).reshape(-1, 2, 3)
    return [
        probs(num, 4, dtype=dtype, seed=seed),
        values,
        acts(num, dtype=dtype, seed=seed + 1),
    ]


@dataclass(frozen=True)
class Case:
    make: Callable[[], JointReading]
    data: Callable[..., list[Tensor]]
    sites: tuple[str, ...]

    def read(self, given: list[Tensor], of: Rows | None = None) -> Any:
        reading = self.make()
        reading.update(given, rows(len(given[0])) if of is None else of)
        return reading


CASES = {
    "voids": Case(lambda: Voids(alpha=(0.8, 0.0, 0.3)), stream, STREAM),
    "extreme_tokens": Case(ExtremeTokens, layer, ("attn_probs.1", "v.1", "resid_post.1")),
    "stream_dynamics": Case(StreamDynamics, stream, STREAM),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each
def test_result_depends_on_the_data_alone(case: Case) -> None:
    given = case.data()
    reading = case.read(given)
    contract.check_same(reading.result(), reading.result())
    contract.check_same(case.read(given).result(), reading.result())
    with pytest.raises(AssertionError):
        contract.check_same(case.read(case.data(seed=1)).result(), reading.result())
    contract.check_copies(reading, lambda r: r.result())
    assert all(isinstance(v, int | float) for v in reading.result().summary().values())


@each
def test_inputs_and_random_states_are_left_alone(case: Case) -> None:
    given, of, reading = case.data(), rows(), case.make()
    contract.check_unchanged(lambda: reading.update(given, of), given, of)
    contract.check_seeded(lambda seed: case.read(case.data(seed=seed)).result())


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_does_not_matter(case: Case, dtype: Any) -> None:
    given = case.data(dtype=dtype)
    wide = [x.double() for x in given]
    contract.check_same(case.read(given).result(), case.read(wide).result(), rtol=1e-5)


@each
def test_merge_of_random_splits_equals_one_update(case: Case) -> None:
    given, of = case.data(), rows()

    def feed(reading: Any, start: int, stop: int) -> None:
        reading.update([x[start:stop] for x in given], of[start:stop])

    contract.check_merged(case.make, feed, NUM)


@each
@pytest.mark.parametrize("value", [100.0, torch.nan, torch.inf], ids=str)
def test_padding_does_not_count(case: Case, value: float) -> None:
    given, index = case.data(), torch.tensor([*range(9), *range(4), *range(9, NUM)])
    padded, of = [x[index] for x in given], rows()[index]
    of.valid[9:13] = False
    for x in padded:
        x[9:13] = value
    contract.check_same(case.read(padded, of).result(), case.read(given).result(), rtol=1e-12)


@each
@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_row_that_is_not_finite_at_one_site_is_counted_and_left_out(
    case: Case, which: int
) -> None:
    given, of = case.data(), rows()
    given[which] = given[which].clone()
    given[which][3], given[which][20] = torch.nan, torch.inf
    found = case.read(given, of).result()
    rest = [i for i in range(NUM) if i not in (3, 20)]
    clean = case.read([x[rest] for x in given], of[rest]).result()
    assert found.num_nonfinite == 2 and clean.num_nonfinite == 0
    assert found.num_rows == clean.num_rows
    contract.check_same(
        [v for k, v in found.summary().items() if k != "num_nonfinite"],
        [v for k, v in clean.summary().items() if k != "num_nonfinite"],
        rtol=1e-12,
    )


@each
def test_state_does_not_grow(case: Case) -> None:
    given = case.data()
    contract.check_constant_size(case.make(), lambda r: r.update(given, rows()))


@each
def test_no_rows_give_nothing(case: Case) -> None:
    none = rows()
    none.valid[:] = False
    for reading in (case.make(), case.read(case.data(), none)):
        assert reading.result().num_rows == 0
        assert reading.result().summary()["num_rows"] == 0
    empty = case.read([x[:0] for x in case.data()], rows()[:0]).result()
    assert empty.num_rows == 0 == empty.num_nonfinite


@each
def test_what_does_not_fit_is_refused(case: Case) -> None:
    given = case.data()
    with pytest.raises(InputError, match=r"shapes .*\(36,"):
        case.make().update(given, rows()[:36])
    with pytest.raises(InputError, match="need"):
        case.make().update(given[:1], rows())
    with pytest.raises(InputError, match="need"):
        case.make().update([*given[:-1], given[-1][None]], rows())
    with pytest.raises(InputError, match=r"floating point, got torch.int64"):
        case.make().update([x.long() for x in given], rows())
    with pytest.raises(InputError, match="one kind"):
        case.make().merge(next(c.make() for c in CASES.values() if c is not case))


@each
def test_it_observes_a_network_and_leaves_no_hook(case: Case) -> None:
    model = tiny.model()
    contract.check_restored(
        model.module, lambda: model.observe(tiny.PROMPTS, {case.sites: [case.make()]})
    )
    together = model.observe(tiny.PROMPTS, {case.sites: [case.make()]})[case.sites][0].result()
    alone = model.observe(tiny.PROMPTS, {case.sites: [case.make()]}, batch_size=1)
    contract.check_same(together, alone[case.sites][0].result(), rtol=1e-4)


@each
def test_large_and_small_numbers_are_squared_in_float64(case: Case) -> None:
    plain = case.read(case.data(dtype=torch.float32)).result()
    for factor in (1e25, 1e-25):
        given = case.data(dtype=torch.float32)
        start = 1 if case.data is layer else 0
        scaled = given[:start] + [x * factor for x in given[start:]]
        found = case.read(scaled).result()
        assert found.num_nonfinite == 0 and found.num_rows == plain.num_rows
        for key in {"share_active", "peak", "correlation", "cosine"} & plain.summary().keys():
            assert found.summary()[key] == pytest.approx(plain.summary()[key], rel=5e-3)
