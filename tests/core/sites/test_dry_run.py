"""The check that parts add up: exact to rounding, in every precision."""

import pytest
import torch

from actkit.core.sites.dry_run import adds_up


def test_adds_up_sees_a_part_that_is_scaled_by_a_hundredth() -> None:
    gen = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(2, 3, 5, 7, generator=gen) + 0.3 for _ in range(3))
    assert adds_up(a + b + c, a, b, c) and adds_up((a + c) + b, a, b, c)
    assert not adds_up(a + b + 0.99 * c, a, b, c)
    assert not adds_up(a + b + c, a, b)
    b[..., 0] = 0.0
    total = a + b
    assert adds_up(total, a, b)
    total[1, 2, 3, 0] += 1e-3
    assert not adds_up(total, a, b)
    assert not adds_up(a, a, torch.zeros_like(a))  # nothing was added, nothing is claimed
    assert not adds_up(a + b, a, b, None) and not adds_up(None, a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_adds_up_in_every_precision(dtype: torch.dtype) -> None:
    """Large numbers in a few channels, which swallow what is added there, change nothing."""
    gen = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(3, 4, 50, 90, generator=gen) + 0.3 for _ in range(3))
    a[..., 7] *= 1000.0
    a, b, c = (x.to(dtype) for x in (3 * a, b, 0.3 * c))
    assert adds_up((a + b) + c, a, b, c) and adds_up(a + (b + c), a, b, c)
    for factor in (0.99, 1.01):
        assert not adds_up((a + factor * b) + c, a, b, c)
        assert not adds_up((a + b) + factor * c, a, b, c)
