"""Factual recall: exact sums, a planted MLP, and capitals in SmolLM2.

Shapes: B prompts, L layers, H heads, D width, J basis vectors, N outputs.
"""

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._attribution import lens
from actkit.trace.heads.factual_recall import (
    factual_recall,
    final_layer_suppression,
    first_tokens,
    mlp_decompose,
    mlp_gain,
)
from actkit.trace.nodes.answer_heads import knock_out
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace._uneven import gpt2

ROWS = [row for row in ak.data.capitals() if row.kind == "statement"][:20]
PROMPTS, ANSWERS = [row.clean for row in ROWS], [row.answer for row in ROWS]
SUBJECTS = [f" {row.subject}" for row in ROWS]


def log_p(m: Model, edits: list[ak.Edit]) -> tuple[Tensor, Tensor]:
    """Return logits and log-probabilities of the answers, (B,) each."""
    logits = m.run(PROMPTS, edits=edits, logits=True).logits
    index = torch.arange(len(PROMPTS)), first_tokens(m, ANSWERS)
    return logits[:, -1][index], logits[:, -1].log_softmax(-1)[index]


@pytest.mark.slow
@pytest.mark.paper("interpreting-key-mechanisms-factual")
def test_heads_that_move_the_topic_and_a_last_layer_that_holds_back(
    smollm2: Model, evidence: Evidence
) -> None:
    found = factual_recall(smollm2, PROMPTS, SUBJECTS, ANSWERS)
    logit, bare = log_p(smollm2, [])
    logits = smollm2.run(PROMPTS, logits=True).logits
    mean = logits[:, -1].mean(-1)
    error = ((found.answer.total + mean - logit) / logit).abs().max()
    evidence("sum of all parts less the answer's logit (relative)", measured=error, at_most=1e-4)

    without, _ = log_p(smollm2, knock_out(found.movers(3), 0, "above"))
    for seed in range(3):
        gen = torch.Generator().manual_seed(seed)
        random = [divmod(int(i), 9) for i in torch.randperm(270, generator=gen)[:3]]
        beaten = int((without < log_p(smollm2, knock_out(random, 0, "above"))[0]).sum())
        evidence(f"prompts of 20 that lose more than with random heads, draw {seed}",
                 measured=beaten, at_least=16)  # fmt: skip

    # as a whole the last layer lifts every answer here; single heads of it hold back
    last = final_layer_suppression(smollm2, PROMPTS, ANSWERS)
    assert (last.change_B > 0).all()
    _, freed = log_p(smollm2, last.edits(0.5))
    evidence("mean log-probability, suppressors halved, gain", measured=(freed - bare).mean(),
             at_least=0)  # fmt: skip
    held = [part in last.suppressors for part in last.parts]
    negative = last.contributions_BC[:, held].sum(1) < 0
    assert negative.any()
    evidence("the same where they take off", measured=(freed - bare)[negative].mean(), at_least=0)
    raised = (freed > bare)[negative].float().mean()
    evidence("share of these prompts that gain", measured=raised, at_least=0.75)


@pytest.mark.paper("interpreting-key-mechanisms-factual")
def test_coefficients_of_a_planted_mlp(evidence: Evidence) -> None:
    gen = torch.Generator().manual_seed(0)
    basis_NJD = torch.randn(30, 3, 64, generator=gen) * torch.tensor([1.0, 3.0, 0.5])[:, None] + 0.2
    clean_ND = 0.7 * basis_NJD[:, 0] - 0.3 * basis_NJD[:, 1]
    noise_ND = torch.randn(30, 64, generator=gen)
    outputs_ND = clean_ND + 0.05 * noise_ND * clean_ND.norm() / noise_ND.norm()
    found = mlp_decompose(outputs_ND, basis_NJD)
    for name, own, planted in zip(("b1", "b2", "none"), found.coefficients_J, (0.7, -0.3, 0.0),
                                  strict=True):  # fmt: skip
        evidence(f"coefficient of {name}", measured=own, equals=planted, tolerance=0.02)
    evidence("R2", measured=found.r2, at_least=0.99)
    sum_ND = torch.einsum("j,njd->nd", found.coefficients_J, basis_NJD) + found.residual_ND
    torch.testing.assert_close(sum_ND, outputs_ND, rtol=1e-4, atol=1e-5)


