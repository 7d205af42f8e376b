from collections.abc import Iterator
from math import isnan, nan, sqrt

import pytest
import torch
from torch import Tensor, nn

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.opening.checkpoints import Checkpoints
from actkit.read.training.strategy_tracker import (
    AccuracyCurve,
    BurstyTask,
    Probe,
    StrategyResult,
    strategy_tracker,
)
from tests._evidence import Evidence
from tests.core import tiny

TASK = BurstyTask(num_classes=600, num_labels=15, num_held_out=12, num_exemplars=3)
NUM = 900


class Copy(nn.Module):
    """Answers with the label beside the same class in the context, else with one of its labels."""

    def __init__(self, task: BurstyTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, token_BT: Tensor) -> Tensor:
        class_BT = (token_BT[:, ::2] - self.task.num_labels) // self.task.num_exemplars
        same_BK = (class_BT[:, :-1] == class_BT[:, -1:]).double()
        votes_BV = torch.full((len(token_BT), self.task.vocabulary), 1e-3)
        return votes_BV.double().scatter_add(1, token_BT[:, 1::2], same_BK + 1e-3)


class Lookup(nn.Module):
    """Answers with the label that the class had in training, whatever the context."""

    def __init__(self, task: BurstyTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, token_BT: Tensor) -> Tensor:
        class_B = (token_BT[:, -1] - self.task.num_labels) // self.task.num_exemplars
        right_B = class_B % self.task.num_labels
        # Between labels that are not the class's own its choice depends on the class alone.
        gen = torch.Generator().manual_seed(0)
        habit_BV = torch.rand(999, self.task.vocabulary, generator=gen)[class_B]
        return habit_BV + 2 * nn.functional.one_hot(right_B, self.task.vocabulary)


class Planted(nn.Module):
    """Answers the first share of the questions rightly and the others wrongly."""

    def __init__(self, probe: Probe, share: float) -> None:
        super().__init__()
        self.probe, self.num_right = probe, round(share * len(probe.answer_B))

    def forward(self, token_BT: Tensor) -> Tensor:
        said_B = self.probe.answer_B.clone()
        said_B[self.num_right :] ^= 1
        return nn.functional.one_hot(said_B, 2).double()[:, None].expand(-1, token_BT.shape[1], -1)


def tracked(module: nn.Module, task: BurstyTask = TASK) -> StrategyResult:
    return strategy_tracker(
        Checkpoints({7: module}), task.in_context(NUM, seed=1), task.in_weights(NUM, seed=2)
    )


@pytest.mark.paper("transient-nature-emergent-context")
def test_each_probe_is_solved_by_its_own_strategy_alone(evidence: Evidence) -> None:
    for name, module in (("induction-copy", Copy(TASK)), ("lookup-table", Lookup(TASK))):
        found = tracked(module)
        own, other = found.in_context, found.in_weights
        if name == "lookup-table":
            own, other = other, own
        evidence(f"{name} model: accuracy on its own probe", measured=own.accuracy[0],
                 at_least=0.99)  # fmt: skip
        off = (other.accuracy[0] - other.chance) / other.sigma
        evidence(f"{name} model: distance from chance on the other probe (sigma)",
                 measured=abs(off), at_most=3)  # fmt: skip
    for module in (Copy(TASK), Lookup(TASK)):
        token_BT, answer_B = TASK.train(NUM, seed=3)
        solved = (module(token_BT).argmax(-1) == answer_B).double().mean()
        evidence(f"{type(module).__name__}: accuracy on training sequences", measured=solved,
                 at_least=0.99)  # fmt: skip


