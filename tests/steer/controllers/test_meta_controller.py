"""A meta-controller on a toy: its parts by hand, sub-goals that it finds, rewards that it earns.

Three sub-policies take turns of 5 to 9 steps. At each step a symbol is seen, and the action
depends on the sub-policy and on the sum of the symbol and the last action. The base is a GRU that
was trained on sequences of which one half begin each turn with the name of the sub-policy, and the
other half mix the sub-policies at every step; names are never shown afterwards.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy, one_hot

import actkit as ak
from actkit.core.errors import InputError, NotFittedError
from actkit.model import Model
from actkit.steer.controllers.meta_controller import MetaController, free_energy
from actkit.steer.controllers.meta_controller._internal_rl import CodePolicy, Rollouts
from actkit.steer.controllers.meta_controller._meta_network import Codes, MetaNetwork
from tests._evidence import Evidence
from tests.contract import check_restored
from tests.core.tiny import uneven

SYMBOLS, ACTIONS, WIDTH, STEPS = 4, 6, 32, 24
SITE = "gru:out"


class Sequences(NamedTuple):
    """Inputs (N, T, 14), actions, sub-policies and beginnings (N, T)."""

    inputs: Tensor
    actions: Tensor
    policy: Tensor
    begins: Tensor


def act(policy: Tensor, symbol: Tensor, last: Tensor) -> Tensor:
    return 2 * policy + (symbol + last) % 2


def features(symbol: Tensor, begins: Tensor, named: Tensor, last: Tensor) -> Tensor:
    parts = one_hot(symbol, SYMBOLS), begins[..., None], named, one_hot(last, ACTIONS)
    return torch.cat([p.float() for p in parts], -1)


def draw(num: int, gen: torch.Generator, *, named: bool) -> Sequences:
    """Draw sequences: without names, or, for the base, with names or mixed."""
    policy = torch.zeros(num, STEPS, dtype=torch.long)
    begins = torch.zeros(num, STEPS)
    for row in range(num):
        t, own = 0, int(torch.randint(3, (1,), generator=gen))
        while t < STEPS:
            turn = int(torch.randint(5, 10, (1,), generator=gen))
            policy[row, t : t + turn], begins[row, t] = own, 1
            t, own = t + turn, (own + 1 + int(torch.randint(2, (1,), generator=gen))) % 3
    told = torch.rand(num, 1, generator=gen) < (0.5 if named else 0.0)
    if named:
        mixed = torch.randint(3, (num, STEPS), generator=gen)
        policy = torch.where(told, policy, mixed)
    symbols = torch.randint(SYMBOLS, (num, STEPS), generator=gen)
    actions, last = [], torch.zeros(num, dtype=torch.long)
    for t in range(STEPS):
        actions.append(last := act(policy[:, t], symbols[:, t], last))
    taken = torch.stack(actions, 1)
    before = torch.cat([torch.zeros(num, 1, dtype=torch.long), taken[:, :-1]], 1)
    names = one_hot(policy, 3) * (begins * told)[..., None]
    return Sequences(features(symbols, begins, names, before), taken, policy, begins)


class Base(nn.Module):
    """A GRU, whose output is the stream, and a block on top of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru = nn.GRU(SYMBOLS + ACTIONS + 4, WIDTH, batch_first=True)
        self.block = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, WIDTH))
        self.head = nn.Linear(WIDTH, ACTIONS)

    def forward(self, x: Tensor) -> Tensor:
        e = self.gru(x)[0]
        logits: Tensor = self.head(e + self.block(e))
        return logits


class World:
    """Three sub-goals in a fixed order: each is reached by 80 % right actions in its turn."""

    order = torch.tensor([2, 0, 1])

    def start(self, num_episodes: int, gen: torch.Generator) -> Tensor:
        self.gen, self.t = gen, 0
        self.turns = torch.randint(5, 10, (num_episodes, 3), generator=gen)
        self.right = torch.zeros(num_episodes, 3)
        self.last = torch.zeros(num_episodes, dtype=torch.long)
        return self._see()

    def _see(self) -> Tensor:
        num = len(self.last)
        self.symbol = torch.randint(SYMBOLS, (num,), generator=self.gen)
        begins = (self.turns.cumsum(1) - self.turns == self.t).any(1)
        return features(self.symbol, begins, torch.zeros(num, 3), self.last)

    def step(self, action_B: Tensor) -> Tensor | None:
        ends = self.turns.cumsum(1)
        turn = (self.t >= ends).sum(1)
        asked = act(self.order[turn.clamp(max=2)], self.symbol, self.last)
        won = (action_B == asked) & (turn < 3)
        self.right[torch.arange(len(won)), turn.clamp(max=2)] += won
        self.last, self.t = action_B, self.t + 1
        return self._see() if (self.t < ends[:, -1]).any() else None

    def reward(self) -> Tensor:
        return (self.right >= 0.8 * self.turns).all(1).float()


