"""Answer heads: one that copies, wired by hand; those of SmolLM2.

Shapes: B prompts, L layers, H heads, T tokens.
"""

from typing import Any

import pytest
import torch

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Task, TaskWarning, tasks
from actkit.trace._attribution import readout
from actkit.trace.nodes.answer_heads import AnswerHeads, direct, knock_out, writers
from actkit.worlds.toy_transformer import reader
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace._uneven import llama

CLEAN, CORRUPT = ["w1 w2 w3 w4", "w6 w2 w3 w4"], ["w1 w12 w3 w4", "w6 w13 w3 w4"]


@pytest.mark.paper("how-think-step-step")
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_planted_copy_head_is_found_alone(layer: int, evidence: Evidence) -> None:
    m = Model(reader(layers=3, at=(layer, 1)))
    clean, corrupt = torch.tensor([[3, 1, 2], [5, 2, 1]]), torch.tensor([[4, 1, 2], [3, 2, 1]])
    first = Task(clean, corrupt, [3, 5], metric="log probability")
    (found,) = writers(m, first)
    assert (found.layer, found.head) == (layer, 1)
    assert found.attention == {"answer": pytest.approx(1)}
    parts = direct(first.on(m))
    logits = m.run(first.clean, logits=True).logits
    own = logits[:, -1].gather(1, torch.tensor([[3], [5]])) - logits[:, -1].mean(1, keepdim=True)
    error = (parts.total - own[:, 0]).abs().max()
    evidence("attributions less the logit", measured=error, at_most=1e-4)


@pytest.mark.parametrize("parts", ["heads", "mlps"])
def test_scores_equal_what_is_lost_with_a_linear_readout(parts: str) -> None:
    """Take a part's write off the final stream, with the norm's scale kept: the oracle."""
    m = llama()
    task = Task(CLEAN, CORRUPT, [7, 8], [9, 3])
    with pytest.warns(TaskWarning):
        scores = AnswerHeads(parts)(m, task).values
    net: Any = m.module
    k = tiny.WIDTH // tiny.HEADS
    rec = m.run(CLEAN, record=["z.*", "mlp_out.*", "resid_post.2"])
    stream_BD = rec["resid_post.2"][:, -1].double()
    scale_B1 = stream_BD.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    head_VD = net.lm_head.weight.detach().double() * net.model.norm.weight.detach().double()
    read_BD = head_VD[[7, 8]] - head_VD[[9, 3]]
    for layer, own in enumerate(scores):
        if parts == "mlps":
            wrote = [rec[f"mlp_out.{layer}"][:, -1].double()]
        else:
            o = net.model.layers[layer].self_attn.o_proj.weight.detach().double()
            z = rec[f"z.{layer}"][:, -1].double()
            wrote = [z[:, h] @ o[:, h * k : (h + 1) * k].mT for h in range(tiny.HEADS)]
        expected = torch.stack([(w / scale_B1 * read_BD).sum(-1).mean() for w in wrote])
        torch.testing.assert_close(own.reshape(-1).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.paper("how-think-step-step")
def test_answer_heads_of_smollm2(smollm2: Model, evidence: Evidence) -> None:
    """The head of largest attribution, prompt by prompt, and what is lost without the best."""
    known = [tasks.ioi(10), tasks.capitals(10)]
    trials = [task.on(smollm2) for task in known]
    found = [direct(trial).heads_BLH for trial in trials]
    top = torch.cat([x.flatten(1).argmax(1) // 9 for x in found])
    share = (top >= 15).float().mean()
    evidence("share of top heads in the second half", measured=share, at_least=0.8)
    moved = writers(smollm2, trials[0])
    assert moved
    assert moved[0].attention["answer"] > 0.3
    order = found[0].mean(0).flatten().argsort(descending=True)
    best = [divmod(int(i), 9) for i in order]
    halves = ([h for h in best if h[0] >= 15][:10], [h for h in best if h[0] < 15][:10])
    lost = []
    for edits in (knock_out(halves[0], 15, "above"), knock_out(halves[1], 15, "below")):
        values = trials[0].sweep([edits], "clean")
        lost.append(float(trials[0].clean_values.mean() - values.mean()))
    evidence("loss without the best ten heads of the second half, over the first half's (logits)",
             measured=lost[0] - lost[1], at_least=0.5)  # fmt: skip


def test_writers_are_those_above_both_thresholds_with_attention_from_the_last_token() -> None:
    m = llama()
    trial = Task(CLEAN, CORRUPT, [7, 8], [9, 3]).on(m)
    here = torch.zeros(2, 4, dtype=torch.bool)
    here[0, 1], here[1, 3] = True, True
    found = writers(m, trial, {"here": here, "rest": ~here}, share=0.2, attended=0.0)
    heads_LH = direct(trial).heads_BLH.mean(0)
    assert len(found) == int((heads_LH >= 0.2 * heads_LH.max()).sum()) > 2
    assert [w.attribution for w in found] == sorted((w.attribution for w in found), reverse=True)
    for writer in found:
        site = f"attn_probs.{writer.layer}"
        probs = m.run(CLEAN, record=site)[site][:, writer.head, -1]
        own = float(probs[0, 1] + probs[1, 3]) / 2
        assert writer.attention == {"here": pytest.approx(own), "rest": pytest.approx(1 - own)}
    middle = sorted(w.attention["here"] for w in found)[1]
    fewer = writers(m, trial, {"here": here}, share=0.2, attended=middle - 1e-6)
    assert len(fewer) == len(found) - 1


def test_a_layer_itself_is_above() -> None:
    heads = [(0, 1), (1, 2), (2, 0)]
    sites = {side: [e.site for e in knock_out(heads, 1, side)] for side in ("above", "below")}
    assert sites == {"above": ["z.1", "z.2"], "below": ["z.0"]}


def test_readout_of_other_positions_and_padded_rows() -> None:
    m = tiny.model()
    for at in (-1, -2, 0, 2):
        read = readout(m, tiny.PROMPTS, at)
        for row, prompt in enumerate(tiny.PROMPTS):
            alone = readout(m, prompt, at)
            torch.testing.assert_close(read.parts.heads_BLHD[row], alone.parts.heads_BLHD[0],
                                       rtol=1e-4, atol=1e-4)  # fmt: skip


def test_bad_input_is_refused() -> None:
    m = tiny.model()
    task = Task(CLEAN, CORRUPT, [7, 8], [9, 3])
    with pytest.warns(TaskWarning), pytest.raises(InputError, match="'heads' or 'mlps'"):
        AnswerHeads("resid")(m, task)
    no_answers = Task(CLEAN, CORRUPT, metric="KL")
    with pytest.raises(InputError, match="needs answers at the last position"):
        AnswerHeads()(m, no_answers)
    with pytest.raises(InputError, match=r"'answer' marks 0 of shape \(2, 4\)"):
        writers(m, task)
    with pytest.raises(InputError, match=r"'here' marks 3 of shape \(1, 3\)"):
        writers(m, task, {"here": torch.ones(1, 3, dtype=torch.bool)})
    with pytest.raises(InputError, match="'above' or 'below', got 'left'"):
        knock_out([(0, 0)], 1, "left")  # type: ignore[arg-type]
