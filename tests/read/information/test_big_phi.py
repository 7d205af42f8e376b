import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read.information.big_phi import big_phi, binarise, mean_big_phi, transition_matrix
from actkit.read.information.big_phi._iit import _distance
from tests._evidence import Evidence
from tests.contract import check_unchanged

OR_AND_XOR = [
    [0, 0, 0],
    [0, 0, 1],
    [1, 0, 1],
    [1, 0, 0],
    [1, 1, 0],
    [1, 1, 1],
    [1, 1, 1],
    [1, 1, 0],
]
GATES_Sn = torch.tensor(OR_AND_XOR)


def states(num: int) -> Tensor:
    """Return all (S, n) values of `num` units, unit 0 in the lowest bit."""
    return torch.arange(2**num)[:, None] >> torch.arange(num) & 1


A, B, C = states(3).T
GATES_Sn = torch.stack([B | C, C, A ^ B], 1)  # an AND gate of one input copies it


@pytest.mark.paper("can-consciousness-be-observed")
def test_documented_networks_have_their_phi(evidence: Evidence) -> None:
    found = big_phi(GATES_Sn, (1, 0, 0))
    evidence("big phi of PyPhi's basic network, in state (1, 0, 0)", measured=found.phi,
             equals=2.3125, tolerance=1e-6)  # fmt: skip
    concepts = {c.mechanism: c.phi for c in found.concepts}
    assert concepts == pytest.approx({(1,): 1 / 4, (2,): 1 / 2, (0, 1): 1 / 3, (0, 1, 2): 1 / 2})
    assert found.cut == ((1, 2), (0,))

    found = big_phi(torch.stack([B | C, A & C, A ^ B], 1), (1, 0, 0))
    evidence("big phi of OR, AND and XOR of the other two, in state (1, 0, 0)", measured=found.phi,
             equals=23 / 12, tolerance=1e-6)  # fmt: skip
    assert found.cut == ((0, 1), (2,))

    found = big_phi(torch.stack([B ^ C, A ^ C, A ^ B], 1), (0, 0, 0))
    evidence("big phi of three XOR gates, all off", measured=found.phi, equals=1.875,
             tolerance=1e-6)  # fmt: skip
    assert [c.mechanism for c in found.concepts] == [(0, 1), (0, 2), (1, 2)]

    bits = states(4).bool()
    pairs = [bits[:, 2] & bits[:, 3]] * 2 + [bits[:, 0] & bits[:, 1]] * 2
    noisy_Sn = torch.stack(pairs, 1).double() * 0.7 + 0.3
    evidence("big phi of two noisy AND pairs, all off", measured=big_phi(noisy_Sn, (0,) * 4).phi,
             equals=0.113889, tolerance=1e-6)  # fmt: skip


@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_distance_equals_the_transport_problem(num: int) -> None:
    gen = torch.Generator().manual_seed(num)
    p, q = torch.rand(2, 2**num, generator=gen, dtype=torch.float64).softmax(1).numpy()
    p = p**3 / (p**3).sum()
    apart = (states(num)[:, None] != states(num)).sum(-1).double().numpy()
    size = 2**num
    rows, columns = np.kron(np.eye(size), np.ones(size)), np.kron(np.ones(size), np.eye(size))
    plan = linprog(apart.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.r_[p, q])
    assert float(_distance((p - q)[None])[0]) == pytest.approx(plan.fun, abs=1e-9)


def test_phi_does_not_depend_on_the_order_of_units() -> None:
    gen = torch.Generator().manual_seed(3)
    tpm_Sn = torch.rand(8, 3, generator=gen, dtype=torch.float64)
    order = [2, 0, 1]  # new unit i is old unit order[i]
    new = states(3)
    old = torch.zeros_like(new)
    old[:, order] = new
    moved_Sn = tpm_Sn[(old << torch.arange(3)).sum(1)][:, order]
    state = (1, 0, 1)
    again = big_phi(moved_Sn, tuple(state[i] for i in order))
    assert again.phi == pytest.approx(big_phi(tpm_Sn, state).phi, abs=1e-9) != 0


