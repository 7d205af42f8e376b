"""Causal mediation: the formula by hand, and where a trained adder does its sums.

Shapes: B pairs, T tokens, L layers, V vocabulary.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Part, Scores, Task
from actkit.trace._parts import as_parts
from actkit.trace.nodes.mediation import Mediation, relative_importance
from actkit.worlds.toy_transformer import toy
from tests._evidence import Evidence
from tests.core import tiny

CLEAN, CORRUPT = ["w1 w2 w3 w4", "w6 w2 w7 w5"], ["w1 w12 w3 w4", "w6 w13 w9 w5"]
KEY = "mechanistic-interpretation-arithmetic-reasoning"
FIRST, SECOND, LAST = 0, 2, 3
"""Positions in "a + b =" of the operands and of the token that the sum follows."""


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


def probabilities(m: Model, edits: list[ak.Edit], ids: list[int]) -> Tensor:
    """Return the (B,) probabilities of a word after the corrupt prompts."""
    logits = m.run(CORRUPT, edits=edits, logits=True).logits
    return logits[:, -1].double().softmax(-1)[torch.arange(2), torch.tensor(ids)]


@pytest.mark.filterwarnings("ignore::actkit.trace._task.TaskWarning")
@pytest.mark.parametrize("same", [False, True], ids=["two results", "one result"])
@pytest.mark.parametrize("parts", ["mlp", "attn", "heads"])
def test_scores_equal_the_formula_by_hand(m: Model, parts: str, same: bool) -> None:
    new, old = [7, 40], [7, 40] if same else [33, 2]
    metric = "probability" if same else "logit difference"
    task = Task(CLEAN, CORRUPT, new, None if same else old, metric=metric)
    scores = Mediation(parts)(m, task).values
    before = [probabilities(m, [], ids) for ids in (new, old)]
    kind = as_parts(parts)
    for index in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
        part: Part = kind.at(m, tuple(index))
        edit = ak.swap(part.site, m.run(CLEAN, record=part.site), part.where)
        after = [probabilities(m, [edit], ids) for ids in (new, old)]
        effect = ((after[0] - before[0]) / before[0] + (before[1] - after[1]) / after[1]) / 2
        assert scores[tuple(index)] == pytest.approx(float(effect.log1p().mean()), abs=1e-5), part


def test_shares_of_several_scores_are_of_their_common_sum() -> None:
    a = Scores(torch.tensor([[1.0, 3.0], [2.0, -1.0]]), [["0", "1"]] * 2, ("layer", "position"))
    b = Scores(torch.tensor([5.0]), [["0"]], ("layer",))
    upper = torch.tensor([[True, True], [False, False]])
    none = torch.tensor([False])
    assert relative_importance(a, [upper]) == pytest.approx(4 / 5)
    assert relative_importance([a, b], [upper, none]) == pytest.approx(4 / 10)
    assert relative_importance([a, b], [~upper, ~none]) == pytest.approx(6 / 10)
    with pytest.raises(InputError, match=r"mask of its shape, got \[\(1,\)\] for \[\(2, 2\)\]"):
        relative_importance(a, [none])
    with pytest.raises(InputError, match="do not sum to zero"):
        relative_importance(Scores(torch.zeros(1), [["0"]], ("layer",)), [none])


@pytest.mark.filterwarnings("ignore::actkit.trace._task.TaskWarning")
def test_results_must_be_one_word_each(m: Model) -> None:
    with pytest.raises(InputError, match="got 2 answers and 1 wrong"):
        Mediation("mlp")(m, Task(CLEAN, CORRUPT, [[7, 8], [9]], [3, 4]))
    with pytest.raises(InputError, match="needs the answers"):
        Mediation("mlp")(m, Task(CLEAN, CORRUPT, metric="KL"))


def sums() -> tuple[Tensor, Tensor]:
    """Return the hundred prompts "a + b =" as (100, 4) ids, and their results modulo ten."""
    operands = torch.cartesian_prod(torch.arange(10), torch.arange(10))
    signs = torch.tensor([[10, 11]]).expand(100, 2)
    columns = (operands[:, 0], signs[:, 0], operands[:, 1], signs[:, 1])
    return torch.stack(columns, 1), operands.sum(1) % 10


def untrained(seed: int) -> Any:
    return toy(12, 3, 4, 48, positions=4, mlp=192, norm=True, scale=True, seed=seed)


@pytest.fixture(scope="module")
def adder() -> Model:
    """Three blocks that learnt all hundred sums by heart."""
    net = untrained(0)
    prompts, results = sums()
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=0.3)
    for _ in range(250):
        loss = torch.nn.functional.cross_entropy(net(prompts).logits[:, -1], results)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return Model(net)


def pairs(num: int, same_result: bool = False) -> Task:
    """Return pairs of sums of which both operands differ, and the result or not."""
    prompts, results = sums()
    gen = torch.Generator().manual_seed(0)
    i, j = torch.randint(100, (2, 40 * num), generator=gen)
    apart = (prompts[i, FIRST] != prompts[j, FIRST]) & (prompts[i, SECOND] != prompts[j, SECOND])
    chosen = (apart & ((results[i] == results[j]) == same_result)).nonzero()[:num, 0]
    assert len(chosen) == num
    clean, corrupt = i[chosen], j[chosen]
    sides = prompts[clean], prompts[corrupt], results[clean]
    if same_result:
        return Task(*sides, metric="probability", name="other operands, same sum")
    return Task(*sides, results[corrupt], name="other operands and sum")


@pytest.mark.paper(KEY)
def test_an_adder_sums_in_its_last_tokens_mlps(adder: Model, evidence: Evidence) -> None:
    """The last block's MLP alone has less than the half that large networks suggest.

    With three blocks the last token sees both operands from the first one on, and each of its
    MLPs takes a part of the sum: here .28, .19 and .34; none of ten other widths, norms and
    decays of the weights gave the last one more than .36.
    """
    prompts, results = sums()
    logits = adder.run(prompts, logits=True).logits
    right = (logits[:, -1].argmax(-1) == results).float().mean().item()
    evidence("share of the hundred sums right", measured=right, at_least=0.99)
    scores = Mediation("mlp")(adder, pairs(60))

    def share(*chosen: Any) -> float:
        mask = torch.zeros(3, 4, dtype=torch.bool)
        for one in chosen:
            mask[one] = True
        return relative_importance(scores, [mask])

    last = share((slice(None), LAST))
    evidence("RI of the last token's MLPs", measured=last, at_least=0.5)
    final = share((2, LAST))
    evidence("RI of the last block's there", measured=final, at_least=0.2)
    others = [float(v) for i, v in enumerate(scores.values.flatten()) if i != 2 * 4 + LAST]
    evidence("its score over the largest other one",
             measured=scores.values[2, LAST] / max(others), at_least=1.0)  # fmt: skip
    operands = share((0, FIRST), (0, SECOND)) / (1 - last)
    evidence("share of the first block's operand MLPs in the rest", measured=operands, at_least=0.5)

    same = Mediation("mlp")(adder, pairs(60, same_result=True))
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[2, LAST] = True
    fall = 1 - relative_importance(same, [mask]) / final
    evidence("fall of the last block's RI where the sum stays", measured=fall, at_least=0.6)


@pytest.mark.paper(KEY)
def test_nothing_patched_has_no_effect_and_all_has_every(adder: Model, evidence: Evidence) -> None:
    task = pairs(20)
    one = Task(task.clean, task.clean, task.answers, metric="probability")
    with pytest.warns(ak.trace.TaskWarning):
        still = Mediation("mlp")(adder, one).values.abs().max()
    evidence("largest |log(IE + 1)| where both prompts are one", measured=still, at_most=0)
    trial = task.on(adder)
    parts = ["attn_out.*", "mlp_out.*"]
    clean = trial.record("clean", parts)
    everything = [ak.swap(name, clean) for name in clean]
    logits = trial.record("corrupt", [], everything, logits=True).logits
    error = (logits[:, -1].softmax(-1) - trial.clean_logits[:, -1].softmax(-1)).abs().max()
    evidence("probabilities with every component patched, less the other prompt's",
             measured=error, at_most=1e-6)  # fmt: skip


@pytest.mark.paper(KEY)
@pytest.mark.filterwarnings("ignore::actkit.trace._task.TaskWarning")
def test_untrained_networks_have_no_preferred_mlp(adder: Model, evidence: Evidence) -> None:
    """Among MLPs of the last token: what the others do comes through attention, thinned out."""
    task = pairs(1500)
    maps = [Mediation("mlp", batch=3000)(Model(untrained(seed)), task).values for seed in range(3)]
    mean_L = torch.stack(maps)[..., LAST].mean(0)
    evidence("largest score over smallest, mean of three untrained networks",
             measured=mean_L.max() / mean_L.min(), at_most=2)  # fmt: skip
    trained_L = Mediation("mlp")(adder, task[:60]).values[:, LAST]
    evidence("their largest score over the adder's smallest",
             measured=mean_L.max() / trained_L.min(), at_most=0.01)  # fmt: skip
