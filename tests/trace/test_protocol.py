"""The comparison of localizers: its parts by hand, and whole on a wired toy.

Shapes: L layers, H heads.
"""

import math
import subprocess
import sys

import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Scores, Task
from actkit.trace.nodes.patch import Patch
from actkit.trace.protocol import (
    PROTOCOL,
    RandomScores,
    by_head,
    correlation,
    faithfulness,
    shared_top,
)
from actkit.worlds.toy_transformer import reader
from tests.core import tiny


def first_token(num: int = 6) -> Task:
    """Pairs that differ in their first token, which is the answer."""
    clean = torch.tensor([[1 + i % 5, 1, 2] for i in range(num)])
    corrupt = clean.clone()
    corrupt[:, 0] = (clean[:, 0] + 1) % 6
    return Task(clean, corrupt, clean[:, 0], corrupt[:, 0], name="first token")


@pytest.fixture(scope="module")
def toy() -> Model:
    return Model(reader(at=(1, 2)))


def test_the_true_circuit_alone_keeps_the_whole_gap(toy: Model) -> None:
    trial = first_token().on(toy)
    right, wrong = torch.zeros(2, 3), torch.zeros(2, 3)
    right[1, 2] = 1.0
    wrong[0, 0] = 1.0
    assert faithfulness(trial, right) == pytest.approx([1.0] * 5, abs=1e-5)
    assert faithfulness(trial, wrong)[0] == pytest.approx(0.0, abs=1e-5)


def test_a_head_of_a_graph_is_the_sum_of_its_edges() -> None:
    names = [["logits", "mlp 0"], ["input", "head 0.0", "head 1.1"]]
    values = torch.tensor([[5.0, 0.5, 2.0], [7.0, -2.0, math.nan]])
    heads = by_head(Scores(values, names, ("receiver", "sender")))
    assert heads.values.tolist() == [[-1.5, 0.0], [0.0, 2.0]]
    assert heads.top(1) == [("layer 1, head 1", 2.0)]


def test_how_many_of_the_strongest_are_shared() -> None:
    exact = torch.tensor([[5.0, -4.0, 0.1], [0.0, 0.2, 3.0]])
    assert shared_top(-exact, exact, 3) == 1.0
    assert shared_top(exact.flip(1), exact, 3) == pytest.approx(1 / 3)


def test_scores_without_signs_are_compared_by_size() -> None:
    exact = torch.tensor([[2.0, -3.0], [0.5, 0.1]])
    assert correlation(2 * exact, exact) == pytest.approx(1.0)
    assert correlation(exact.abs(), exact) == pytest.approx(1.0)
    assert correlation(-exact, exact) == pytest.approx(-1.0)
    assert correlation(torch.ones(2, 2), exact) == 0.0


def test_exact_patching_agrees_with_itself_and_random_scores_do_not(toy: Model) -> None:
    board = ak.compare(
        "trace", toy, task=first_token(12), seeds=2,
        methods={"patch": None, "random": None, "mine": Patch("heads", "noise")},
    )  # fmt: skip
    scores = board.scores()
    assert next(iter(scores)) in ("patch", "mine")
    for name in ("heads", "MLPs", "stream"):
        expected = 0.0 if name == "MLPs" else 1.0  # the toy's MLPs do nothing
        assert scores["patch"][f"agreement, {name}"].mean == pytest.approx(expected, abs=1e-5)
    for name in ("patch", "mine"):
        assert scores[name]["faithfulness"].mean == pytest.approx(1.0, abs=1e-4)
        assert scores[name]["AUC"].mean > 0.95
    assert scores["random"]["AUC"].mean < 0.9
    assert "random" in board.table()


def test_every_localizer_without_settings_takes_part(toy: Model) -> None:
    names = set(PROTOCOL.methods("ioi"))
    assert {"patch", "attribution_patching", "eap", "relp", "acdc", "random"} <= names
    board = ak.compare("trace", toy, task=first_token(8), seeds=1)
    assert {run.method for run in board.runs} == names - {"acdc"}
    assert [run.error for run in board.runs if run.error] == []


def test_bad_input_is_refused(toy: Model) -> None:
    with pytest.raises(InputError, match="task must be one of ioi, "):
        ak.compare("trace", toy, task="nothing")
    with pytest.raises(InputError, match="at least 2 pairs, got 1"):
        PROTOCOL.measure(RandomScores, first_token(1), toy, 0)
    with pytest.raises(InputError, match="pass a model"):
        PROTOCOL.measure(RandomScores, first_token(), None, 0)


def test_pairs_of_several_lengths_compare_heads_alone() -> None:
    m = tiny.model()
    ends = ["w2 w3", "w2 w3 w4", "w7 w3 w2 w8"] * 2
    sides = [f"w1 {end}" for end in ends], [f"w{5 + i} {end}" for i, end in enumerate(ends)]
    logits = m.run(sides[0], logits=True).logits
    best, worst = logits[:, -1].argmax(-1), logits[:, -1].argmin(-1)
    task = Task(*sides, best, worst)
    assert len(set(task[[0, 1, 2]].on(m).valid("clean").sum(-1).tolist())) == 3
    found = PROTOCOL.measure(Patch(), task, m, 0)
    assert math.isnan(found["agreement, stream"])
    assert found["agreement, heads"] == pytest.approx(1.0)


def test_methods_that_take_no_part_are_not_imported() -> None:
    code = (
        "import sys; from actkit.trace.protocol import PROTOCOL; PROTOCOL.methods('ioi'); "
        "print([n for n in sys.modules if n.endswith(('.nodes.patch', '.reasoning.tree_path'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['actkit.trace.nodes.patch']"