class Trained(NamedTuple):
    model: Model
    train: Sequences
    test: Sequences


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The base, trained on named and mixed sequences, and sequences without names."""
    gen, base = torch.Generator().manual_seed(0), Base()
    data = draw(512, gen, named=True)
    optimiser = torch.optim.Adam(base.parameters(), lr=5e-3)
    for _ in range(400):
        index = torch.randint(512, (32,), generator=gen)
        logits = base(data.inputs[index])
        optimiser.zero_grad()
        cross_entropy(logits.flatten(0, 1), data.actions[index].flatten()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    base.zero_grad()
    return Trained(ak.open(base), draw(512, gen, named=False), draw(128, gen, named=False))


def fit(trained: Trained, **settings: Any) -> MetaController:
    data = {"inputs": trained.train.inputs, "actions": trained.train.actions}
    return MetaController(SITE, **settings).fit(trained.model, data)


@pytest.fixture(scope="module")
def fitted(trained: Trained) -> MetaController:
    return fit(trained)


def near(marks_NT: Tensor) -> Tensor:
    """Return the steps that are at most one step from a mark."""
    return torch.nn.functional.max_pool1d(marks_NT.float()[:, None], 3, 1, 1)[:, 0] > 0


def boundary_f1(codes: Codes, test: Sequences) -> float:
    """Return F1 of the steps of beta > 0.5, but the first, against beginnings, within one step."""
    found, true = codes.beta_BT[:, 1:] > 0.5, test.begins[:, 1:] > 0
    precision = (found & near(true)).sum() / found.sum()
    recall = (true & near(found)).sum() / true.sum()
    return float(2 * precision * recall / (precision + recall))


def agreement(codes: Codes, test: Sequences) -> float:
    """Return the normalised mutual information of three clusters of codes and sub-policies."""
    flat = codes.code_BTZ.flatten(0, 1).numpy()
    labels = KMeans(3, n_init=4, random_state=0).fit_predict(flat)
    return float(normalized_mutual_info_score(test.policy.flatten(), labels))


def network(width: int = 5, num_codes: int = 3) -> MetaNetwork:
    return MetaNetwork(width, num_codes, rank=2, num_hidden=7, seed=1)


def test_control_is_a_low_rank_matrix_of_the_code() -> None:
    net, e, z = network(), uneven(2, 4, 5), uneven(2, 4, 3, seed=1)
    found = net.control(e, z)
    for b in range(2):
        for t in range(4):
            left, right = net.decode(z[b, t]).reshape(2, 2, 5)
            u = left.mT @ right
            assert torch.linalg.matrix_rank(u) == 2
            torch.testing.assert_close(found[b, t], u @ e[b, t])


def test_the_price_is_the_divergence_from_the_prior() -> None:
    mean, log_std = uneven(2, 4, 3), 0.3 * uneven(2, 4, 3, seed=2)
    codes = Codes(mean, mean[..., 0], mean, log_std)
    prior = Normal(torch.zeros(3), torch.ones(3))
    expected = kl_divergence(Normal(mean, log_std.exp()), prior).sum(-1).mean()
    torch.testing.assert_close(codes.divergence(), expected)


def test_codes_are_mixed_by_the_switch() -> None:
    """The recursion in float64, with the switching unit's own formula."""
    net, e, z = network().double(), uneven(2, 6, 5).double(), uneven(2, 6, 3, seed=1).double()
    found, betas = net.hold(z, e)
    held = torch.zeros(2, 3).double()
    for t in range(6):
        hidden = torch.tanh(e[:, t] @ net.watch.weight.mT + net.watch.bias
                            + held @ net.recall.weight.mT)  # fmt: skip
        beta = torch.sigmoid(hidden @ net.switch.weight[0] + net.switch.bias)
        held = beta[:, None] * z[:, t] + (1 - beta[:, None]) * held
        torch.testing.assert_close(found[:, t], held)
        torch.testing.assert_close(betas[:, t], beta)


def test_proposals_see_the_future_and_the_switch_does_not() -> None:
    net, e = network(), uneven(1, 6, 5)
    changed = e.clone()
    changed[:, 4:] += 1
    one, other = net.encode(e), net.encode(changed)
    assert (one.mean_BTZ[:, :4] != other.mean_BTZ[:, :4]).any(-1).all()
    z = uneven(1, 6, 3)
    assert torch.equal(net.hold(z, e)[1][:, :4], net.hold(z, changed)[1][:, :4])


