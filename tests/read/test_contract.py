"""Every reading of the catalog, whatever it reads."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actkit.catalog import Entry, methods
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.read._base import JointReading, Reading
from tests import contract
from tests.contract import acts, probs, rows
from tests.core import tiny

NUM = 37
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
READINGS = [
    e
    for e in methods("read")
    if isinstance(e.load(), type) and issubclass(e.load(), Reading | JointReading)
]
each = pytest.mark.parametrize("entry", READINGS, ids=lambda e: e.name)
SITES = {
    "acts": "resid_post.1",
    "probs": "attn_probs.1",
    "stack": ("resid_pre.0", "resid_post.*"),
    "heads": ("attn_probs.1", "v.1", "resid_post.1"),
}
"""Where each kind of reading stands in a decoder."""


def stack(num: int = NUM, *, seed: int = 0, **settings: Any) -> list[Tensor]:
    """Return the (N, D) activations of four layers, each longer than the one before."""
    return [(i + 1) * acts(num, seed=seed + i, **settings) for i in range(4)]


def heads(num: int = NUM, *, seed: int = 0, **settings: Any) -> list[Tensor]:
    """Return (N, H, S) attention, (N, H, K) values and the (N, D) stream of one layer."""
    values = torch.stack([acts(num, 7, seed=seed + i, **settings) for i in range(3)], 1)
    return [probs(num, seed=seed, **settings), values, acts(num, seed=seed, **settings)]


MAKERS: dict[str, Any] = {"acts": acts, "probs": probs, "stack": stack, "heads": heads}


@cache
def kind(entry: Entry) -> str:
    """Return which kind of activations a reading takes; one of a single site takes only one."""
    kinds = ("acts", "probs") if issubclass(entry.load(), Reading) else ("stack", "heads")
    taken = []
    for name in kinds:
        try:
            entry.load()().update(MAKERS[name](NUM), rows(NUM))
        except InputError:
            continue
        taken.append(name)
    most = 1 if issubclass(entry.load(), Reading) else 2
    assert 0 < len(taken) <= most, f"{entry.name} must take one of {kinds}, it took {taken}"
    return taken[0]


def data(entry: Entry, num: int = NUM, **settings: Any) -> Any:
    return MAKERS[kind(entry)](num, **settings)


def each_site(change: Callable[[Tensor], Tensor], given: Any) -> Any:
    """Change the activations of every site that is given."""
    return [change(x) for x in given] if isinstance(given, list) else change(given)


def read(entry: Entry, given: Any, its_rows: Any = None) -> Any:
    reading = entry.load()()
    num = len(given[0] if isinstance(given, list) else given)
    reading.update(given, rows(num) if its_rows is None else its_rows)
    return reading


def test_there_are_readings() -> None:
    assert {"moments", "sparsity", "massive", "spectrum", "sinks"} <= {e.name for e in READINGS}
    assert {kind(e) for e in READINGS} == {*MAKERS}


@each
def test_result_is_finite_and_the_same_again(entry: Entry) -> None:
    reading = read(entry, data(entry))
    contract.check_finite(reading.result())
    contract.check_same(reading.result(), reading.result())
    contract.check_same(read(entry, data(entry)).result(), reading.result())


@each
def test_result_depends_on_the_data(entry: Entry) -> None:
    with pytest.raises(AssertionError):
        contract.check_same(
            read(entry, data(entry, seed=1)).result(), read(entry, data(entry)).result()
        )


@each
def test_inputs_are_unchanged(entry: Entry) -> None:
    given, its_rows, reading = data(entry), rows(NUM), entry.load()()
    contract.check_unchanged(lambda: reading.update(given, its_rows), given, its_rows)


@each
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_and_device_do_not_matter(entry: Entry, dtype: Any, device: str) -> None:
    given = data(entry, dtype=dtype)
    here = read(entry, each_site(lambda x: x.to(device), given)).result()
    there = read(entry, each_site(Tensor.double, given)).result()
    contract.check_same(here, there, rtol=1e-5)


@each
def test_merge_of_random_splits_equals_one_update(entry: Entry) -> None:
    given, its_rows = data(entry), rows(NUM)

    def feed(reading: Any, start: int, stop: int) -> None:
        reading.update(each_site(lambda x: x[start:stop], given), its_rows[start:stop])

    contract.check_merged(entry.load(), feed, NUM)


@each
def test_padding_does_not_count(entry: Entry) -> None:
    given, its_rows = data(entry), rows(NUM)
    padded = each_site(lambda x: torch.cat([x[:9], x[:4] + 100, x[9:]]), given)
    index = torch.tensor([*range(9), *range(4), *range(9, NUM)])
    padded_rows = its_rows[index]
    padded_rows.valid[9:13] = False
    here = read(entry, padded, padded_rows).result()
    contract.check_same(here, read(entry, given).result())


@each
def test_without_rows_there_is_a_result_that_says_so(entry: Entry) -> None:
    empty = each_site(lambda x: x[:0], data(entry))
    for reading in (entry.load()(), read(entry, empty, rows(NUM)[:0])):
        result = reading.result()
        assert result.num_rows == 0
        assert result.summary()["num_rows"] == 0


@each
def test_one_row_and_equal_rows_break_nothing(entry: Entry) -> None:
    given, late = data(entry), 11
    one = read(entry, each_site(lambda x: x[late : late + 1], given), rows(NUM)[late : late + 1])
    assert one.result().num_rows == 1
    equal = each_site(lambda x: x[late : late + 1].expand_as(x[:13]).clone(), given)
    many = read(entry, equal, rows(NUM)[:13]).result()
    assert many.num_rows > 1
    for value in many.summary().values():
        assert value != float("inf"), "equal rows make no infinity"


@each
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_rows_that_are_not_finite_are_counted_and_left_out(entry: Entry, bad: float) -> None:
    given, lost = data(entry), [8, 10, 30]

    def spoil(x: Tensor) -> Tensor:
        spoiled = x.clone()
        spoiled.view(NUM, -1)[lost, -2] = bad
        return spoiled

    found = read(entry, each_site(spoil, given)).result()
    kept = [i for i in range(NUM) if i not in lost]
    clean = read(entry, each_site(lambda x: x[kept], given), rows(NUM)[kept]).result()
    assert found.num_nonfinite == len(lost) and clean.num_nonfinite == 0
    contract.check_same(replace(found, num_nonfinite=0), clean, rtol=1e-12)


@each
def test_other_widths_and_other_settings_do_not_merge(entry: Entry) -> None:
    reading = read(entry, data(entry))
    before = copy.deepcopy(reading.result())
    if kind(entry) != "heads":
        wider = {"acts": acts(NUM, 8), "probs": probs(NUM, 5), "stack": stack()[:3]}[kind(entry)]
        with pytest.raises(InputError):
            reading.merge(read(entry, wider))
        with pytest.raises(InputError):
            reading.update(wider, rows(NUM))
    with pytest.raises(InputError):
        reading.merge(object())
    contract.check_same(reading.result(), before)


@each
def test_copies_say_the_same(entry: Entry) -> None:
    contract.check_copies(read(entry, data(entry)), lambda reading: reading.result())


@each
def test_state_does_not_grow(entry: Entry) -> None:
    given = data(entry)
    contract.check_constant_size(entry.load()(), lambda r: r.update(given, rows(NUM)))


@each
def test_random_states_are_left_alone(entry: Entry) -> None:
    contract.check_seeded(lambda seed: read(entry, data(entry, seed=seed)).result())


class Broken(nn.Module):
    def forward(self, *_: Any) -> Any:
        raise ZeroDivisionError


@each
def test_no_hook_stays_whatever_happens(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    readings = {SITES[kind(entry)]: [entry.load()()]}

    def observe(opened: Model) -> None:
        opened.observe(tiny.PROMPTS, readings)

    contract.check_restored(model.module, lambda: observe(model))
    broken = tiny.llama()
    broken.model.layers[0].mlp = Broken()
    opened = Model(broken, tiny.tokenizer())
    contract.check_restored(broken, lambda: observe(opened), ZeroDivisionError)

    def fail(*_: Any) -> None:
        raise KeyError

    monkeypatch.setattr(entry.load(), "update", fail)
    contract.check_restored(model.module, lambda: observe(model), KeyError)
