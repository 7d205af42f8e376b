"""Scores of circuits: on a network whose circuit is known, and against knocking out by hand."""

import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError
from actkit.maths.statistics import interval, resampled_means
from actkit.model import Model
from actkit.trace import Parts, Task
from actkit.trace._ablations import means, removal
from actkit.trace._parts import as_parts
from actkit.trace.circuits.circuit_scores import circuit_scores
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace import _relay

EVERY = [(layer, head) for layer in range(_relay.LAYERS) for head in range(_relay.HEADS)]
CLEAN = ["w1 w2 w3 w4 w5", "w6 w2 w3 w4 w7", "w8 w2 w3 w5 w7"]
CORRUPT = ["w1 w12 w3 w4 w5", "w6 w13 w3 w9 w7", "w7 w2 w3 w9 w7"]


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def task(m: Model) -> Task:
    logits = m.run(CLEAN, logits=True).logits
    return Task(CLEAN, CORRUPT, logits[:, -1].argmax(-1), logits[:, -1].argmin(-1))


def by_hand(m: Model, task: Task, removed: set[tuple[int, int]]) -> float:
    """Return F with some heads at their mean over the corrupt prompts, head by head."""
    rec, trial = m.run(CORRUPT, record="z.*"), task.on(m)
    edits = [
        ak.set(f"z.{layer}", rec[f"z.{layer}"].mean(0, keepdim=True), ak.Where(heads=head))
        for layer, head in removed
    ]
    logits = m.run(CLEAN, edits=edits, logits=True).logits
    return float(trial.metric(logits[:, -1:]).mean())


def test_scores_equal_their_definitions_by_hand(m: Model, task: Task) -> None:
    classes = {"a": [(1, 4), (2, 4), (2, 5)], "b": [(0, 1)]}
    circuit = {v for c in classes.values() for v in c}
    rest = {(b, h) for b in range(tiny.LAYERS) for h in range(tiny.HEADS)} - circuit
    found = circuit_scores(m, task, classes, num_draws=3)
    faithful = abs(by_hand(m, task, set()) - by_hand(m, task, rest))
    assert found.faithfulness == pytest.approx(faithful, abs=1e-5)

    def incomplete(k: set[tuple[int, int]]) -> float:
        return abs(by_hand(m, task, rest | k) - by_hand(m, task, k))

    by_class = max(incomplete({*c}) for c in classes.values())
    assert found.completeness["class"] == pytest.approx(by_class, abs=1e-4)
    subsets = [{v for i, v in enumerate(sorted(circuit)) if n >> i & 1} for n in range(16)]
    assert found.completeness["random"] <= max(map(incomplete, subsets)) + 1e-4
    path = [set[tuple[int, int]]()]
    while more := [path[-1] | {v} for v in circuit - path[-1]]:
        path.append(max(more, key=incomplete))
        if incomplete(path[-1]) <= incomplete(path[-2]):
            path.pop()
            break
    assert len(path) > 1
    assert found.completeness["greedy"] == pytest.approx(incomplete(path[-1]), abs=1e-4)

    def needed(v: tuple[int, int], k: set[tuple[int, int]]) -> float:
        return abs(by_hand(m, task, rest | k | {v}) - by_hand(m, task, rest | k))

    larger = []
    for c in classes.values():
        for v in c:
            alone, last = needed(v, set()), needed(v, {*c} - {v})
            assert found.minimality[v] == pytest.approx(max(alone, last), abs=1e-4)
            larger.append(alone < last - 1e-3)
    assert any(larger)  # so that both choices of K are held
    assert not all(larger)


@pytest.mark.parametrize(
    ("parts", "nodes", "num_edits"),
    [
        (Parts("z", ("position", "head")), [(0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 0, 5)], 3),
        (as_parts("mlp"), [(0, 1), (0, 4), (2, 3)], 2),
        (as_parts("mlps"), [(0,), (2,)], 2),
        (as_parts("neurons"), [(1, 3), (1, 70), (2, 3)], 2),
    ],
    ids=["positions and heads", "positions", "blocks", "units"],
)
def test_parts_of_all_kinds_are_knocked_out_and_no_others(
    m: Model, task: Task, parts: Parts, nodes: list[tuple[int, ...]], num_edits: int
) -> None:
    names = [site.name for site in parts.sites(m)]
    values = means(task.on(m), names, ["w9 w8 w7 w6 w5", "w11 w12 w13 w14 w15"])
    together = removal(m, parts, nodes, values)
    assert len(together) == num_edits
    chosen = [parts.at(m, node) for node in nodes]
    one_by_one = [ak.set(p.site, values[p.site], p.where) for p in chosen]
    runs = [m.run(CLEAN, edits=e, record=names) for e in ([], together, one_by_one)]
    for name in names:
        assert torch.equal(runs[1][name], runs[2][name])
        assert torch.equal(runs[0][name], runs[1][name]) == (
            int(name.rpartition(".")[2]) < min(node[0] for node in nodes)
        )


def test_intervals_are_those_of_the_mean() -> None:
    """The bootstrap's spread is that of the mean, and its draws are shared between statistics."""
    gen = torch.Generator().manual_seed(1)
    values = 3 + 2 * torch.randn(200, generator=gen, dtype=torch.float64)
    means = resampled_means(values, 4000)
    assert float(means.std()) == pytest.approx(float(values.std()) / 200**0.5, rel=0.05)
    low, high = interval(means)
    assert float(high - low) == pytest.approx(2 * 1.96 * float(values.std()) / 200**0.5, rel=0.08)
    torch.testing.assert_close(resampled_means(2 * values + 1, 4000), 2 * means + 1)
    assert not torch.equal(resampled_means(values, 4000, seed=1), means)


def test_bad_circuits_are_refused(m: Model, task: Task) -> None:
    with pytest.raises(InputError, match=r"only ones that exist: .* unknown: \[\(3, 0\)\]"):
        circuit_scores(m, task, [(3, 0), (1, 1)])
    with pytest.raises(InputError, match=r"a circuit needs a part, .* got \[\]"):
        circuit_scores(m, task, {"mover": []})
    with pytest.raises(InputError, match="need at least 1 draw, got 0"):
        circuit_scores(m, task, [(1, 1)], num_draws=0)


@pytest.mark.paper("interpretability-wild-circuit-indirect")
def test_a_known_circuit_is_faithful_complete_and_minimal(evidence: Evidence) -> None:
    m, task = _relay.relay(), _relay.task()
    everything = circuit_scores(m, task, EVERY, num_draws=1)
    evidence("C = all heads: faithfulness", measured=everything.faithfulness, at_most=1e-6)

    found = circuit_scores(m, task, _relay.PATH)
    evidence("true circuit: faithfulness (logits)", measured=found.faithfulness, at_most=1e-4)
    worst = max(found.completeness.values())
    evidence("true circuit: largest incompleteness found", measured=worst, at_most=1e-4)
    least = min(found.minimality.values())
    evidence("true circuit: smallest need of a head", measured=least, at_least=1.0)
    median = found.random.median()
    evidence("median of 20 random circuits: faithfulness", measured=median, at_least=1.0)

    extra = circuit_scores(m, task, [*_relay.PATH, (1, 0)])
    dummy = extra.minimality.pop((1, 0))
    evidence("dummy head added to it: need", measured=dummy, at_most=1e-6)
    evidence("others beside it: smallest need", measured=min(extra.minimality.values()), at_least=1)

    short = circuit_scores(m, task, _relay.PATH[:2])
    evidence("without its last head: faithfulness", measured=short.faithfulness, at_least=1.0)
