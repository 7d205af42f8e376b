"""Activation patching on SmolLM2: its limits, and what a choice of metric or corruption hides."""

import pytest
import torch

import actkit as ak
from actkit.model import Model
from actkit.trace import Task, Trial, tasks
from actkit.trace._robustness import Choice, robustness
from actkit.trace.nodes.patch import Patch
from actkit.worlds.toy_transformer import clear, set_head, toy
from tests._evidence import Evidence

BEST = "towards-best-practices-activation"


def limits(trial: Trial, last: str) -> list[float]:
    """Return what nothing, all of the first stream and the end of the last one recover."""
    source = trial.source("clean", ["resid_pre.0", last])
    whole, end = ak.swap("resid_pre.0", source), ak.swap(last, source, ak.Where(tokens=-1))
    recovered: list[float] = trial.recovery(trial.sweep([[], [whole], [end]])).tolist()
    return recovered


@pytest.mark.paper(BEST)
@pytest.mark.parametrize("bundled", ["ioi", "capitals"])
def test_all_of_the_stream_is_everything_and_nothing_is_nothing(
    smollm2: Model, evidence: Evidence, bundled: str
) -> None:
    task = tasks.ioi(20) if bundled == "ioi" else tasks.capitals(20)
    nothing, stream, end = limits(task.on(smollm2), "resid_post.29")
    name = f"20 pairs of {task.name}: "
    evidence(name + "nothing patched", measured=nothing, equals=0, tolerance=1e-6)
    evidence(name + "all positions at layer 0", measured=stream, equals=1, tolerance=1e-4)
    evidence(
        name + "the last position after the last layer", measured=end, equals=1, tolerance=1e-6
    )


def opposed() -> Model:
    """Head 0 copies the token to the logits, strongly; head 1 takes some of that away."""
    net = clear(toy(6, layers=1, heads=2, width=12))
    net.transformer.wte.weight.data[:, :6] = torch.eye(6)
    read, write = torch.eye(12)[:, :6], torch.eye(12)[6:]
    set_head(net, 0, 0, v=read, o=10 * write)
    set_head(net, 0, 1, v=read, o=-3 * write)
    net.lm_head.weight.data[:, 6:] = torch.eye(6)
    return Model(net)


@pytest.mark.paper(BEST)
def test_probability_misses_a_negative_head(evidence: Evidence) -> None:
    """Without its clean token the network gives the answer no probability that could be lost."""
    m, pair = opposed(), (torch.tensor([[3]]), torch.tensor([[4]]), [3], [4])
    by_logits = Patch("heads")(m, Task(*pair)).values[0]
    by_probability = Patch("heads")(m, Task(*pair, metric="probability")).values[0]
    evidence("negative head, logit difference (share of the gap)", measured=by_logits[1],
             equals=-3 / 7, tolerance=1e-5)  # fmt: skip
    evidence("negative head, probability (size)", measured=by_probability[1].abs(), at_most=0.01)
    assert by_logits[0] == pytest.approx(10 / 7)
    assert by_probability[0] > 0.5


@pytest.mark.slow
@pytest.mark.paper(BEST)
def test_noise_says_something_else_than_replacing(smollm2: Model, evidence: Evidence) -> None:
    task, ways = tasks.capitals(2), [Choice("replace"), Choice("noise")]
    heads = robustness(smollm2, task, "heads", ways)
    evidence("rank correlation of heads, replacing and noise", measured=heads.correlations[0, 1],
             at_least=0.0, at_most=0.99)  # fmt: skip
    first, again = (robustness(smollm2, task, "attns", ways, seed=s).scores for s in (0, 1))
    evidence("replacing twice, largest difference", measured=(first - again)[0].abs().max(),
             equals=0, tolerance=0)  # fmt: skip
    evidence("noise of two seeds, largest difference (share of the gap)",
             measured=(first - again)[1].abs().max(), at_least=0.01)  # fmt: skip
