"""Tasks and trials: metrics by hand in float64, and what of a task does not fit a network.

Shapes: B pairs, V vocabulary, n rows.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Task, TaskWarning
from actkit.trace.nodes.patch import Patch
from tests.core import tiny

CLEAN = ["w1 w2 w3 w4 w5", "w6 w2 w3 w4 w7", "w8 w2 w9 w4 w5"]
CORRUPT = ["w1 w12 w3 w4 w5", "w6 w13 w3 w4 w7", "w8 w14 w9 w4 w5"]
ANSWERS, WRONG = ["w3", "w4", "w5"], ["w7", "w8", "w9"]
GIVEN = {"clean": CLEAN, "corrupt": CORRUPT, "answers": ANSWERS, "wrong": WRONG}


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def both(m: Model) -> np.ndarray[Any, Any]:
    """Last logits of the clean and then of the corrupt prompts, (6, V) in float64."""
    logits = m.run(CLEAN + CORRUPT, logits=True).logits
    out: np.ndarray[Any, Any] = logits[:, -1].double().numpy()
    return out


def softmax(logits: Any) -> Any:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(metric: str, logits_V: Any, clean_V: Any, plus: list[int], minus: list[int]) -> float:
    p, q = softmax(logits_V), softmax(clean_V)
    return float(
        {
            "logit difference": lambda: np.log(p[plus].sum()) - np.log(p[minus].sum()),
            "probability": lambda: p[plus].sum(),
            "log probability": lambda: np.log(p[plus].sum()),
            "probability difference": lambda: p[plus].sum() - p[minus].sum(),
            "KL": lambda: (q * np.log(q / p)).sum(),
        }[metric]()
    )


METRICS = ["logit difference", "probability", "log probability", "probability difference", "KL"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_metrics_equal_those_by_hand(m: Model, both: Any, metric: str, several: bool) -> None:
    """Several answers may be of different numbers; rows may come again and again."""
    plus: list[Any] = [["w3"], ["w4"], ["w5"]]
    minus: list[Any] = [["w7"], ["w8"], ["w9"]]
    if several:
        plus, minus = [["w3", "w10", "w11"], ["w4"], ["w5", 20]], [["w7"], [8, 9], ["w9"]]
    trial = Task(CLEAN, CORRUPT, plus, minus, metric).on(m)

    def ids(row: list[Any]) -> list[int]:
        return [w if isinstance(w, int) else int(w[1:]) for w in row]

    found = trial.metric(torch.tensor(both)[:, None])
    expected = [
        by_hand(metric, both[i], both[i % 3], ids(plus[i % 3]), ids(minus[i % 3])) for i in range(6)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=2e-6)
    assert trial.clean_values.tolist() == pytest.approx(expected[:3], rel=1e-4, abs=2e-6)
    assert trial.corrupt_values.tolist() == pytest.approx(expected[3:], rel=1e-4, abs=2e-6)
    assert trial.gap == pytest.approx(np.mean(expected[:3]) - np.mean(expected[3:]), abs=1e-5)


def test_a_task_of_one_word_each_is_a_difference_of_logits(m: Model, both: Any) -> None:
    trial = Task(CLEAN, CORRUPT, ANSWERS, WRONG).on(m)
    expected = [both[i, 3 + i] - both[i, 7 + i] for i in range(3)]
    assert trial.clean_values.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_can_be_differentiated(m: Model, metric: str) -> None:
    trial = Task(CLEAN, CORRUPT, [["w3", "w4"], ["w4"], ["w5"]], WRONG, metric).on(m)
    logits = trial.corrupt_logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(trial.metric(logits).sum(), logits)
    assert slope.isfinite().all() and slope[:, -1].any(-1).all()


def test_kl_of_the_clean_run_is_zero_and_of_others_positive(m: Model) -> None:
    trial = Task(CLEAN, CORRUPT, metric="KL").on(m)
    assert trial.clean_values.abs().max() < 1e-6
    assert (trial.corrupt_values > 0).all()
    assert trial.right.all() and trial.able


def test_half_precision_is_measured_in_single(m: Model) -> None:
    trial = Task(CLEAN, CORRUPT, ANSWERS, WRONG).on(tiny.model(torch.bfloat16))
    assert trial.clean_values.dtype == torch.float32


# -- what a trial knows --------------------------------------------------------------------------


def test_recovery_is_a_share_of_the_gap(m: Model) -> None:
    trial = Task(CLEAN, CORRUPT, ANSWERS, WRONG).on(m)
    ends = torch.stack([trial.corrupt_values, trial.clean_values])
    torch.testing.assert_close(trial.recovery(ends), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(trial.recovery(ends, "clean"), torch.tensor([1.0, 0.0]))


def test_swept_values_are_those_of_single_runs(m: Model) -> None:
    trial = Task(CLEAN, CORRUPT, ANSWERS, WRONG).on(m)
    edit = ak.scale("mlp_out.1", 0.0)
    swept = trial.sweep([[], [edit]])
    torch.testing.assert_close(swept[0], trial.corrupt_values)
    logits = m.run(CORRUPT, edits=[edit], logits=True).logits
    torch.testing.assert_close(swept[1], trial.metric(logits[:, -1:]))


def test_short_prompts_are_padded_on_the_left_and_read_like_single_ones(m: Model) -> None:
    clean, corrupt = ["w1 w2 w3 w4 w5", "w6 w7"], ["w1 w9 w3 w4 w5", "w8 w7"]
    answers, wrong = ["w3", "w8"], ["w7", "w4"]
    trial = Task(clean, corrupt, answers, wrong).on(m)
    single = [Task([a], [b], [c], [d]).on(m) for a, b, c, d in zip(
        clean, corrupt, answers, wrong, strict=True)]  # fmt: skip
    for name in ("clean_values", "corrupt_values"):
        alone = torch.cat([getattr(t, name) for t in single])
        torch.testing.assert_close(getattr(trial, name), alone, rtol=1e-4, atol=1e-5)
    assert trial.valid("clean").sum(-1).tolist() == [5, 2]
    assert trial.first == 0
    assert trial.words == ["w1", "w2", "w3", "w4", "w5"]
    with pytest.raises(InputError, match=r"prompts of one length, got \[2, 5\] tokens"):
        trial.length  # noqa: B018
    assert Patch("mlps")(m, trial).values.isfinite().all()
    with pytest.raises(InputError, match="prompts of one length"):
        Patch("resid")(m, trial)


def test_one_pair_and_slices(m: Model) -> None:
    task = Task(CLEAN, CORRUPT, ANSWERS, WRONG, name="three")
    assert [len(t) for t in (task, task[:2], task[1:], task[[2]])] == [3, 2, 2, 1]
    last = task[[2]]
    assert (last.clean, last.answers, last.name) == ([CLEAN[2]], [ANSWERS[2]], "three")
    whole = task.on(m).clean_values
    torch.testing.assert_close(task[1:].on(m).clean_values, whole[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last.on(m).clean_values, whole[2:], rtol=1e-4, atol=1e-5)
    ids = Task(torch.tensor([[1, 2], [3, 2]]), torch.tensor([[4, 2], [5, 2]]), [1, 3], [4, 5])
    assert torch.equal(torch.as_tensor(ids[1:].clean), torch.tensor([[3, 2]]))


def test_token_ids_and_words_are_the_same_task(m: Model) -> None:
    ids = [torch.tensor([[int(w[1:]) for w in text.split()] for text in side])
           for side in (CLEAN, CORRUPT)]  # fmt: skip
    one = Task(ids[0], ids[1], torch.tensor([3, 4, 5]), [7, 8, 9]).on(m)
    other = Task(CLEAN, CORRUPT, ANSWERS, WRONG).on(m)
    torch.testing.assert_close(one.clean_values, other.clean_values)
    assert one.first == other.first == 1
    assert one.prompt(0) == "[1, 2, 3, 4, 5]"


def test_the_first_difference_of_equal_sides_is_the_last_token(m: Model) -> None:
    assert Task(CLEAN, CLEAN, ANSWERS, WRONG).on(m).first == 4


def test_other_positions_can_be_asked(m: Model) -> None:
    trial = Task(CLEAN, CORRUPT, metric=lambda x: x[:, :, 3].mean(-1), at=slice(1, 4)).on(m)
    logits = m.run(CLEAN, logits=True).logits
    torch.testing.assert_close(trial.clean_values, logits[:, 1:4, 3].mean(-1))


def test_right_compares_the_best_of_each_side(m: Model, both: Any) -> None:
    order = np.argsort(both[0])[::-1].tolist()
    best, second, third = order[:3]
    pair = ([CLEAN[0]], [CORRUPT[0]])
    cases: list[tuple[Any, Any, bool]] = [
        ([[third, best]], [[second]], True),
        ([[second, third]], [[best]], False),
        ([best], None, True),
        ([second], None, False),
    ]
    for plus, minus, right in cases:
        trial = Task(*pair, plus, minus, "probability").on(m)
        assert trial.right.tolist() == [right]


def test_a_network_that_cannot_do_the_task_is_said_so(m: Model, both: Any) -> None:
    worst, best = both[:3].argmin(-1).tolist(), both[:3].argmax(-1).tolist()
    trial = Task(CLEAN, CORRUPT, worst, best, name="hard").on(m)
    assert not trial.able
    assert "hard on tiny-llama: 0 of 3 clean prompts right" in trial.report
    assert "the network does not do this task: maps of it mean little" in trial.report
    assert f"wrong: 1 {CLEAN[1]!r}" in trial.report
    with pytest.warns(TaskWarning, match="0 of 3 clean prompts right"):
        trial.check()


def test_the_report_lists_ten_of_many_wrong_prompts(m: Model, both: Any) -> None:
    worst, best = int(both[0].argmin()), int(both[0].argmax())
    trial = Task(CLEAN[:1] * 13, CORRUPT[:1] * 13, [worst] * 13, [best] * 13).on(m)
    assert trial.report.count("wrong: ") == 10 and trial.report.endswith("and 3 more")


# -- sides that are aligned by hand --------------------------------------------------------------


def test_aligned_prompts_patch_each_token_where_it_belongs(m: Model) -> None:
    """The corrupt prompt lacks a word and names another; each token takes its counterpart's."""
    clean, corrupt = ["w1 w2 w3 w4 w5"], ["w1 w12 w4 w5"]
    task = Task(clean, corrupt, ["w3"], ["w7"], align=[[0, 1, 3, 4]])
    trial = task.on(m)
    site = "resid_pre.1"
    source = trial.source("clean", site)[site]
    recorded = m.run(clean, record=site)[site]
    torch.testing.assert_close(source[0], recorded[0, [0, 1, 3, 4]])
    back = trial.source("corrupt", site)[site]
    own = m.run(corrupt, record=site)[site]
    torch.testing.assert_close(back[0, [0, 1, 3, 4]], own[0])
    torch.testing.assert_close(back[0, 2], recorded[0, 2])
    assert trial.first == 0


