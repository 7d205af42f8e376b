"""A small transformer trained on a mixture of tasks, then on the discrete ones alone.

Errors are squared distances to the answers without noise. With seeds 0, 1 and 2 the correlation
is 0.97, 0.93, 0.96, the rise 0.85, 0.79, 0.88, and 0.37, 0.63, 0.67 of it is recovered.
"""

import copy
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from actkit.model import Model
from actkit.read.network.task_inference import FamilyProbe, Prompts, TaskMixture, task_inference
from actkit.steer.inputs.conjugate_prompt import conjugate_prompt
from tests._evidence import Evidence

INPUTS, NUM_TASKS, POINTS, QUERIES = 5, 3, 12, 6
WIDTH, HEADS, BLOCKS = 48, 4, 3
SITE = f"blocks.{BLOCKS - 1}:out"
GAMMA = 2.0


class Block(nn.Module):
    """A gated MLP, then attention to the prompt's points, both after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.gate, self.up = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BTD: Tensor, num_points: int) -> Tensor:
        batch, num_tokens, _ = x_BTD.shape
        h_BTD = self.norm1(x_BTD)
        x_BTD = x_BTD + self.down(nn.functional.silu(self.gate(h_BTD)) * self.up(h_BTD))
        qkv = self.qkv(self.norm2(x_BTD)).view(batch, num_tokens, 3, HEADS, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        z = nn.functional.scaled_dot_product_attention(
            q, k[:, :, :num_points], v[:, :, :num_points]
        )
        mixed: Tensor = self.out(z.transpose(1, 2).reshape(batch, num_tokens, WIDTH))
        return x_BTD + mixed


class Regressor(nn.Module):
    """One token for each point (x, y) and each query x; answers at the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.query = nn.Linear(INPUTS + 1, WIDTH), nn.Linear(INPUTS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.answer = nn.LayerNorm(WIDTH), nn.Linear(2 * WIDTH, 1)
        self.gate, self.up = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x_BND: Tensor, y_BN: Tensor, query_BQD: Tensor) -> Tensor:
        points = self.point(torch.cat([x_BND, y_BN[..., None]], -1))
        h_BTD = torch.cat([points, self.query(query_BQD)], 1)
        for block in self.blocks:
            h_BTD = block(h_BTD, x_BND.shape[1])
        h_BQD = self.norm(h_BTD[:, x_BND.shape[1] :])
        answer_BQ1: Tensor = self.answer(nn.functional.silu(self.gate(h_BQD)) * self.up(h_BQD))
        return answer_BQ1[..., 0]


def train(
    net: Regressor, mixture: TaskMixture, share: float, optimisers: list[torch.optim.Optimizer],
    rates: list[float], batch: int, seed: int,
) -> None:  # fmt: skip
    """Take one step for each rate, a share of the optimisers' own."""
    own = [group["lr"] for o in optimisers for group in o.param_groups]
    for step, rate in enumerate(rates):
        given = mixture.draw(batch, POINTS, QUERIES, share, seed=1_000_000 * seed + step)
        assert given.target_BQ is not None
        # Targets without noise have the same best predictor, and less variance.
        off_BQ = net(given.x_BND, given.y_BN, given.query_BQD) - given.target_BQ
        net.zero_grad()
        off_BQ.square().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimiser, most in zip(optimisers, own, strict=True):
            optimiser.param_groups[0]["lr"] = most * rate
            optimiser.step()


def pretrained(seed: int, num_steps: int = 1500) -> tuple[Regressor, TaskMixture]:
    torch.manual_seed(seed)
    mixture, net = TaskMixture(torch.randn(NUM_TASKS, INPUTS)), Regressor()
    matrices = [p for p in net.blocks.parameters() if p.dim() == 2]
    others = [p for p in net.parameters() if all(p is not m for m in matrices)]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, 1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam(others, 5e-3, betas=(0.9, 0.98)),
    ]
    rates = [min((s + 1) / 100, 1) * max(0.02, 1 - s / num_steps) for s in range(num_steps)]
    train(net, mixture, mixture.share, optimisers, rates, 80, 2 * seed + 1)
    return net, mixture


def fine_tuned(net: Regressor, mixture: TaskMixture, seed: int, num_steps: int = 300) -> Regressor:
    """Return a copy that was trained on, on discrete tasks alone."""
    tuned = copy.deepcopy(net)
    optimiser = torch.optim.Adam(tuned.parameters(), 3e-4)
    train(tuned, mixture, 1.0, [optimiser], [1.0] * num_steps, 64, 2 * seed + 2)
    return tuned


def asked(net: Regressor, prompts: Prompts, gamma: float) -> Tensor:
    """Return the answers to prompts whose labels are scaled, scaled back."""
    scaled = conjugate_prompt(lambda x, y, q: (x, gamma * y, q), lambda a: torch.div(a, gamma))
    with torch.no_grad():
        return scaled(net)(prompts.x_BND, prompts.y_BN, prompts.query_BQD)


def error(answer_BQ: Tensor, prompts: Prompts) -> float:
    assert prompts.target_BQ is not None
    return float((answer_BQ - prompts.target_BQ).square().mean())


def both(one: Prompts, other: Prompts) -> Prompts:
    """Join two sets of prompts."""
    pairs = {n: (getattr(one, n), getattr(other, n)) for n in Prompts.__dataclass_fields__}
    return replace(one, **{n: torch.cat(pair) for n, pair in pairs.items()})


