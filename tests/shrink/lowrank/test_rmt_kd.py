import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from actkit.core.errors import InputError
from actkit.shrink.lowrank.rmt_kd import Distillation, Narrowed, outlier_basis, rmt_kd
from tests._evidence import Evidence
from tests.contract import acts, check_same, check_seeded, check_unchanged

RANK, WIDTH, NUM_TRAIN = 12, 128, 1200


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Return digits in 12 of 128 directions, with noise in all, offset; shuffled."""
    x, y = load_digits(return_X_y=True)
    pixels = torch.tensor(x) / 16
    u, s, _ = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    gen = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=gen)
    turn_DD = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=gen, dtype=torch.float64)).Q
    noise_ND = 0.05 * torch.randn(len(y), WIDTH, generator=gen, dtype=torch.float64)
    inputs_ND = (u * s)[:, :RANK] @ turn_DD[:RANK] + noise_ND + 0.5
    return inputs_ND[order].float(), torch.tensor(y)[order]


def trained(inputs_ND: Tensor, labels_N: Tensor, seed: int) -> nn.Sequential:
    """Return an MLP of width 128 whose second layer has rank 12; the first passes noise on."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)
        nn.init.orthogonal_(first.weight)
        factors = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH)
    net = nn.Sequential(first, nn.ReLU(), *factors, nn.ReLU(), last)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    gen = torch.Generator().manual_seed(seed)
    for _ in range(20):
        for index in torch.split(torch.randperm(len(labels_N), generator=gen), 64):
            loss = nn.functional.cross_entropy(net(inputs_ND[index]), labels_N[index])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    middle = nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        middle.weight.copy_(factors[1].weight @ factors[0].weight)
        middle.bias.copy_(factors[1].bias)
    return nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last)


def accuracy(net: nn.Sequential, inputs_ND: Tensor, labels_N: Tensor) -> float:
    with torch.no_grad():
        return float((net(inputs_ND).argmax(1) == labels_N).double().mean())


@pytest.mark.paper("structure-redundancy-large-language")
@pytest.mark.parametrize("seed", range(3))
def test_planted_rank_is_found_and_kept_without_loss(seed: int, evidence: Evidence) -> None:
    inputs_ND, labels_N = digits(seed)
    fit = inputs_ND[:NUM_TRAIN], labels_N[:NUM_TRAIN]
    test = inputs_ND[NUM_TRAIN:], labels_N[NUM_TRAIN:]
    net = trained(*fit, seed)
    found = rmt_kd(net, *fit, group=2)
    gen = torch.Generator().manual_seed(seed)
    ranks = iter(found.ranks.values())

    def random_basis(acts_ND: Tensor) -> Tensor:
        draw = torch.randn(acts_ND.shape[1], next(ranks), generator=gen)
        basis_DK: Tensor = torch.linalg.qr(draw).Q
        return basis_DK

    anything = Distillation(tolerance=1)
    control = rmt_kd(net, *fit, group=2, basis=random_basis, distillation=anything)
    before = accuracy(net, *test)
    loss = 100 * (before - accuracy(found.network, *test))
    random_loss = 100 * (before - accuracy(control.network, *test))
    for place, rank in found.ranks.items():
        evidence(f"directions kept of 128 in layer {place}, seed {seed}", measured=rank,
                 equals=RANK, tolerance=2)  # fmt: skip
    evidence(f"share of parameters cut, seed {seed}", measured=found.share_cut, at_least=0.6)
    evidence(f"test accuracy lost (points), seed {seed}", measured=loss, at_most=1.5)
    evidence(f"more lost by random directions of equal rank (points), seed {seed}",
             measured=random_loss - loss, at_least=1.5)  # fmt: skip
    assert control.ranks == found.ranks


