"""Trainings that part: determinism, permutations that are known, and the line between networks."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actkit.core.errors import InputError
from actkit.read.training.butterfly import Divergence, butterfly
from actkit.read.training.butterfly._alignment import (
    hidden_axes,
    match_activations,
    match_weights,
    permuted,
)
from actkit.read.training.butterfly._interpolation import gap
from actkit.read.training.butterfly._perturbation import Perturbation
from tests._evidence import Evidence

KEY = "the-butterfly-effect"
NUM_STEPS = 380
SITES = ["1:out", "3:out", "5:out", "7:out"]
Train = Callable[[], Iterator[tuple[int, nn.Module]]]
X_ND = torch.randn(300, 5, generator=torch.Generator().manual_seed(3)) * 2 + 1
Y_N = (X_ND[:, 0] * X_ND[:, 1] > 1).long()


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x_ND, y_N = load_digits(return_X_y=True)
    return torch.from_numpy(x_ND[:1200]).float() / 16, torch.from_numpy(y_N[:1200])


def on_digits(seed: int) -> Train:
    """A network of four hidden layers at rate 0.1 with momentum, ten passes in fixed order."""
    x_ND, y_N = digits()

    def train() -> Iterator[tuple[int, nn.Module]]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            hidden = [m for i in (64,) * 4 for m in (nn.Linear(i, 64), nn.ReLU())]
            net = nn.Sequential(*hidden, nn.Linear(64, 10))
        gen = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for step in range(NUM_STEPS):
            if step % 38 == 0:
                batches = torch.split(torch.randperm(1200, generator=gen), 32)
            yield step, net
            optimizer.zero_grad()
            chosen = batches[step % 38]
            back(nn.functional.cross_entropy(net(x_ND[chosen]), y_N[chosen]))
            optimizer.step()

    return train


def small(*extra: nn.Module, seed: int = 0) -> Train:
    def train() -> Iterator[tuple[int, nn.Module]]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(5, 7), *copy.deepcopy(extra), nn.ReLU(), nn.Linear(7, 2))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for step in range(20):
            yield step, net
            optimizer.zero_grad()
            back(nn.functional.cross_entropy(net(X_ND), Y_N))
            optimizer.step()

    return train


def back(value: Tensor) -> None:
    value.backward()  # type: ignore[no-untyped-call]


def loss(net: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(net(X_ND), Y_N)


def shuffled(net: nn.Module, seed: int = 0) -> tuple[Any, list[Tensor]]:
    """Return a copy with permuted hidden units, and what undoes the permutation."""
    gen = torch.Generator().manual_seed(seed)
    sizes = [m.out_features for m in net.modules() if isinstance(m, nn.Linear)][:-1]
    orders = [torch.randperm(n, generator=gen) for n in sizes]
    return permuted(net, orders), [order.argsort() for order in orders]


def ends(train: Train) -> Any:
    *_, (_, net) = train()
    return net.eval()


@pytest.mark.slow
@pytest.mark.paper(KEY)
def test_early_perturbations_part_trainings_and_late_ones_do_not(evidence: Evidence) -> None:
    x_ND, y_N = digits()
    losses = {"train": lambda net: nn.functional.cross_entropy(net(x_ND), y_N)}

    def spread(seed: int, norm: float, steps: list[int]) -> tuple[Divergence, ...]:
        shift = Perturbation(norm, seed=seed)
        return butterfly(on_digits(seed), steps, shift, losses, x_ND[:300], SITES, ["activations"])

    (still,) = spread(0, 0.0, [0])
    evidence("L2 without a perturbation", measured=still.plain.distance, equals=0, tolerance=0)
    barrier = still.plain.barriers["train"]
    evidence("barrier without a perturbation (nats)", measured=barrier, equals=0, tolerance=0)
    evidence("least CKA without a perturbation", measured=min(still.cka.values()), equals=1,
             tolerance=0)  # fmt: skip
    runs = [spread(seed, 0.1, [0, 38, 304]) for seed in range(3)]
    early, soon, late = ([run[i].plain.barriers["train"] for run in runs] for i in range(3))
    evidence("barrier from step 0, least of 3 seeds (nats)", measured=min(early), at_least=0.1)
    shares = [b / a for a, b in zip(early, late, strict=True)]
    evidence("barrier from 80 % of training / from step 0, largest of 3 seeds",
             measured=max(shares), at_most=0.2)  # fmt: skip
    evidence("barrier from 10 % of training / from step 0, mean of 3 seeds",
             measured=np.mean(soon) / np.mean(early), at_most=1)  # fmt: skip
    far = [run[0].plain.distance / run[2].plain.distance for run in runs]
    evidence("L2 from step 0 / from 80 %, least of 3 seeds", measured=min(far), at_least=2)
    least = [min(run[0].cka.values()) for run in runs]
    evidence("least CKA from step 0, largest of 3 seeds", measured=max(least), at_most=0.95)
    aligned = [run[0].aligned["activations"].barriers["train"] for run in runs]
    evidence("barrier left after alignment / before, mean of 3 seeds",
             measured=np.mean(aligned) / np.mean(early), at_most=0.8)  # fmt: skip


@pytest.mark.paper(KEY)
def test_a_shuffled_copy_is_recognised(evidence: Evidence) -> None:
    x_ND, y_N = digits()
    losses = {"loss": lambda net: nn.functional.cross_entropy(net(x_ND), y_N)}
    net = ends(on_digits(0))
    other, undo = shuffled(net)
    before = gap(net, other, losses, x_ND)
    evidence("barrier to a shuffled copy (nats)", measured=before.barriers["loss"], at_least=0.1)
    fires = torch.cat([net[: 2 * i + 2](x_ND).any(0) for i in range(4)])
    matched = {"weights": match_weights(net, other),
               "activations": match_activations(net, other, x_ND)}  # fmt: skip
    for name, found in matched.items():
        same = torch.cat([a == b for a, b in zip(found, undo, strict=True)])
        known = fires if name == "activations" else torch.ones_like(fires)  # dead units look alike
        evidence(f"units found by {name} (share)", measured=same[known].double().mean(), at_least=1)
        after = gap(net, permuted(other, found), losses, x_ND)
        evidence(f"barrier after alignment by {name} (nats)", measured=after.barriers["loss"],
                 at_most=1e-6)  # fmt: skip
    pairs = zip(net.named_parameters(), other.parameters(), strict=True)
    step = {name: (q - p).detach() for (name, p), q in pairs}
    jump = Perturbation(before.distance, step)
    (jumped,) = butterfly(lambda: iter([(0, copy.deepcopy(net))]), [0], jump, {}, x_ND[:300], SITES)
    evidence("least CKA to a shuffled copy", measured=min(jumped.cka.values()), equals=1,
             tolerance=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    "extra", [[nn.BatchNorm1d(7)], [nn.LayerNorm(7), nn.Dropout(0.2)], [nn.PReLU(7)]],
    ids=["batch norm", "layer norm", "prelu"],
)  # fmt: skip
def test_permuted_units_compute_the_same(extra: list[nn.Module]) -> None:
    net = ends(small(*extra))
    for m in extra:
        for p in m.parameters():
            nn.init.uniform_(p)
    other, undo = shuffled(net, seed=1)
    assert not torch.equal(other[0].weight, net[0].weight)
    torch.testing.assert_close(other(X_ND), net(X_ND))
    for found in (match_weights(net, other), match_activations(net, other, X_ND)):
        assert [o.tolist() for o in found] == [o.tolist() for o in undo]


def test_weight_matching_reaches_the_best_of_all_permutations() -> None:
    from itertools import permutations

    def product(one: nn.Module, other: nn.Module) -> float:
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        return sum(float((p * q).detach().double().sum()) for p, q in pairs)

    one, other = (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)) for _ in range(2))
    found = product(one, permuted(other, match_weights(one, other)))
    every = [product(one, permuted(other, [torch.tensor(o)])) for o in permutations(range(5))]
    assert found == pytest.approx(max(every), rel=1e-6) and max(every) > product(one, other)


def test_activations_are_matched_by_correlation_whatever_their_means() -> None:
    one, other = (nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1)) for _ in range(2))
    one[0].load_state_dict(
        {"weight": torch.tensor([[1.0], [-1.0]]), "bias": torch.tensor([10.0, -7])}
    )
    other[0].load_state_dict(
        {"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.tensor([10.0, -7])}
    )
    (order,) = match_activations(one, other, torch.tensor([[-1.0], [0.2], [0.8]]))
    assert order.tolist() == [1, 0]


def test_cka_equals_the_kernel_form() -> None:
    shift = Perturbation(0.5, seed=4)
    (found,) = butterfly(small(), [3], shift, {}, X_ND, ["1:out"])

    def again(add: bool) -> np.ndarray[Any, Any]:
        net: Any
        first: dict[str, float] = {}
        for step, net in small()():
            first = first or {n: float(p.std(correction=0)) for n, p in net.state_dict().items()}
            if add and step == 3:
                shift.add_to(net, first)
        acts: np.ndarray[Any, Any] = net[:2](X_ND).detach().double().numpy()
        return acts

    middle = np.eye(300) - 1 / 300
    k, m = (middle @ (a @ a.T) @ middle for a in (again(False), again(True)))
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert found.cka["1:out"] == pytest.approx(expected, rel=1e-6) and expected < 0.99


def test_barrier_is_the_rise_above_the_line_between_the_ends() -> None:
    def start() -> Iterator[tuple[int, nn.Module]]:
        net = nn.Linear(1, 1, bias=False)
        nn.init.constant_(net.weight, -1.0)
        yield 0, net

    shift = Perturbation(3.0, {"weight": torch.ones(1, 1)})  # from -1 to 2
    bump = {"bump": lambda net: -(net.weight.item() ** 2) + 2 * net.weight.item()}
    (found,) = butterfly(start, [0], shift, bump, torch.ones(2, 1))
    assert found.plain.distance == 3.0
    assert found.plain.barriers["bump"] == pytest.approx(2.25)  # halfway: 3/4, the line: -3/2
    assert found.plain.curves["bump"][[0, -1]].tolist() == pytest.approx([-3, 0])


def test_batch_statistics_are_measured_anew_on_the_line() -> None:
    net = ends(small(nn.BatchNorm1d(7)))
    stale = copy.deepcopy(net)
    stale[1].running_mean += 5
    fresh = gap(stale, stale, {"loss": loss}, X_ND)
    with torch.no_grad():
        assert fresh.curves["loss"][0] == pytest.approx(float(loss(net.train())), rel=1e-3)
    assert stale[1].running_mean.mean() > 3, "the networks themselves stay as they are"


@pytest.mark.parametrize("kind", ["gaussian", "batch", "given"])
def test_a_perturbation_has_its_norm_and_its_direction(kind: str) -> None:
    net = ends(small())
    given = {"0.weight": torch.arange(35.0).view(7, 5)}
    stds = {"0.weight": 2.0, "0.bias": 0.0, "2.weight": 0.5, "2.bias": 0.0}
    direction: Any = {"gaussian": None, "batch": loss, "given": given}[kind]
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    Perturbation(0.3, direction).add_to(net, stds)
    added = {n: p.detach() - before[n] for n, p in net.named_parameters()}
    assert torch.cat([a.flatten() for a in added.values()]).norm() == pytest.approx(0.3, rel=1e-5)
    if kind == "gaussian":
        assert not added["0.bias"].any()
        assert 2 < added["0.weight"].std() / added["2.weight"].std() < 8
    else:
        net.load_state_dict(before)
        net.zero_grad()
        back(loss(net))
        expected = net[0].weight.grad if kind == "batch" else given["0.weight"]
        cosine = torch.cosine_similarity(added["0.weight"].view(-1), expected.view(-1), dim=0)
        assert cosine == pytest.approx(1, abs=1e-5)


def test_a_share_of_the_parameters_is_touched_and_the_seed_chooses_it() -> None:
    net = ends(small())
    start = net.state_dict()
    touched = []
    for seed in (0, 0, 1):
        net.load_state_dict(copy.deepcopy(start))
        before = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
        Perturbation(1.0, share=0.1, seed=seed).add_to(net, dict.fromkeys(start, 1.0))
        touched.append((nn.utils.parameters_to_vector(net.parameters()) != before).nonzero())
    assert len(touched[0]) == 6  # of 58
    assert torch.equal(touched[0], touched[1]) and not torch.equal(touched[0], touched[2])


def test_the_loss_of_an_extra_batch_leaves_the_training_as_it_was() -> None:
    def noisy(net: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(net(X_ND + torch.randn(300, 5)), Y_N)

    net = ends(small(nn.BatchNorm1d(7))).train()
    mean, state = net[1].running_mean.clone(), torch.get_rng_state()
    Perturbation(0.1, noisy).add_to(net, {})
    assert torch.equal(net[1].running_mean, mean) and torch.equal(torch.get_rng_state(), state)


def drifting() -> Iterator[tuple[int, nn.Module]]:
    yield 0, nn.Linear(5, 2)  # its weights are drawn anew


def several() -> Iterator[tuple[int, nn.Module]]:
    yield from ((step, nn.Linear(5, 2)) for step in range(2))


@pytest.mark.parametrize(
    ("train", "settings", "message"),
    [
        (small(), {"steps": [3, 99]}, r"\[99\] is not"),
        (drifting, {}, "deterministic, it differs at step 0"),
        (several, {}, "one network, another came at step 1"),
        (lambda: iter(()), {}, "it never did"),
        (small(), {"align": ["magic"]}, "got 'magic'"),
        (small(nn.Unflatten(1, (1, 7)), nn.Conv1d(1, 1, 3, padding=1), nn.Flatten()),
         {"align": ["weights"]}, r"2.weight of shape \(1, 1, 3\)"),
        (small(), {"perturbation": Perturbation(1.0, {"0.weight": torch.zeros(7, 5)})}, "norm 0"),
        (small(), {"perturbation": Perturbation(1.0, {"9": torch.ones(1)})}, "'9' does not"),
    ],
    ids=["step", "drifting", "several", "empty", "alignment", "conv", "zero", "name"],
)  # fmt: skip
def test_what_does_not_fit_is_refused(train: Train, settings: Any, message: str) -> None:
    given = {"steps": [0], "perturbation": Perturbation(0.1), "losses": {}, "inputs": X_ND}
    with pytest.raises(InputError, match=message):
        butterfly(train, **(given | settings))


@pytest.mark.parametrize("settings", [{"norm": -1.0}, {"norm": 1.0, "share": 0.0}], ids=str)
def test_sizes_of_a_perturbation(settings: Any) -> None:
    with pytest.raises(InputError, match="norm must be >= 0 and share in"):
        Perturbation(**settings)


def test_only_sequential_networks_have_known_hidden_units() -> None:
    with pytest.raises(InputError, match="got Transformer"):
        hidden_axes(nn.TransformerEncoderLayer(4, 2))