def measured(seed: int) -> dict[str, float]:
    """Train, fine-tune, and return every figure of the test below."""
    net, mixture = pretrained(seed)
    tuned = fine_tuned(net, mixture, seed)
    many = mixture.draw(1000, POINTS, 8, share=0.0, seed=7)
    few = mixture.draw(1000, POINTS, 8, share=1.0, seed=8)
    mixed = both(many, few)
    found, later = (task_inference(Model(n), mixed, mixture, SITE) for n in (net, tuned))
    alone, after = (task_inference(Model(n), many, mixture, SITE) for n in (net, tuned))
    figures = {
        "ratio": alone.errors["model"] / alone.errors["ridge"],
        "ratio on labels": (alone.errors["model"] + 1) / (alone.errors["ridge"] + 1),
        "correlation": found.correlation,
        "correlation after": later.correlation,
        "implied": alone.summary()["implied"],
        "implied after": after.summary()["implied"],
    }

    rise = after.errors["model"] - alone.errors["model"]
    recovered = after.errors["model"] - error(asked(tuned, many, GAMMA), many)
    figures |= {"rise": rise / alone.errors["model"], "recovered": recovered / rise}
    with torch.no_grad():
        plain_BQ = tuned(many.x_BND, many.y_BN, many.query_BQD)
    figures["identity"] = float((asked(tuned, many, 1.0) - plain_BQ).abs().max())
    figures["control"] = error(asked(net, many, GAMMA), many) / alone.errors["model"]

    order_B = alone.bayes_B.argsort()
    rises = []
    for part_B in (order_B[-200:], order_B[:200]):  # prompts near discrete tasks, and far
        near = Prompts(*(getattr(many, n)[part_B] for n in Prompts.__dataclass_fields__))
        before, now = (task_inference(Model(n), near, mixture).errors for n in (net, tuned))
        rises.append(now["model"] - before["model"])
    figures["near / far"] = rises[0] / rises[1]

    def rows(acts_BQW: Tensor | None, labels_B: Tensor | None) -> tuple[Tensor, Tensor]:
        assert acts_BQW is not None and labels_B is not None
        return acts_BQW.flatten(0, 1), labels_B.repeat_interleave(acts_BQW.shape[1])

    fitted = mixture.draw(1000, POINTS, 8, seed=9)
    acts_BQW = task_inference(Model(net), fitted, mixture, SITE).acts_BQW
    acts_MW, labels_M = rows(acts_BQW, fitted.discrete_B)
    probe = FamilyProbe().fit(acts_MW, labels_M)
    held_MW, held_M = rows(found.acts_BQW, mixed.discrete_B)
    figures["auroc"] = roc_auc_score(held_M, probe.posterior(held_MW))
    bayes_M = found.bayes_B.repeat_interleave(8)
    figures["auroc of bayes"] = roc_auc_score(held_M, bayes_M)
    order_M = torch.randperm(len(labels_M), generator=torch.Generator().manual_seed(0))
    shuffled = FamilyProbe().fit(acts_MW, labels_M[order_M])
    figures["auroc shuffled"] = roc_auc_score(held_M, shuffled.posterior(held_MW))
    for name, one in (("probe", alone), ("probe after", after)):
        own_MW, _ = rows(one.acts_BQW, many.discrete_B)
        figures[name] = float(probe.posterior(own_MW).mean())
    return figures


@pytest.mark.slow
@pytest.mark.paper("understanding-catastrophic-forgetting-language")
def test_fine_tuning_moves_the_inferred_task_and_conjugation_moves_it_back(
    evidence: Evidence,
) -> None:
    found = measured(seed=0)
    evidence("loss on labels of continuous tasks / ridge's, before",
             measured=found["ratio on labels"], at_most=1.3)  # fmt: skip
    # Without the labels' noise, which both share: 1.26, 1.33 and 1.22 with seeds 0, 1 and 2,
    # where the exact Bayes predictor of the mixture is at 1.04, 1.03 and 1.03.
    evidence("error without noise on continuous tasks / ridge's, before",
             measured=found["ratio"], at_most=1.4)  # fmt: skip
    evidence("correlation of implied and exact g, before", measured=found["correlation"],
             at_least=0.9)  # fmt: skip
    evidence("rise of the error on continuous tasks by fine-tuning (share)",
             measured=found["rise"], at_least=0.5)  # fmt: skip
    evidence("recovered by labels times 2 (share of the rise)", measured=found["recovered"],
             at_least=0.3)  # fmt: skip
    evidence("change by labels times 1", measured=found["identity"], at_most=0)
    evidence("labels times 2 before fine-tuning: error / error without",
             measured=found["control"], at_least=1)  # fmt: skip
    evidence("rise on the 200 prompts nearest to discrete tasks / on the 200 farthest",
             measured=found["near / far"], at_least=1.5)  # fmt: skip
    evidence("implied g of continuous prompts, after - before (mean)",
             measured=found["implied after"] - found["implied"], at_least=0.1)  # fmt: skip
    evidence("AUROC of the linear probe for the family, before", measured=found["auroc"],
             at_least=0.9)  # fmt: skip
    evidence("AUROC of a probe fitted on shuffled labels", measured=found["auroc shuffled"],
             at_most=0.7)  # fmt: skip
    evidence("probe's posterior of continuous prompts, after - before (mean)",
             measured=found["probe after"] - found["probe"], at_least=0.05)  # fmt: skip
