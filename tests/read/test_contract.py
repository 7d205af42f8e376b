"""Every reading of the catalog, whatever it reads."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actkit.catalog import Entry, methods
from actkit.core.errors import InputError
from actkit.core.model import Model
from actkit.read._base import Reading
from tests import contract
from tests.contract import acts, probs, rows
from tests.core import tiny

NUM = 37
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
READINGS = [
    e for e in methods("read") if isinstance(e.load(), type) and issubclass(e.load(), Reading)
]
each = pytest.mark.parametrize("entry", READINGS, ids=lambda e: e.name)


def takes_probs(entry: Entry) -> bool:
    """Return whether a reading takes (N, H, S) attention; it must refuse the other kind."""
    refused = []
    for given in (acts(NUM), probs(NUM)):
        try:
            entry.load()().update(given, rows(NUM))
        except InputError:
            refused.append(given.dim())
    assert len(refused) == 1, f"{entry.name} must take one of two kinds, it refused {refused}"
    return refused == [2]


def data(entry: Entry, num: int = NUM, **settings: Any) -> Tensor:
    make = probs if takes_probs(entry) else acts
    return make(num, **settings)


def read(entry: Entry, given: Tensor) -> Any:
    reading = entry.load()()
    reading.update(given, rows(len(given)))
    return reading


def test_there_are_readings() -> None:
    assert {"moments", "sparsity", "massive", "spectrum", "sinks"} <= {e.name for e in READINGS}


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
    here = read(entry, given.to(device)).result()
    contract.check_same(here, read(entry, given.double()).result(), rtol=1e-5)


@each
def test_merge_of_random_splits_equals_one_update(entry: Entry) -> None:
    given, its_rows = data(entry), rows(NUM)

    def feed(reading: Reading, start: int, stop: int) -> None:
        reading.update(given[start:stop], its_rows[start:stop])

    contract.check_merged(entry.load(), feed, NUM)


@each
def test_padding_does_not_count(entry: Entry) -> None:
    given, its_rows = data(entry), rows(NUM)
    padded = torch.cat([given[:9], given[:4] + 100, given[9:]])
    index = torch.tensor([*range(9), *range(4), *range(9, NUM)])
    padded_rows = its_rows[index]
    padded_rows.valid[9:13] = False
    reading = entry.load()()
    reading.update(padded, padded_rows)
    contract.check_same(reading.result(), read(entry, given).result())


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
    site = "attn_probs.1" if takes_probs(entry) else "resid_post.1"
    readings = {site: [entry.load()()]}

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