def test_ridge_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import Ridge

    gen = torch.Generator().manual_seed(1)
    basis_JD, outputs_ND = torch.randn(4, 9, generator=gen) + 0.5, torch.randn(5, 9, generator=gen)
    whole = basis_JD.expand(5, -1, -1).permute(0, 2, 1).reshape(45, 4).double()
    penalty = 0.3 * float((whole.mT @ whole).diagonal().mean())
    known = Ridge(penalty, fit_intercept=False).fit(whole, outputs_ND.double().flatten())
    found = mlp_decompose(outputs_ND, basis_JD, ridge=0.3)
    torch.testing.assert_close(found.coefficients_J.double(), torch.tensor(known.coef_),
                               rtol=1e-5, atol=1e-6)  # fmt: skip
    assert found.r2 == pytest.approx(1 - float(found.residual_ND.square().sum()
                                               / outputs_ND.square().sum()))  # fmt: skip


def test_gains_are_projections_before_and_after() -> None:
    m = tiny.model()
    prompts, k = tiny.PROMPTS, tiny.WIDTH // tiny.HEADS
    found = factual_recall(m, prompts, [3, 4, 5], ["w7", "w8", "w9"])
    rec = m.run(prompts, record=["z.1", "mlp_out.1", "attn_out.1"])
    weight = m.module.model.layers[1].self_attn.o_proj.weight.detach()  # type: ignore[union-attr, index]
    own_BD = rec["z.1"][:, -1, 2] @ weight[:, 2 * k : 3 * k].mT
    both_BD = own_BD + rec["mlp_out.1"][:, -1]
    after_B, before_B = (both_BD * own_BD).sum(-1), (own_BD * own_BD).sum(-1)
    torch.testing.assert_close(1 + found.gain_BLH[:, 1, 2], after_B / before_B)
    whole_BD = rec["attn_out.1"][:, -1]
    torch.testing.assert_close(found.gain_BL[:, 1], mlp_gain(rec["mlp_out.1"][:, -1], whole_BD))
    assert found.movers(18)[0] == divmod(int(found.topic.heads_BLH.mean(0).argmax()), 6)


def test_suppression_is_the_last_layers_own() -> None:
    m = gpt2()
    found = final_layer_suppression(m, tiny.PROMPTS, [3, 4, 5])
    sites = ["resid_pre.1", "resid_post.1", "z.1", "mlp_out.1"]
    rec = m.run(tiny.PROMPTS, record=sites)
    before, after = (lens(m, rec[s][:, -1])[range(3), [3, 4, 5]] for s in sites[:2])
    torch.testing.assert_close(found.change_B, after - before, rtol=1e-3, atol=1e-4)
    low = found.contributions_BC.mean(0) < 0
    assert found.suppressors == [p for p, held in zip(found.parts, low, strict=True) if held]
    edited = m.run(tiny.PROMPTS, record=sites, edits=found.edits(0.25))
    for head in range(4):
        factor = 0.75 if low[head] else 1.0
        torch.testing.assert_close(edited["z.1"][:, :, head], factor * rec["z.1"][:, :, head])
    assert found.edits(0.0)[0].operation.neutral


def test_bad_input_is_refused() -> None:
    m = tiny.model()
    with pytest.raises(InputError, match="need one token for each of 3 rows"):
        factual_recall(m, tiny.PROMPTS, [3, 4], [5, 6, 7])
    with pytest.raises(InputError, match=r"\(J, D\) or \(N, J, D\).* got \(2, 4\) and \(3, 5\)"):
        mlp_decompose(torch.ones(3, 5), torch.ones(2, 4))
    with pytest.raises(InputError, match="finite, and outputs not all zero"):
        mlp_decompose(torch.zeros(3, 5), torch.ones(2, 5))
    with pytest.raises(InputError, match="finite"):
        mlp_decompose(torch.full((3, 5), torch.nan), torch.ones(2, 5))
    with pytest.raises(InputError, match=r"in \[0, 1\], got 1.5"):
        final_layer_suppression(m, tiny.PROMPTS, [3, 4, 5]).edits(1.5)
    with pytest.raises(InputError, match="needs a tokenizer that knows it, got ''"):
        first_tokens(m, [""])