@pytest.mark.paper("transient-nature-emergent-context")
def test_a_planted_rise_and_fall_is_found(evidence: Evidence) -> None:
    probe = TASK.in_context(400, seed=4)
    shares = {100: 0.5, 200: 0.55, 300: 0.9, 400: 0.8, 500: 0.6}
    rise = {step: Planted(probe, share) for step, share in shares.items()}
    curve = strategy_tracker(Checkpoints(rise), probe, probe).in_context
    assert curve.accuracy == pytest.approx(tuple(shares.values()))
    evidence("transience of a curve with peak 0.9, final 0.6 and chance 0.5",
             measured=curve.transience, equals=0.75, tolerance=1e-12)  # fmt: skip
    evidence("its peak step", measured=curve.peak_step, equals=300, tolerance=0)
    assert curve.onset == 300  # 0.55 is not above 0.5 + 3 sqrt(0.25 / 400) = 0.575
    assert curve.sigma == sqrt(0.25 / 400)


def test_the_relabelled_trained_classes_mislead_memory_but_not_copying() -> None:
    probe = TASK.in_context(NUM, seed=5, held_out=False)
    memory = TASK.in_weights(NUM)
    accuracy = {
        kind: strategy_tracker(Checkpoints([kind(TASK)]), probe, memory).in_context.accuracy[0]
        for kind in (Copy, Lookup)
    }
    assert accuracy[Copy] == 1
    assert abs(accuracy[Lookup] - 0.5) < 3 * sqrt(0.25 / NUM)


def test_sequences_are_made_as_promised() -> None:
    token_BT, answer_B = TASK.train(200, seed=6)
    class_BT = (token_BT[:, ::2] - 15) // 3
    label_BK = token_BT[:, 1::2]
    assert torch.equal(label_BK, class_BT[:, :-1] % 15)
    assert torch.equal(answer_B, class_BT[:, -1] % 15)
    for row in class_BT.tolist():
        counts = sorted(row[:-1].count(c) for c in set(row[:-1]))
        assert counts == [1, 1, 3, 3] and row[:-1].count(row[-1]) == 3
    assert len(set(token_BT[:, ::2].flatten().tolist())) > 600  # several exemplars a class
    assert class_BT.max() < 600 <= (TASK.in_context(50).inputs[:, ::2].min() - 15) // 3
    weights = TASK.in_weights(200, seed=7)
    class_BT = (weights.inputs[:, ::2] - 15) // 3
    assert all(len(set(row)) == 9 for row in class_BT.tolist())
    context = TASK.in_context(200, seed=8)
    assert context.copy_BT is not None
    copied = context.inputs[context.copy_BT == 1].reshape(200, 4)
    others = context.inputs[context.copy_BT == -1].reshape(200, 4)
    assert (copied == context.answer_B[:, None]).all() and (others == 1 - copied).all()
    assert 0.4 < context.answer_B.double().mean() < 0.6
    again, other = TASK.train(200, seed=6)[0], TASK.train(200, seed=9)[0]
    assert TASK.vocabulary == 15 + (600 + 12) * 3 > TASK.in_context(NUM).inputs.max()
    assert torch.equal(again, token_BT) and not torch.equal(other, token_BT)


def test_induction_is_the_last_queries_attention_on_the_labels_to_copy() -> None:
    task = BurstyTask(num_classes=20, num_labels=5, num_held_out=4, shots=4, burst=2)
    model = tiny.model()
    probe = task.in_context(11, seed=3)
    found = strategy_tracker(Checkpoints([model, model]), probe, task.in_weights(11))
    assert set(found.induction_SH) == {f"attn_probs.{i}" for i in range(tiny.LAYERS)}
    rec = model.run(probe.inputs, record="attn_probs.1")
    score = 0.0
    for b, (tokens, answer) in enumerate(zip(probe.inputs.tolist(), probe.answer_B, strict=True)):
        for t in range(1, 8, 2):
            sign = 1 if tokens[t] == int(answer) else -1
            score += sign * float(rec["attn_probs.1"][b, 4, 8, t]) / 11
    found_SH = found.induction_SH["attn_probs.1"]
    assert found_SH.shape == (2, tiny.HEADS)
    assert float(found_SH[1, 4]) == pytest.approx(score, abs=1e-6)


def test_networks_whose_attention_cannot_be_read_are_tracked_without_it() -> None:
    assert tracked(Copy(TASK)).induction_SH == {}
    probe = TASK.in_context(9)
    bare = Probe(probe.inputs, probe.answer_B, probe.choices)
    held = strategy_tracker(Checkpoints([Copy(TASK)]), bare, TASK.in_weights(9))
    assert held.induction_SH == {} and isnan(held.summary()["induction"])