def test_a_token_without_counterpart_keeps_its_own(m: Model) -> None:
    trial = Task(["w1 w2 w3"], ["w1 w12 w3"], ["w3"], ["w7"], align=[[0, -1, 2]]).on(m)
    site = "resid_pre.1"
    source, own = trial.source("clean", site)[site], trial.record("corrupt", site)[site]
    torch.testing.assert_close(source[0, 1], own[0, 1])
    torch.testing.assert_close(source[0, 2], trial.record("clean", site)[site][0, 2])


# -- refusals ------------------------------------------------------------------------------------


def test_unequal_lengths_show_both_tokenisations(m: Model) -> None:
    task = Task(CLEAN, [*CORRUPT[:2], "w8 w2"], ANSWERS, WRONG)
    with pytest.raises(InputError, match="pair 2 has 5 and 2") as error:
        task.on(m)
    assert "clean   ['w8', 'w2', 'w9', 'w4', 'w5']" in str(error.value)
    assert "corrupt ['w8', 'w2']" in str(error.value)
    assert "Task(align=)" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clean": []}, "at least one, got {'clean': 0"),
        ({"answers": ["w3"]}, "'answers': 1"),
        ({"align": [[0, 1]]}, "'align': 1"),
        ({"metric": "joy"}, "metric must be one of logit difference"),
        ({"wrong": None}, "the metric 'logit difference' needs wrong"),
        ({"answers": None, "wrong": None}, "needs answers and wrong"),
    ],
    ids=["none", "answers", "align", "metric", "wrong", "both"],
)
def test_tasks_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = GIVEN | settings
    with pytest.raises(InputError, match=said):
        Task(**given)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"answers": ["w3 w4", "w4", "w5"]}, r"one token, got 'w3 w4' of 2: \['w3', 'w4'\]"),
        ({"wrong": ["w3", [], "w5"]}, r"a pair needs answers.* got \[\]"),
        ({"answers": [3, 4, tiny.WORDS]}, f"below the {tiny.WORDS} tokens, got {tiny.WORDS}"),
        ({"wrong": [3, -4, 5]}, r"from 0 on, got \[-4\]"),
        ({"align": [range(5)] * 2 + [[0, 1]]}, r"5 corrupt tokens of pair 2 .* got \[0, 1\]"),
        ({"align": [range(5)] * 2 + [range(1, 6)]}, r"pair 2 .* in 0..4 or -1, got \[1, 2"),
    ],
    ids=["two tokens", "no answer", "beyond", "negative", "short align", "far align"],
)
def test_what_does_not_fit_the_network_is_refused(
    m: Model, settings: dict[str, Any], said: str
) -> None:
    given: dict[str, Any] = GIVEN | settings
    with pytest.raises(InputError, match=said):
        Task(**given).on(m).clean_values  # noqa: B018


