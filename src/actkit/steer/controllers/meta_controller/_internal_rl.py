"""Reinforcement learning over codes: a policy decides only where the held code is replaced.

Shapes: B episodes, T steps, D width, Z code, H hidden units, V actions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from actkit.core.edits.edit import apply
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.model import Model
from actkit.steer.controllers.meta_controller._meta_network import MetaNetwork


class World(Protocol):
    """What a network acts in, several episodes at once."""

    def start(self, num_episodes: int, gen: torch.Generator) -> Tensor:
        """Begin anew; return the first input of each episode, (B, ...)."""

    def step(self, action_B: Tensor) -> Tensor | None:
        """Take an action in each episode; return the next inputs, None when all are over."""

    def reward(self) -> Tensor:
        """Return what the episodes that are over have earned, (B,)."""


class CodePolicy(nn.Module):
    """A causal policy: a normal distribution over codes, given the decisions up to now."""

    def __init__(self, width: int, num_codes: int, num_hidden: int, seed: int) -> None:
        """Begin near the prior N(0, I); the global random state stays as it is."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cell = nn.GRUCell(width, num_hidden)
            self.head = nn.Linear(num_hidden, num_codes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.log_std = nn.Parameter(torch.zeros(num_codes))

    def forward(self, e_BD: Tensor, memory_BH: Tensor) -> tuple[torch.distributions.Normal, Tensor]:
        """Return the distribution of codes, and the memory after this decision."""
        memory_BH = self.cell(e_BD, memory_BH)
        return torch.distributions.Normal(self.head(memory_BH), self.log_std.exp()), memory_BH


@dataclass
class Rollouts:
    """What was met and decided in episodes, one entry for each step."""

    e: list[Tensor] = field(default_factory=list)
    code: list[Tensor] = field(default_factory=list)
    decided: list[Tensor] = field(default_factory=list)

    def log_prob(self, policy: CodePolicy) -> Tensor:
        """Return the log-probability of each episode's decisions, (B,)."""
        memory_BH = self.e[0].new_zeros(len(self.e[0]), policy.cell.hidden_size)
        total_B = self.e[0].new_zeros(len(self.e[0]))
        for e_BD, code_BZ, decided_B in zip(self.e, self.code, self.decided, strict=True):
            normal, after_BH = policy(e_BD, memory_BH)
            memory_BH = torch.where(decided_B[:, None], after_BH, memory_BH)
            total_B = total_B + decided_B * normal.log_prob(code_BZ).sum(-1)
        return total_B


@dataclass(frozen=True)
class InternalPolicy:
    """A policy over codes, and how it was learnt.

    Attributes:
        policy: The policy.
        rewards: Mean reward of each round.
        network: The controller whose switching unit and decoder it uses.
        site: Where the controller writes.
    """

    policy: CodePolicy
    rewards: list[float]
    network: MetaNetwork
    site: str

    def play(self, model: Model, world: World, num_episodes: int, seed: int = 0) -> Tensor:
        """Return the reward of each of B new episodes; codes are the policy's means."""
        gen = torch.Generator().manual_seed(seed)
        _rollout(model, self, world, num_episodes, gen, explore=False)
        return world.reward()


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast to learn.

    Args:
        num_rounds: Batches of new episodes.
        batch_size: Episodes in a batch.
        num_epochs: Steps of the optimiser on each batch.
        learning_rate: Adam's.
        seed: Of weights, codes and actions.
    """

    num_rounds: int = 60
    batch_size: int = 128
    num_epochs: int = 4
    learning_rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if min(self.num_rounds, self.num_epochs) < 1 or self.batch_size < 2:
            raise InputError(
                "rounds and epochs must be at least 1 and episodes at least 2, got "
                f"{self.num_rounds}, {self.num_epochs} and {self.batch_size}"
            )


def reinforce(
    model: Model, network: MetaNetwork, site: str, world: World, how: Training
) -> InternalPolicy:
    """Learn a policy by PPO's clipped objective, with the advantage over its batch (GRPO)."""
    gen = torch.Generator().manual_seed(how.seed)
    policy = CodePolicy(network.watch.in_features, network.num_codes, 32, how.seed)
    policy.to(network.watch.weight)
    own = InternalPolicy(policy, [], network, site)
    optimiser = torch.optim.Adam(policy.parameters(), lr=how.learning_rate)
    for _ in track(range(how.num_rounds), "internal RL"):
        episodes = _rollout(model, own, world, how.batch_size, gen, explore=True)
        reward_B = world.reward().to(network.watch.weight)
        own.rewards.append(float(reward_B.mean()))
        advantage_B = (reward_B - reward_B.mean()) / (reward_B.std() + 1e-6)
        with torch.no_grad():
            before_B = episodes.log_prob(policy)
        for _ in range(how.num_epochs):
            ratio_B = (episodes.log_prob(policy) - before_B).exp()
            clipped_B = ratio_B.clamp(0.8, 1.2)
            loss = -torch.minimum(ratio_B * advantage_B, clipped_B * advantage_B).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return own


@torch.no_grad()
def _rollout(
    model: Model,
    own: InternalPolicy,
    world: World,
    num_episodes: int,
    gen: torch.Generator,
    *,
    explore: bool,
) -> Rollouts:
    """Let the controlled network act until all episodes are over."""
    episodes = Rollouts()
    edit = apply(own.site, _actor(own, episodes, num_episodes, gen if explore else None))
    inputs = [world.start(num_episodes, gen)]
    while True:
        logits = model.run(torch.stack(inputs, 1), edits=[edit], logits=True).logits
        probs_BV = logits[:, -1].float().softmax(-1).cpu()
        seen = world.step(torch.multinomial(probs_BV, 1, generator=gen)[:, 0])
        if seen is None:
            return episodes
        inputs.append(seen)


def _actor(
    own: InternalPolicy, episodes: Rollouts, num_episodes: int, gen: torch.Generator | None
) -> Callable[[Tensor], Tensor]:
    """Return what edits e_{1..t}: it decides on the code of the last step and keeps the others."""
    network, policy = own.network, own.policy
    weight = network.watch.weight
    held_BZ = weight.new_zeros(num_episodes, network.num_codes)
    memory_BH = weight.new_zeros(num_episodes, policy.cell.hidden_size)

    def act(e_BTD: Tensor) -> Tensor:
        nonlocal held_BZ, memory_BH
        e_BD = e_BTD[:, -1]
        decided_B = network.beta(network.watch(e_BD), held_BZ)[:, 0] > 0.5
        decided_B = decided_B | (not episodes.e)  # nothing is held yet
        normal, after_BH = policy(e_BD, memory_BH)
        code_BZ = normal.mean
        if gen is not None:
            code_BZ = code_BZ + normal.stddev * torch.randn(code_BZ.shape, generator=gen).to(
                code_BZ
            )
        held_BZ = torch.where(decided_B[:, None], code_BZ, held_BZ)
        memory_BH = torch.where(decided_B[:, None], after_BH, memory_BH)
        episodes.e.append(e_BD)
        episodes.code.append(held_BZ)
        episodes.decided.append(decided_B)
        return e_BTD + network.control(e_BTD, torch.stack(episodes.code, 1))

    return act