def test_a_training_loop_is_read_as_it_goes_and_left_in_its_mode() -> None:
    probe = TASK.in_context(100)
    net = Planted(probe, 0.5)

    def loop() -> Iterator[tuple[int, nn.Module]]:
        net.train()
        for step, share in ((10, 0.5), (20, 0.7), (30, 1.0)):
            assert net.training
            net.num_right = round(100 * share)
            yield step, net

    curve = strategy_tracker(Checkpoints(loop), probe, probe).in_context
    assert curve.steps == (10, 20, 30) and curve.accuracy == pytest.approx((0.5, 0.7, 1.0))
    assert curve.transience == 0 and curve.peak_step == 30 and curve.onset == 20


def test_curves_at_their_limits() -> None:
    lost = AccuracyCurve((1, 2), (1.0, 0.5), 0.5, 100)
    assert lost.transience == 1
    never = AccuracyCurve((1, 2, 3), (0.5, 0.6, 0.5), 0.5, 100)  # the bar is 0.65
    assert never.onset is None and isnan(never.transience)
    assert AccuracyCurve((1, 2), (0.65, 0.66), 0.5, 100).onset == 2


def test_competition_is_the_rank_correlation_after_the_peak() -> None:
    steps = (0, 1, 2, 3)
    fall = AccuracyCurve(steps, (0.5, 0.9, 0.7, 0.6), 0.5, 100)
    rise = AccuracyCurve(steps, (0.9, 0.2, 0.5, 0.7), 0.1, 100)
    assert StrategyResult(fall, rise, {}).competition == pytest.approx(-1)
    for other in (
        AccuracyCurve(steps, (0.1,) * 4, 0.1, 100),
        AccuracyCurve(steps, (0, 1, 1, 1), 0.1, 100),
    ):
        assert isnan(StrategyResult(fall, other, {}).competition)
    late = AccuracyCurve(steps, (0.5, 0.6, 0.7, 0.9), 0.5, 100)
    found = StrategyResult(late, rise, {"attn_probs.0": torch.tensor([[0.1, -0.4]])})
    assert isnan(found.competition)
    assert found.summary()["induction"] == pytest.approx(0.1)
    assert found.summary()["in_weights_peak_step"] == 0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(5, 7), r"answer 9 questions with entries up to 14, got shape \(5, 7\)"),
        (torch.zeros(9, 17, 14), r"up to 14, got shape \(9, 17, 14\)"),
        (torch.full((9, 15), nan), "must be finite, got 9 of 9 rows"),
    ],
    ids=["too few rows", "too few labels", "not finite"],
)
def test_logits_that_do_not_fit_are_refused(output: Tensor, message: str) -> None:
    class Fixed(nn.Module):
        def forward(self, token_BT: Tensor) -> Tensor:
            return output

    probe = TASK.in_weights(9)
    with pytest.raises(InputError, match=message):
        strategy_tracker(Checkpoints([Model(Fixed())]), probe, probe)


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"num_classes": 8}, "as many classes as shots"), ({"shots": 7}, "odd"),
     ({"burst": 5}, "no room"), ({"num_labels": 1}, "one label"),
     ({"num_held_out": 1}, "one held-out class"), ({"num_exemplars": 0}, "no exemplar")],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_impossible_tasks_are_refused(settings: dict[str, int], why: str) -> None:
    with pytest.raises(InputError, match="more classes than shots"):
        BurstyTask(**settings)


def test_probes_without_an_answer_are_refused() -> None:
    token_BT = torch.zeros(2, 3, dtype=torch.int64)
    for answer_B, choices in (
        (torch.tensor([0, 2]), (0, 1)),
        (torch.tensor([], dtype=torch.int64), (0, 1)),
        (torch.tensor([0, 1]), (0, 1, 1)),
    ):
        with pytest.raises(InputError, match="answers among its choices"):
            Probe(token_BT, answer_B, choices)
