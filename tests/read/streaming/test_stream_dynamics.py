"""Stream dynamics against numpy, and on systems whose motion is known.

Shapes: N rows, D width, S sites, P steps.
"""

from math import pi

import numpy as np
import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read.streaming.stream_dynamics import (
    StreamDynamics,
    StreamDynamicsResult,
    reduced_paths,
    rotations,
    turning_angles,
)
from tests._evidence import Evidence
from tests.contract import acts, rows
from tests.core.tiny import uneven

NUM, WIDTH, SITES = 700, 11, 5


def walk(num: int = NUM, width: int = WIDTH) -> list[Tensor]:
    """Return sites of a walk with offsets and unequal scales, each site longer than the last."""
    state, sites = acts(num, width), []
    for s in range(SITES):
        state = 1.4 * state + uneven(num, width, seed=s, dtype=torch.float64)
        sites.append(state)
    return sites


def read(sites: list[Tensor], **settings: object) -> StreamDynamicsResult:
    reading = StreamDynamics(**settings)  # type: ignore[arg-type]
    reading.update(sites, rows(len(sites[0])))
    return reading.result()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_numbers_equal_numpy(dtype: torch.dtype) -> None:
    sites, kept = walk(), (rows(NUM).position > 0).numpy()
    result = read([x.to(dtype) for x in sites], threshold=2.0)
    x = np.stack([s[kept].numpy() for s in sites])
    for p in range(SITES - 1):
        r = [np.corrcoef(x[p, :, d], x[p + 1, :, d])[0, 1] for d in range(WIDTH)]
        np.testing.assert_allclose(result.correlation_PD[p].numpy(), r, rtol=1e-5, atol=1e-6)
        every = np.corrcoef(x[p].T, x[p + 1].T)[:WIDTH, WIDTH:]
        offsets = [k for k in range(1, WIDTH) if _near(every, k, result.control_PD[p])]
        assert len(offsets) == 1, "the control is each unit with the one some offset further"
        one, two = np.linalg.norm(x[p], axis=1), np.linalg.norm(x[p + 1], axis=1)
        cosine = (x[p] * x[p + 1]).sum(1) / one / two
        assert float(result.cosine_P[p]) == pytest.approx(cosine.mean(), rel=1e-5)
        steps = np.linalg.norm(x[p + 1] - x[p], axis=1)
        assert float(result.velocity_P[p]) == pytest.approx(steps.mean(), rel=1e-5)
    np.testing.assert_allclose(result.density_S, (np.abs(x) > 2).mean((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(result.path_SD.numpy(), x.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.acceleration, np.diff(result.velocity_P), rtol=1e-12)
    torch.testing.assert_close(result.rotations_D, rotations(result.path_SD))
    torch.testing.assert_close(result.turning, turning_angles(result.path_SD))
    assert result.num_rows == kept.sum() < NUM


def _near(every: np.ndarray, offset: int, control_D: Tensor) -> bool:
    units = np.arange(WIDTH)
    return np.allclose(every[units, (units + offset) % WIDTH], control_D, atol=1e-5)


def test_the_seed_decides_the_control_alone() -> None:
    one, same, other = (read(walk(), seed=s) for s in (0, 0, 3))
    assert torch.equal(one.control_PD, same.control_PD)
    assert not torch.equal(one.control_PD, other.control_PD)
    assert torch.equal(one.correlation_PD, other.correlation_PD)


def test_a_large_offset_does_not_drown_the_correlation() -> None:
    sites = walk()
    far = [(x + 1e4).float() for x in sites]
    torch.testing.assert_close(
        read(far).correlation_PD, read(sites).correlation_PD, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("factor", [1e25, 1e-25])
def test_products_neither_overflow_nor_vanish(factor: float) -> None:
    plain, scaled = read(walk()), read([(x * factor).float() for x in walk()])
    for name in ("correlation_PD", "control_PD", "cosine_P"):
        torch.testing.assert_close(
            getattr(scaled, name), getattr(plain, name), rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(scaled.velocity_P / factor, plain.velocity_P, rtol=1e-5, atol=0)


def test_units_left_out_are_taken_as_zero() -> None:
    sites = walk()
    for x in sites:
        x[:, 4] *= 1e5
    rest = [u for u in range(WIDTH) if u != 4]
    left, without = read(sites, leave_out=(4,)), read([x[:, rest] for x in sites])
    assert left.correlation_PD[:, 4].isnan().all() and left.rotations_D[4].isnan()
    torch.testing.assert_close(left.correlation_PD[:, rest], without.correlation_PD)
    for name in ("cosine_P", "velocity_P", "density_S", "turning"):
        torch.testing.assert_close(getattr(left, name), getattr(without, name))
    assert left.velocity_P[0] < read(sites).velocity_P[0] / 1e3
    with pytest.raises(InputError, match=r"must be 0 to 10, got \[11\]"):
        read(sites, leave_out=(4, 11))


def test_constants_and_one_row_have_no_correlation() -> None:
    sites = [torch.full((40, 3), 5.0), torch.full((40, 3), 7.0)]
    sites[0][:, 0], sites[1][:, 0] = torch.arange(40.0), torch.arange(40.0)
    result = read(sites)
    assert result.correlation_PD[0].isnan().tolist() == [False, True, True]
    one = StreamDynamics()
    one.update([x[1:2] for x in sites], rows()[1:2])
    assert one.result().correlation_PD.isnan().all() and one.result().velocity_P.isfinite().all()


def test_a_state_of_zero_has_no_direction() -> None:
    zero, ones = torch.zeros(3, 4), torch.ones(3, 4)
    result = read([zero, ones], skip_first=False)
    assert result.cosine_P.tolist() == [0.0] and result.velocity_P.tolist() == [2.0]


def test_other_sites_and_widths_are_refused() -> None:
    reading = StreamDynamics()
    reading.update(walk(37), rows())
    with pytest.raises(InputError, match="number of sites: it holds 5, got 4"):
        reading.update(walk(37)[1:], rows())
    with pytest.raises(InputError, match="number of sites: it holds 5, got 6"):
        reading.update([*walk(37), walk(37)[0]], rows())
    with pytest.raises(InputError, match="width: it holds 11, got 4"):
        reading.update(walk(37, 4), rows())
    with pytest.raises(InputError, match="threshold must be at least 0, got -1"):
        StreamDynamics(threshold=-1.0)


@pytest.mark.paper("transformer-dynamics")
def test_identity_layers_do_not_move(evidence: Evidence) -> None:
    state = acts(300, 9, dtype=torch.float32)
    result = read([state] * 4)
    evidence("identity layers: smallest correlation of a unit", equals=1, tolerance=1e-12,
             measured=result.correlation_PD.min())  # fmt: skip
    evidence("identity layers: largest velocity", measured=result.velocity_P.max(), at_most=0)
    assert result.cosine_P.tolist() == pytest.approx([1.0] * 3, abs=1e-12)


@pytest.mark.paper("transformer-dynamics")
def test_a_rotating_system_has_its_rotations(evidence: Evidence) -> None:
    """Each of three planes turns by its own angle from site to site, about a far point."""
    steps, turns, centre = 60, (2, 3, 5), 40.0
    state, sites = acts(200, 6) + 3, []
    angles = torch.tensor(turns, dtype=torch.float64) * 2 * pi / steps
    matrix = torch.zeros(6, 6, dtype=torch.float64)
    for n, angle in enumerate(angles):
        c, s = angle.cos(), angle.sin()
        matrix[2 * n : 2 * n + 2, 2 * n : 2 * n + 2] = torch.tensor([[c, -s], [s, c]])
    for _ in range(steps + 2):  # the last site has no velocity, and n points make n - 1 turns
        sites.append(state + centre)
        state = state @ matrix.T
    found = read(sites).rotations_D.reshape(3, 2)
    for turn, measured in zip(turns, found, strict=True):
        for own in measured:
            evidence(f"rotations of a unit that turns {turn} times in {steps} layers",
                     measured=own, equals=turn, tolerance=0.02 * turn)  # fmt: skip


def test_paths_that_turn_and_those_that_do_not() -> None:
    time = torch.arange(13, dtype=torch.float64)
    circle_SD = torch.stack([(0.3 * time).cos(), (0.3 * time).sin(), 0 * time], 1)
    torch.testing.assert_close(turning_angles(circle_SD), torch.full((11,), 0.3).double())
    line_SD = time[:, None] * torch.tensor([[1.0, -2.0]]).double()
    torch.testing.assert_close(turning_angles(line_SD), torch.zeros(11).double())
    assert turning_angles(torch.ones(4, 2)).isnan().all()
    back = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    assert float(turning_angles(back)) == pytest.approx(pi)
    assert rotations(torch.flip(circle_SD, [0]))[0] > 0  # a swing is clockwise either way
    assert rotations(circle_SD)[2].isnan()


def test_reduced_paths_keep_what_lies_in_a_plane() -> None:
    time = torch.arange(9, dtype=torch.float64)
    flat_NSD = torch.stack([torch.stack([a * time, (time + a).sin()], 1) for a in (1.0, -0.5, 2.0)])
    basis = torch.linalg.qr(uneven(7, 2, dtype=torch.float64)).Q
    reduced = reduced_paths(flat_NSD @ basis.T + 4, 2)
    assert reduced.shape == (3, 9, 2)
    torch.testing.assert_close(
        torch.cdist(reduced.flatten(0, 1), reduced.flatten(0, 1)),
        torch.cdist(flat_NSD.flatten(0, 1), flat_NSD.flatten(0, 1)),
        rtol=1e-9,
        atol=1e-9,
    )
    spread = reduced.flatten(0, 1).var(0)
    assert spread[0] > spread[1] > 0
    for wrong in (torch.zeros(3, 4), torch.zeros(2, 3, 1)):
        with pytest.raises(InputError, match="at least 2 components"):
            reduced_paths(wrong, 2)
