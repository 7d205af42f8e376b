"""What the readings of several sites share."""

import numpy as np
import pytest
import torch

from actkit.core.errors import InputError
from actkit.read.streaming._joint import lengths, one_stream, usable_rows
from actkit.read.streaming.extreme_tokens import ExtremeTokens
from actkit.read.streaming.stream_dynamics import StreamDynamics
from actkit.read.streaming.voids import Voids
from tests.contract import acts, probs, rows


@pytest.mark.parametrize("factor", [1.0, 1e25, 1e-25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lengths_neither_overflow_nor_vanish(factor: float, dtype: torch.dtype) -> None:
    vectors = (acts(9, 14) * factor).to(dtype).reshape(9, 2, 7)
    wanted = np.linalg.norm(vectors.double().numpy(), axis=-1)
    found = lengths(vectors)
    assert found.shape == (9, 2) and found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)


def test_lengths_of_zero_and_of_what_is_not_finite() -> None:
    vectors = torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [1.0, -torch.inf], [3.0, 4.0]])
    assert lengths(vectors)[[0, 3]].tolist() == [0.0, 5.0]
    assert lengths(vectors).isfinite().tolist() == [True, False, False, True]
    assert lengths(vectors[:0]).shape == (0,)


def test_a_row_is_usable_if_it_is_so_at_every_site() -> None:
    finite = torch.ones(37, dtype=torch.bool)
    finite[[0, 3, 20]] = False
    of = rows()
    of.valid[3] = False
    keep, num_nonfinite = usable_rows(of, finite, skip_first=True)
    assert num_nonfinite == 1  # row 0 is a first token, row 3 is padding
    assert torch.equal(keep, of.valid & finite & (of.position > 0))
    keep, num_nonfinite = usable_rows(of, finite, skip_first=False)
    assert num_nonfinite == 2 and torch.equal(keep, of.valid & finite)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_row_that_is_broken_at_one_site_is_left_out_at_all(which: int) -> None:
    stream = [acts(seed=s) * (1 + s) for s in range(3)]
    heads = [probs(), acts().reshape(-1, 1, 5), acts(seed=1)]
    rest = [i for i in range(37) if i not in (4, 21)]
    for reading, given in (
        (Voids(), stream),
        (StreamDynamics(), stream),
        (ExtremeTokens(), heads),
    ):
        clean = type(reading)()
        clean.update([x[rest] for x in given], rows()[rest])
        broken = [x.clone() for x in given]
        broken[which][4], broken[which][21] = torch.nan, torch.inf
        reading.update(broken, rows())
        wanted, found = clean.result().summary(), reading.result().summary()
        assert found.pop("num_nonfinite") == 2 and wanted.pop("num_nonfinite") == 0
        assert found == pytest.approx(wanted, rel=1e-12)


def test_sites_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"shapes \[\(37, 4\), \(37, 5\)\]"):
        one_stream([acts(), acts(37, 4)], rows(), least=2)
    with pytest.raises(InputError, match=r"rows of shape \(36,\)"):
        one_stream([acts(), acts()], rows(36), least=2)
    with pytest.raises(InputError, match=r"at least 2 sites of one shape .* got 0"):
        one_stream([], rows(), least=2)
    with pytest.raises(InputError, match=r"floating point, got torch\.int64"):
        one_stream([acts(), acts().long()], rows(), least=2)
    for wrong in ([probs()], [probs(), acts(), acts()], [probs()[:, :, :0], *[acts()] * 2]):
        with pytest.raises(InputError, match=r"need attn_probs \(N, H, S\), v .* got shapes"):
            ExtremeTokens().update(wrong, rows())