def small(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return an untrained network, uneven data and labels."""
    inputs_ND = acts(101, 30, dtype=torch.float32, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Linear(30, 41), nn.Tanh(), nn.Linear(41, 37), nn.ReLU(), nn.Linear(37, 3)
        )
    return net, inputs_ND, (inputs_ND[:, 0] > 0).long() + (inputs_ND[:, 29] > 7).long()


def narrowed(rank: int, distillation: Distillation, seed: int = 0) -> Narrowed:
    """Keep the first principal components."""

    def leading(acts_ND: Tensor) -> Tensor:
        off_ND = (acts_ND - acts_ND.mean(0)).double()
        components: Tensor = torch.linalg.svd(off_ND, full_matrices=False).Vh[:rank].T
        return components

    return rmt_kd(*small(seed), basis=leading, distillation=distillation)


def test_a_projection_keeps_the_mean_and_the_kept_directions() -> None:
    net, inputs_ND, _ = small()
    found = narrowed(11, Distillation(epochs=0, tolerance=1))
    assert found.ranks == {0: 11, 2: 11}
    given, got = net[0](inputs_ND), found.network[:2](inputs_ND)
    torch.testing.assert_close(got.mean(0), given.mean(0), rtol=1e-4, atol=1e-5)
    off_ND = given - given.mean(0)
    u, s, vh = torch.linalg.svd(off_ND, full_matrices=False)
    expected = (u[:, :11] * s[:11]) @ vh[:11] + given.mean(0)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    kept = sum(p.numel() for p in found.network.parameters())
    assert kept == 11 * (30 + 41 + 1) + 41 + 11 * (41 + 37 + 1) + 37 + 38 * 3
    before = sum(p.numel() for p in net.parameters())
    assert found.share_cut == pytest.approx(1 - kept / before)


def test_all_directions_change_nothing_but_do_not_get_smaller() -> None:
    net, inputs_ND, labels_N = small()
    found = narrowed(30, Distillation(epochs=0))
    assert found.ranks == {} and found.share_cut == 0
    assert found.accuracy == found.accuracy_before == accuracy(net, inputs_ND, labels_N)


def test_distillation_alone_moves_towards_the_network_before() -> None:
    net, inputs_ND, _ = small()
    target = net(inputs_ND).softmax(-1)

    def off(weight: float, epochs: int) -> float:
        how = Distillation(weight=weight, epochs=epochs, tolerance=1)
        probs = narrowed(3, how).network(inputs_ND).softmax(-1)
        return float((probs - target).detach().abs().mean())

    assert off(0, 60) < 0.7 * off(0, 0)
    assert off(0, 60) < 0.1 * off(1, 60)


def test_a_layer_that_costs_too_much_is_restored() -> None:
    net, inputs_ND, labels_N = small()
    net = rmt_kd(net, inputs_ND, labels_N, distillation=Distillation(epochs=0)).network
    narrow = rmt_kd(
        net, inputs_ND, net(inputs_ND).argmax(-1), basis=lambda x: torch.eye(x.shape[1], 1),
        distillation=Distillation(epochs=0, tolerance=0),
    )  # fmt: skip
    assert narrow.ranks == {} and narrow.accuracy == narrow.accuracy_before == 1
    check_same(list(narrow.network.parameters()), list(net.parameters()))


def test_basis_is_orthonormal_and_ordered() -> None:
    acts_ND = acts(400, 60)
    acts_ND[:, :5] *= torch.tensor([90.0, 80.0, 70.0, 60.0, 50.0])
    basis_DK = outlier_basis(acts_ND)
    rank = basis_DK.shape[1]
    torch.testing.assert_close(basis_DK.T @ basis_DK, torch.eye(rank, dtype=torch.float64))
    spread_K = ((acts_ND - acts_ND.mean(0)) @ basis_DK).var(0)
    assert rank >= 5 and (spread_K.diff() < 0).all()
    assert outlier_basis(torch.full((50, 7), 0.3)).shape == (7, 0)


def test_seeds_and_the_network_given() -> None:
    net, inputs_ND, labels_N = small()
    net.train()
    state = copy.deepcopy(net.state_dict())
    check_unchanged(lambda: rmt_kd(net, inputs_ND, labels_N), inputs_ND, labels_N)
    check_same(net.state_dict(), state)
    how = {"epochs": 2, "tolerance": 1.0}
    check_seeded(lambda s: list(narrowed(5, Distillation(**how, seed=s)).network.parameters()))  # type: ignore[arg-type]
    assert rmt_kd(net, inputs_ND, labels_N).network.training


def test_bad_input_is_refused() -> None:
    net, inputs_ND, labels_N = small()
    for given in (
        (nn.Sequential(nn.Linear(30, 3)), inputs_ND, labels_N),
        (net, inputs_ND, labels_N[1:]),
        (net, inputs_ND[:1], labels_N[:1]),
    ):
        with pytest.raises(InputError, match="need two linear layers"):
            rmt_kd(*given)
    with pytest.raises(InputError, match="group=0"):
        rmt_kd(net, inputs_ND, labels_N, group=0)
    for setting in (
        {"weight": 1.1},
        {"tolerance": -0.1},
        {"epochs": -1},
        {"rate": 0},
        {"batch_size": 0},
    ):
        with pytest.raises(InputError, match="weight and tolerance"):
            Distillation(**setting)