def test_proposals_are_drawn_with_their_own_noise() -> None:
    net, e = network(), uneven(400, 3, 5)
    codes = net.encode(e, torch.Generator().manual_seed(0))
    nn.init.constant_(net.switch.bias, 1e9)
    drawn = net.encode(e, torch.Generator().manual_seed(0)).code_BTZ
    score = (drawn - codes.mean_BTZ) / codes.log_std_BTZ.exp()
    assert score.mean().abs() < 0.05
    assert (score.std() - 1).abs() < 0.05


@pytest.mark.paper("emergent-temporal-abstractions-autoregressive")
def test_codes_are_held_and_replaced_exactly(evidence: Evidence) -> None:
    net, e, z = network().requires_grad_(False), uneven(3, 9, 5), uneven(3, 9, 3, seed=1)
    nn.init.constant_(net.switch.bias, 1e9)
    replaced = (net.hold(z, e)[0] - z).abs().max()
    evidence("change of the code where beta is 1, against the proposal",
             measured=replaced, at_most=0.0)  # fmt: skip
    nn.init.constant_(net.switch.bias, 0.0)
    nn.init.zeros_(net.switch.weight)
    nn.init.zeros_(net.recall.weight)
    nn.init.zeros_(net.watch.weight)
    nn.init.zeros_(net.watch.bias)
    net.watch.weight.data[0, 0] = net.switch.weight.data[0, 0] = 1e9
    e[..., 0] = torch.where(torch.arange(9) % 4 == 0, 1e9, -1e9)  # beta is 1, 0, 0, 0, 1, ...
    held = (net.hold(z, e)[0] - z[:, torch.arange(9) // 4 * 4]).abs().max()
    evidence("change of the code while beta is 0", measured=held, at_most=0.0)


@pytest.mark.paper("emergent-temporal-abstractions-autoregressive")
def test_the_base_stays_as_it_is(trained: Trained, evidence: Evidence) -> None:
    module = trained.model.module
    own = fit(trained, num_steps=2)
    grads = sum(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    evidence("weights of the base with a gradient after training", measured=grads, at_most=0)
    nn.init.zeros_(own.network_.decode.weight)
    nn.init.zeros_(own.network_.decode.bias)
    controlled = trained.model.run(trained.test.inputs, edits=own.edits()).output
    with torch.no_grad():
        change = (controlled - module(trained.test.inputs)).abs().max()
    evidence("change of the logits with U = 0", measured=change, at_most=0.0)


@pytest.mark.slow
@pytest.mark.paper("emergent-temporal-abstractions-autoregressive")
def test_sub_goals_are_found(trained: Trained, fitted: MetaController, evidence: Evidence) -> None:
    codes = fitted.codes(trained.model, trained.test.inputs)
    evidence("F1 of switches and sub-goals, within one step",
             measured=boundary_f1(codes, trained.test), at_least=0.8)  # fmt: skip
    frozen = agreement(codes, trained.test)
    evidence("NMI of clusters of codes and sub-policies", measured=frozen, at_least=0.7)
    loss = [
        cross_entropy(
            trained.model.run(trained.test.inputs, edits=fitted.edits(s)).output.flatten(0, 1),
            trained.test.actions.flatten(),
        )
        for s in (0.0, 1.0)
    ]
    evidence("NLL of the actions under control as a share of the base's",
             measured=loss[1] / loss[0], at_most=0.2)  # fmt: skip

    together = agreement(*cotrained(trained))
    evidence("NMI with a frozen base less NMI with a base that learns too",
             measured=frozen - together, at_least=0.05)  # fmt: skip


def cotrained(trained: Trained) -> tuple[Codes, Sequences]:
    """Return the codes of a controller that was trained together with its base."""
    model = ak.open(copy.deepcopy(trained.model.module))
    net = MetaNetwork(WIDTH, 4, 4, 32, seed=0)
    gen = torch.Generator().manual_seed(0)
    weights = [*net.parameters(), *model.module.parameters()]
    optimiser = torch.optim.Adam(weights, lr=3e-3)
    for step in range(600):
        index = torch.randint(512, (32,), generator=gen)
        given = trained.train.inputs[index], trained.train.actions[index]
        loss = free_energy(model, net, SITE, given, 0.2 * min(1.0, step / 300), gen)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
    with torch.no_grad():
        return net.encode(model.run(trained.test.inputs, SITE)[SITE]), trained.test


@pytest.mark.slow
@pytest.mark.paper("emergent-temporal-abstractions-autoregressive")
def test_internal_rl_earns_what_tokens_do_not(
    trained: Trained, fitted: MetaController, evidence: Evidence
) -> None:
    """Both have 60 rounds of 128 episodes, and a reward only for all three sub-goals."""
    policy = fitted.internal_rl(trained.model, World())
    evidence("success in the first round of internal RL (share)",
             measured=policy.rewards[0], at_most=0.1)  # fmt: skip
    won = policy.play(trained.model, World(), 256, seed=1).mean()
    evidence("success after internal RL (share)", measured=won, at_least=0.5)
    evidence("success after REINFORCE on single actions (share)",
             measured=by_tokens(trained.model.module), at_most=0.05)  # fmt: skip


def by_tokens(base: nn.Module, rounds: int = 60) -> float:
    """Return the success of a copy of the base in its last round of REINFORCE on its actions."""
    net, world, gen = copy.deepcopy(base), World(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(rounds):
        seen, taken = [world.start(128, gen)], list[Tensor]()
        while len(taken) < len(seen):
            with torch.no_grad():
                probs = net(torch.stack(seen, 1))[:, -1].softmax(-1)
            taken.append(torch.multinomial(probs, 1, generator=gen)[:, 0])
            if (after := world.step(taken[-1])) is not None:
                seen.append(after)
        reward = world.reward()
        log_p = net(torch.stack(seen, 1)).log_softmax(-1)
        chosen = log_p.gather(-1, torch.stack(taken, 1)[..., None]).sum((1, 2))
        loss = -((reward - reward.mean()) / (reward.std() + 1e-6) * chosen).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(reward.mean())


def test_only_decisions_count(trained: Trained) -> None:
    """The log-probability is that of the codes where the switch is on, each given those before."""
    policy = CodePolicy(5, 3, 7, seed=0)
    policy.head.weight.data = uneven(3, 7)
    e, z = uneven(4, 2, 5), uneven(4, 2, 3, seed=1)
    decided = torch.tensor([[1, 1], [0, 1], [0, 0], [1, 0]]).bool()
    found = Rollouts(list(e), list(z), list(decided)).log_prob(policy)
    for row in range(2):
        memory, expected = torch.zeros(1, 7), torch.zeros(())
        for t in range(4):
            if decided[t, row]:
                memory = policy.cell(e[t, row][None], memory)
                normal = Normal(policy.head(memory)[0], 1.0)
                expected = expected + normal.log_prob(z[t, row]).sum()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(found[row], expected)


def test_internal_rl_leaves_model_and_controller(trained: Trained) -> None:
    own = fit(trained, num_steps=2)
    before = copy.deepcopy(own.network_.state_dict())

    def learn() -> object:
        return own.internal_rl(trained.model, World(), num_rounds=2, batch_size=5)

    check_restored(trained.model.module, learn)
    after = own.network_.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(InputError, match="episodes at least 2, got 60, 4 and 1"):
        own.internal_rl(trained.model, World(), batch_size=1)


def test_edits_are_saved_and_are_the_controller(trained: Trained, tmp_path: Path) -> None:
    own, x = fit(trained, num_steps=2), trained.test.inputs[:3]
    doses = torch.tensor([0.0, 1.0, 0.4])
    e = trained.model.run(x, SITE)[SITE]
    codes = own.codes(trained.model, x).code_BTZ
    expected = e + doses[:, None, None] * own.network_.control(e, codes).detach()
    path = tmp_path / "edits.safetensors"
    ak.save_edits(path, own.edits(doses))
    for edits in (own.edits(doses), ak.load_edits(path)):
        torch.testing.assert_close(trained.model.run(x, SITE, edits)[SITE], expected)


def test_fit_is_seeded_and_leaves_the_global_random_state(trained: Trained) -> None:
    state = torch.get_rng_state()
    one, same = fit(trained, num_steps=3), fit(trained, num_steps=3)
    other = fit(trained, num_steps=3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    read: Callable[[MetaController], Tensor] = lambda own: own.edits()[0].operation.weights  # type: ignore[attr-defined]  # noqa: E731
    assert torch.equal(read(one), read(same))
    assert not torch.equal(read(one), read(other))


def test_bad_data_are_refused(trained: Trained) -> None:
    x, a = trained.train.inputs, trained.train.actions
    own = MetaController(SITE, num_steps=1)
    with pytest.raises(InputError, match="map inputs and actions"):
        own.fit(trained.model, [(x, a)])
    with pytest.raises(InputError, match=r"agree .* got \(512, 24, 14\) and \(512, 23\)"):
        own.fit(trained.model, {"inputs": x, "actions": a[:, 1:]})
    flat = {"inputs": torch.ones(3, 2), "actions": torch.ones(3, 2)}
    with pytest.raises(InputError, match=r"0:out must be \(B, T, D\), got"):
        MetaController("0:out").fit(ak.open(nn.Sequential(nn.Linear(2, 2))), flat)
    with pytest.raises(NotFittedError, match="fitted"):
        MetaController(SITE).codes(trained.model, x)
