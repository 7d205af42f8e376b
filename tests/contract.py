"""What every method must hold, as checks that a family's contract test puts together.

Each check raises AssertionError; `test_contract_checks.py` shows that each catches what it is for.
The data are offset, of unequal scales and of odd, unequal sizes: centred data hide mistakes.

Shapes: N rows, D width, H heads, S keys.
"""

import copy
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actkit.core.run.recording import Rows
from tests.core.tiny import untouched

SUBSET = (6, 0, 11, 3)
"""Uneven picks, out of order."""


def acts(num: int = 37, width: int = 5, *, dtype: Any = torch.float64, seed: int = 0) -> Tensor:
    """Return (N, D) activations with an offset and a scale of their own in each unit."""
    gen = torch.Generator().manual_seed(seed)
    raw_ND = torch.randn(num, width, generator=gen, dtype=torch.float64)
    scale_D = torch.linspace(0.3, 4, width, dtype=torch.float64)
    offset_D = torch.linspace(-2, 7, width, dtype=torch.float64)
    return (raw_ND * scale_D + offset_D).to(dtype)


def probs(num: int = 37, heads: int = 3, *, dtype: Any = torch.float64, seed: int = 0) -> Tensor:
    """Return (N, H, S) causal attention probabilities of the texts of `rows(num)`."""
    gen = torch.Generator().manual_seed(seed)
    position_N = rows(num).position
    keys = int(position_N.max()) + 2
    scores_NHS = 2 * torch.randn(num, heads, keys, generator=gen, dtype=torch.float64)
    hidden_NS = torch.arange(keys) > position_N[:, None]
    masked_NHS = scores_NHS.masked_fill(hidden_NS[:, None], -torch.inf)
    return masked_NHS.softmax(-1).to(dtype)


def rows(num: int = 37) -> Rows:
    """Return the (N,) rows of texts of 13, 5, 13, 5, ... tokens."""
    lengths = [13, 5] * num
    sample_N = torch.repeat_interleave(torch.tensor(lengths))[:num]
    position_N = torch.cat([torch.arange(n) for n in lengths])[:num]
    valid_N = torch.ones(num, dtype=torch.bool)
    return Rows(valid_N, sample_N, position_N, 7 + position_N % 11)


def leaves(value: Any) -> Iterator[Any]:
    """Yield the tensors, numbers and texts inside dataclasses, mappings and sequences."""
    if is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, f.name) for f in fields(value)]
    if isinstance(value, Mapping):
        value = [x for item in value.items() for x in item]
    if isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def check_same(one: Any, other: Any, *, rtol: float = 0.0) -> None:
    """Hold that two results are equal, leaf by leaf; NaN equals NaN."""
    for a, b in zip(leaves(one), leaves(other), strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            inexact = rtol and b.numel() and b.is_floating_point()
            atol = rtol * float(b.abs().max()) if inexact else 0.0
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)
        elif isinstance(a, float) and isinstance(b, float):
            assert a == pytest.approx(b, rel=rtol, abs=rtol, nan_ok=True)
        else:
            assert type(a) is type(b) and a == b, f"{a!r} is not {b!r}"


def check_finite(value: Any) -> None:
    """Hold that no number in a result is NaN or infinite."""
    for leaf in leaves(value):
        if isinstance(leaf, Tensor | float):
            assert torch.as_tensor(leaf).isfinite().all(), f"not finite: {leaf}"


def check_like(value: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Hold shape, and the dtype and device of the tensor that it comes from."""
    assert tuple(value.shape) == shape, f"shape {tuple(value.shape)}, expected {shape}"
    assert value.dtype == like.dtype, f"{value.dtype} from {like.dtype}"
    assert value.device == like.device, f"{value.device} from {like.device}"


def check_unchanged(call: Callable[[], object], *given: Any) -> None:
    """Hold that a call leaves its caller's tensors as they were."""
    before = copy.deepcopy(given)
    call()
    check_same(given, before)


def check_subset(score: Callable[[Tensor], Tensor], acts_ND: Tensor) -> None:
    """Hold that a row's score does not depend on the other rows of the batch."""
    whole = score(acts_ND)[list(SUBSET)]
    check_same(score(acts_ND[list(SUBSET)]), whole, rtol=1e-6)


def check_refit(make: Callable[[], Any], fit: Callable[[Any, Tensor], Any], use: Any) -> None:
    """Hold that fitting forgets what was fitted before, and that a second fit equals the first.

    Args:
        make: Returns a new, unfitted object.
        fit: Fits it to (N, D) activations.
        use: Returns what a fitted object says.
    """
    once, again = make(), make()
    fit(once, acts(seed=1))
    fit(again, acts(29, seed=2) - 3)
    fit(again, acts(seed=1))
    check_same(use(again), use(once))


def check_seeded(run: Callable[[int], Any]) -> None:
    """Hold that the seed, and it alone, decides the result: global random states are not used."""
    before = random_states()
    first = run(0)
    check_same(run(0), first)
    assert random_states() == before, "a global random state was used or set"
    with pytest.raises(AssertionError):
        check_same(run(1), first)


def random_states() -> tuple[bytes, ...]:
    """Return the states of the global random generators."""
    states = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state())
    return tuple(map(pickle.dumps, states))


def check_copies(made: Any, use: Callable[[Any], Any]) -> None:
    """Hold that a pickled and a deep copy say what the original says."""
    said = use(made)
    check_same(use(pickle.loads(pickle.dumps(made))), said)
    check_same(use(copy.deepcopy(made)), said)


def check_restored(module: nn.Module, call: Callable[[], object], error: Any = None) -> None:
    """Hold that no hook and no changed attribute stays after a call, or after its error."""
    with untouched(module):
        if error is None:
            call()
        else:
            with pytest.raises(error):
                call()


def check_merged(make: Callable[[], Any], feed: Callable[[Any, int, int], Any], num: int) -> None:
    """Hold that a stream in pieces and any merge of random splits equal one update with all rows.

    Args:
        make: Returns a new reading.
        feed: Gives a reading the rows from a first to before a last.
        num: How many rows there are.
    """
    whole = make()
    feed(whole, 0, num)
    for seed in range(4):
        order = random.Random(seed)
        cuts = [0, *sorted(order.sample(range(1, num), 4)), num]
        streamed, parts = make(), [make()]  # the first part sees nothing
        for start, stop in pairwise(cuts):
            feed(streamed, start, stop)
            parts.append(make())
            feed(parts[-1], start, stop)
        order.shuffle(parts)
        check_same(streamed.result(), whole.result(), rtol=1e-9)
        from_left = reduce(_merged, copy.deepcopy(parts))
        check_same(from_left.result(), whole.result(), rtol=1e-9)
        from_right = reduce(lambda late, early: _merged(early, late), reversed(parts))
        check_same(from_right.result(), whole.result(), rtol=1e-9)


def _merged(one: Any, other: Any) -> Any:
    """Merge, and hold that the other is left as it was and that `self` is returned."""
    before = copy.deepcopy(other.result())
    assert one.merge(other) is one, "merge must return self"
    check_same(other.result(), before)
    return one


def check_constant_size(made: Any, feed: Callable[[Any], Any]) -> None:
    """Hold that an object does not grow with what it is fed."""
    feed(made)
    size = len(pickle.dumps(made))
    for _ in range(20):
        feed(made)
    grown = len(pickle.dumps(made))
    assert grown <= 1.1 * size + 64, f"grew from {size} to {grown} bytes"