def test_parts_without_a_way_back_are_not_integrated() -> None:
    swap_and_listen_Sn = torch.stack([B, A, A], 1)
    assert big_phi(swap_and_listen_Sn, (1, 0, 0)).phi == pytest.approx(0, abs=1e-9)
    held = big_phi(swap_and_listen_Sn, (1, 0, 0), units=(0, 1))
    assert held.phi == pytest.approx(1), "units 0 and 1 copy each other"
    alone_Sn = torch.full((4, 2), 0.5)
    found = big_phi(alone_Sn, (0, 1))
    assert found.phi == 0 and found.concepts == ()


def test_units_outside_a_subsystem_are_held_at_their_state() -> None:
    gated_Sn = torch.stack([B & C, A & C, C], 1)
    assert big_phi(gated_Sn, (0, 0, 0), units=(0, 1)).phi == pytest.approx(0, abs=1e-9)
    assert big_phi(gated_Sn, (0, 0, 1), units=(1, 0)).phi == pytest.approx(1)


def test_a_long_series_gives_back_its_network() -> None:
    gen = torch.Generator().manual_seed(0)
    truth_Sn = torch.rand(4, 2, generator=gen, dtype=torch.float64)
    bits = [torch.tensor([0, 1])]
    for draw in torch.rand(20000, 2, generator=gen, dtype=torch.float64):
        bits.append((draw < truth_Sn[int(bits[-1][0] + 2 * bits[-1][1])]).long())
    torch.testing.assert_close(transition_matrix(torch.stack(bits)), truth_Sn, atol=0.03, rtol=0)
    assert transition_matrix(torch.tensor([[0, 1], [0, 1]])).tolist()[2] == [0, 1]
    assert transition_matrix(torch.tensor([[0, 1], [0, 1]])).tolist()[3] == [0.5, 0.5]


def test_a_series_is_split_at_its_medians_and_weighted_by_visits() -> None:
    gen = torch.Generator().manual_seed(0)
    series_Tn = torch.randn(31, 2, generator=gen) * torch.tensor([3.0, 100]) + 50
    bits_Tn = binarise(series_Tn)
    assert bits_Tn.sum(0).tolist() == [15, 15], "the median itself is off"
    tpm_Sn = transition_matrix(bits_Tn)
    each = [big_phi(tpm_Sn, state).phi for state in bits_Tn[1:].tolist()]
    check_unchanged(lambda: mean_big_phi(series_Tn), series_Tn)
    assert mean_big_phi(series_Tn) == pytest.approx(np.mean(each)) and len({*each}) > 1


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"got shape \(8, 3\) and state \(1, 0\)"):
        big_phi(GATES_Sn, (1, 0))
    with pytest.raises(InputError, match=r"state \(1, 0, 2\)"):
        big_phi(GATES_Sn, (1, 0, 2))
    with pytest.raises(InputError, match=r"in \[0, 1\], got 0.0 to 3.0"):
        big_phi(GATES_Sn * 3, (1, 0, 0))
    with pytest.raises(InputError, match="in \\[0, 1\\], got nan"):
        big_phi(GATES_Sn * torch.nan, (1, 0, 0))
    with pytest.raises(InputError, match=r"2 to 4 of the 5 units, got \(0, 1, 2, 3, 4\)"):
        big_phi(torch.rand(32, 5), (0,) * 5)
    with pytest.raises(InputError, match=r"2 to 4 of the 3 units, got \(1, 1\)"):
        big_phi(GATES_Sn, (1, 0, 0), units=(1, 1))
    with pytest.raises(InputError, match=r"must be able to lead to the state, got \(0, 1, 0\)"):
        big_phi(GATES_Sn, (0, 1, 0))
    with pytest.raises(InputError, match=r"got \(3, 2\) with 1 values"):
        binarise(torch.tensor([[1, 2], [torch.inf, 2], [3, 4]]))
    with pytest.raises(InputError, match=r"at least 2 times .* got \(1, 2\)"):
        transition_matrix(torch.tensor([[1, 0]]))