def test_words_need_a_tokenizer() -> None:
    bare = Model(tiny.llama())
    with pytest.raises(InputError, match=r"words need a tokenizer .* got 'w3'"):
        Task(torch.tensor([[1, 2]]), torch.tensor([[3, 2]]), ["w3"], ["w4"]).on(bare)


@pytest.mark.parametrize(
    ("metric", "got"),
    [(lambda x: x[:, -1], r"\(3, 89\)"), (lambda x: x.sum(), r"\(\)"), (lambda x: 1.0, "float")],
    ids=["wide", "scalar", "number"],
)
def test_a_metric_of_another_shape_is_refused(m: Model, metric: Any, got: str) -> None:
    trial = Task(CLEAN, CORRUPT, metric=metric).on(m)
    with pytest.raises(InputError, match=rf"of shape \(3,\) for logits .* got {got}"):
        trial.metric(trial_logits(m))


def trial_logits(m: Model) -> Tensor:
    logits = m.run(CLEAN, logits=True).logits
    return logits[:, -1:]


def test_rows_that_are_no_copies_of_the_pairs_are_refused(m: Model) -> None:
    trial = Task(CLEAN, CORRUPT, ANSWERS, WRONG).on(m)
    with pytest.raises(InputError, match="of 3 pairs again and again, got 2 rows"):
        trial.metric(trial_logits(m)[:2])


def test_a_side_is_clean_or_corrupt(m: Model) -> None:
    with pytest.raises(InputError, match="'clean' or 'corrupt', got 'dirty'"):
        Task(CLEAN, CORRUPT, ANSWERS, WRONG).on(m).batch("dirty")


def test_sides_without_a_gap_give_no_share(m: Model) -> None:
    trial = Task(CLEAN, CLEAN, ANSWERS, WRONG).on(m)
    assert not trial.able
    with pytest.raises(InputError, match="shares need a gap, but clean and corrupt give the same"):
        trial.recovery(trial.clean_values)
