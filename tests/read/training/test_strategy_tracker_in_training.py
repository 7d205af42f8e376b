"""Context against weights while a network of two blocks is trained on bursty sequences.

Answers from the context come here, and stay: the paper sees them go again after millions of
sequences, a test has 50,000.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from actkit.opening.checkpoints import Checkpoints
from actkit.read.training.strategy_tracker import BurstyTask, StrategyResult, strategy_tracker
from tests._evidence import Evidence

WIDTH, BATCH, NUM = 64, 64, 1000


class SmearedKeys(nn.Module):
    """Mixes each key with the one before it, so that one head alone can learn to copy.

    Without it the same network needs many more steps than a test has to form its first
    induction head: after 1200 steps none was there.
    """

    def __init__(self, keys: nn.Linear) -> None:
        super().__init__()
        self.keys, self.mix = keys, nn.Parameter(torch.zeros(keys.out_features))

    def forward(self, x_BTD: Tensor) -> Tensor:
        now_BTD: Tensor = self.keys(x_BTD)
        before_BTD = nn.functional.pad(now_BTD, (0, 0, 1, -1))
        return now_BTD + self.mix.sigmoid() * (before_BTD - now_BTD)


def network(task: BurstyTask, noise: float, seed: int) -> Any:
    """Two blocks on fixed input vectors: one a class, plus noise for each of its exemplars."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=task.vocabulary, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32,
        initializer_range=0.1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    net: Any = LlamaForCausalLM(config)
    num_classes = task.num_classes + task.num_held_out
    class_C1D = torch.randn(num_classes, 1, WIDTH)
    exemplar_CED = class_C1D + noise * torch.randn(num_classes, task.num_exemplars, WIDTH)
    exemplars = exemplar_CED.flatten(0, 1) / (1 + noise**2) ** 0.5
    embedding = net.model.embed_tokens.weight.requires_grad_(False)
    embedding.copy_(torch.cat([torch.randn(task.num_labels, WIDTH), exemplars]))
    for block in net.model.layers:
        block.self_attn.k_proj = SmearedKeys(block.self_attn.k_proj)
    return net


def track(
    task: BurstyTask, noise: float, num_steps: int, rate: float, seed: int = 0
) -> tuple[StrategyResult, list[float]]:
    """Train, and look at the network sixteen times on the way."""
    net, losses = network(task, noise, seed), []
    every = num_steps // 16

    def train() -> Iterator[tuple[int, nn.Module]]:
        optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], rate)
        for step in range(num_steps + 1):
            if step % every == 0:
                yield step, net
            token_BT, answer_B = task.train(BATCH, seed=1_000_000 * (seed + 1) + step)
            last_BD = net.model(input_ids=token_BT, use_cache=False).last_hidden_state[:, -1]
            logits_BL = net.lm_head(last_BD)[:, : task.num_labels]
            loss = nn.functional.cross_entropy(logits_BL, answer_B)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())

    probes = task.in_context(NUM, seed=1), task.in_weights(NUM, seed=2)
    return strategy_tracker(Checkpoints(train), *probes), losses


def spearman(steps: tuple[int, ...], accuracy: tuple[float, ...]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(steps, accuracy).statistic)


@pytest.mark.slow
@pytest.mark.paper("transient-nature-emergent-context")
def test_with_many_classes_the_network_answers_from_its_context(evidence: Evidence) -> None:
    found, _ = track(BurstyTask(num_classes=2048), noise=0.0, num_steps=192, rate=3e-3)
    evidence("2048 classes: peak accuracy on the in-context probe (chance 0.5)",
             measured=found.in_context.peak, at_least=0.95)  # fmt: skip
    evidence("2048 classes: final accuracy on the in-weights probe (chance 0.03)",
             measured=found.in_weights.accuracy[-1], at_most=0.2)  # fmt: skip
    best_S = torch.stack([s.amax(1) for s in found.induction_SH.values()]).amax(0)
    evidence("2048 classes: induction score of the best head, at the end", measured=best_S[-1],
             at_least=0.3)  # fmt: skip
    evidence("2048 classes: induction score of the best head, untrained", measured=best_S[0],
             at_most=0.05)  # fmt: skip


@pytest.mark.slow
@pytest.mark.paper("transient-nature-emergent-context")
def test_with_few_varied_classes_it_learns_them_by_heart(evidence: Evidence) -> None:
    task = BurstyTask(num_classes=128, num_held_out=64, num_exemplars=20)
    found, losses = track(task, noise=1.5, num_steps=640, rate=6e-3)
    weights, context = found.in_weights, found.in_context
    evidence("128 classes: Spearman of step and in-weights accuracy",
             measured=spearman(weights.steps, weights.accuracy), at_least=0.8)  # fmt: skip
    evidence("128 classes: final accuracy on the in-weights probe (chance 0.03)",
             measured=weights.accuracy[-1], at_least=0.4)  # fmt: skip
    evidence("128 classes: peak of the in-context probe over chance (sigma)",
             measured=(context.peak - context.chance) / context.sigma, at_least=3)  # fmt: skip
    late = [sum(losses[start : start + 100]) / 100 for start in (220, 540)]
    evidence("128 classes: training loss at the end / at half time", measured=late[1] / late[0],
             at_most=0.8)  # fmt: skip
