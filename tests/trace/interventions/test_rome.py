"""Rank-one edits: closed form, optimal among rank-one changes, and a capital that moves.

Shapes: H inputs of a map, D outputs, N tokens, B prompts, V vocabulary.
"""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from actkit.anatomy.linear_map import weight_of
from actkit.anatomy.rank_one import rank_one
from actkit.core.errors import InputError, NotFittedError
from actkit.model import Model
from actkit.trace.interventions.rome import Rome
from actkit.trace.interventions.rome._facts import Fact, checked, prefixes, subject_ends
from tests._evidence import Evidence
from tests.core import tiny

TEXTS = [
    f"w{i} w{i + 3} w{i * 2} w{i + 7} w5 w{60 - i} w9 w{i} w11 w3 w{i + 1}" for i in range(1, 30)
]
FACT = Fact("w3 w4 {} w5 w6", "w20 w21", "w50", "w7")


def memory(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W (4, 5), k, v and an anisotropic, uncentred C."""
    weight, keys = tiny.uneven(4, 5, seed=seed), tiny.uneven(41, 5, seed=seed + 1)
    weight, keys = weight.double(), keys.double() * torch.tensor([1, 3, 0.2, 1, 5])
    key, value = tiny.uneven(5, seed=seed + 2), tiny.uneven(4, seed=seed + 3)
    return weight, key.double(), value.double(), keys.mT @ keys / len(keys)


def spent(left_D: Tensor, right_H: Tensor, moment_HH: Tensor) -> float:
    """Return tr(dW C dW^T) of a rank-one change."""
    change_DH = torch.outer(left_D, right_H)
    return float((change_DH @ moment_HH @ change_DH.mT).trace())


@pytest.mark.paper("locating-editing-factual-associations")
def test_no_rank_one_change_with_the_new_pair_costs_less(evidence: Evidence) -> None:
    for seed in range(3):
        weight, key, value, moment = memory(seed)
        left, right = rank_one(weight, key, value, moment)
        new = weight + torch.outer(left, right)
        error = (new @ key - value).norm() / value.norm()
        evidence(f"|W' k - v| / |v|, seed {seed}", measured=error, at_most=1e-4)
        own = spent(left, right, moment)
        evidence(f"tr(dW C dW^T) less the best found numerically, of it, seed {seed}",
                 measured=own / numeric(weight, key, value, moment) - 1, at_most=1e-6)  # fmt: skip
        plain = spent(left, key / (key @ key), moment)
        evidence(f"the same of dW = (v - W k) k^T / |k|^2 over it, seed {seed}",
                 measured=plain / own, at_least=1.05)  # fmt: skip


def numeric(weight: Tensor, key: Tensor, value: Tensor, moment: Tensor) -> float:
    """Return the smallest tr(a b^T C b a^T) with (W + a b^T) k = v, over a and b."""
    w, k, v, c = (x.numpy() for x in (weight, key, value, moment))

    def cost(x: Any) -> float:
        a, b = x[:4], x[4:]
        return float((a @ a) * (b @ c @ b))

    def lacking(x: Any) -> Any:
        return (x[4:] @ k) * x[:4] - (v - w @ k)

    best = []
    for start in range(4):
        x0 = np.random.default_rng(start).normal(size=9)
        rule = {"type": "eq", "fun": lacking}
        settings = {"maxiter": 2000, "ftol": 1e-15}
        found = minimize(cost, x0, method="SLSQP", constraints=rule, options=settings)
        if np.abs(lacking(found.x)).max() < 1e-8:
            best.append(cost(found.x))
    return min(best)


def test_with_white_keys_the_change_is_along_the_key() -> None:
    weight, key, value, _ = memory()
    right = rank_one(weight, key, value, 3 * torch.eye(5))[1]
    torch.testing.assert_close(right, key / (key @ key))
    flat = torch.outer(key, key)  # singular, so only a ridge makes it work
    with pytest.raises(InputError, match="positive definite"):
        rank_one(weight, key, value, -flat)
    assert rank_one(weight, key, value, flat, ridge=0.1)[1] @ key == pytest.approx(1)
    with pytest.raises(InputError, match=r"key that is not zero.*\|key\| 0 and"):
        rank_one(weight, torch.zeros(5), value, torch.eye(5))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def m(request: pytest.FixtureRequest) -> Model:
    net = tiny.llama() if request.param == "llama" else tiny.gpt2()
    return Model(net, tiny.tokenizer(), name=request.param)


def logits(m: Model, prompts: Any = "w3 w4 w20 w21 w5 w6") -> Tensor:
    """Return the (B, V) logits of the next token."""
    return m.run(prompts, logits=True).logits[:, -1]


def test_an_edit_is_what_it_says_and_can_be_undone(m: Model) -> None:
    before = logits(m)
    with tiny.untouched(m.module):
        edit = Rome(layer=0, num_prefixes=3, steps=4).fit(m, TEXTS).edit(m, FACT)
        old = weight_of(m.module.get_submodule(edit.path)).double()
        with edit.applied(m):
            new = weight_of(m.module.get_submodule(edit.path)).double()
            after = logits(m)
    torch.testing.assert_close(new - old, torch.outer(edit.left_D, edit.right_H), rtol=0, atol=1e-6)
    assert torch.equal(before, logits(m))
    assert not torch.equal(before, after)
    assert edit.losses[-1] < edit.losses[0]


def test_keys_and_their_moment_are_those_of_the_subjects_last_token(m: Model) -> None:
    rome = Rome(layer=0, num_prefixes=3, steps=1, skip=2).fit(m, TEXTS[:5])
    edit = rome.edit(m, FACT)
    site = m.sites("mlp_hidden.0")[0].name
    keys = [m.run(p + "w3 w4 w20 w21", record=site)[site][0, -1] for p in ("", *rome.prefixes_)]
    torch.testing.assert_close(edit.key_H, torch.stack(keys).double().mean(0), rtol=1e-4, atol=1e-5)
    rows = torch.cat([m.run(t, record=site)[site][0, 2:] for t in TEXTS[:5]]).double()
    torch.testing.assert_close(rome.moment_HH_, rows.mT @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_the_search_starts_at_the_loss_of_the_bare_network_and_is_bounded(m: Model) -> None:
    rome = Rome(layer=0, num_prefixes=2, steps=8, bound=0.1).fit(m, TEXTS)
    edit = rome.edit(m, FACT)
    prompts = [f"{p}w3 w4 w20 w21 w5 w6" for p in ("", *rome.prefixes_)]
    log_p_B = logits(m, prompts).log_softmax(-1)[:, m.tokenizer("w50")["input_ids"][0]]
    assert edit.losses[0] == pytest.approx(-float(log_p_B.mean()), abs=1e-4)
    out = m.run("w3 w4 w20 w21", record=f"{edit.path}:out")[f"{edit.path}:out"][0, -1]
    assert float(edit.left_D.norm()) == pytest.approx(0.1 * float(out.norm()), rel=1e-4)


def test_what_cannot_be_edited_is_refused(m: Model) -> None:
    with pytest.raises(NotFittedError, match="fit"):
        Rome(layer=0).edit(m, FACT)
    with pytest.raises(InputError, match="got 0 tokens"):
        Rome(layer=0, skip=20).fit(m, TEXTS)
    with pytest.raises(InputError, match=r"texts of 10 words, got 1 shorter"):
        Rome(layer=0).fit(m, ["w1 w2 w3"])
    with pytest.raises(InputError, match=r"got 0\.01, 3, 0 and 4"):
        Rome(layer=0, num_prefixes=3, steps=0)
    last = len(m.sites("mlp_hidden.*")) - 1
    with pytest.raises(InputError, match=f"layer {last} writes at the subject must reach"):
        Rome(last, num_prefixes=1).fit(m, TEXTS).edit(m, FACT)
    with pytest.raises(InputError, match=r"one '\{\}' and a subject"):
        Fact("w1 w2", "w3", "w4", "w5")
    with pytest.raises(InputError, match="must be one token"):
        Rome(layer=0, num_prefixes=1).fit(m, TEXTS).edit(m, Fact("{} w1", "w3", "w4 w5", "w6"))


def test_subjects_end_where_a_token_ends(smollm2: Model) -> None:
    texts = ["Today in France", "In Saudi Arabia it is"]
    batch, mask = subject_ends(smollm2, texts, ["Today in France", "In Saudi Arabia"])
    marked = torch.as_tensor(batch.tokens)[mask]
    assert [smollm2.tokenizer.decode([i]) for i in marked] == [" France", " Arabia"]
    with pytest.raises(InputError, match="must end where a token ends"):
        subject_ends(smollm2, ["The unbelievable"], ["The unbel"])


def test_prefixes_are_short_cuts_of_the_corpus() -> None:
    cuts = prefixes(TEXTS, 50, seed=0)
    assert len(cuts) == 50
    assert {len(c.split()) for c in cuts} <= set(range(2, 11))
    assert all(any(c.removesuffix(". ") in t for t in TEXTS) for c in cuts)
    assert cuts == prefixes(TEXTS, 50, seed=0) != prefixes(TEXTS, 50, seed=1)


def test_checks_are_those_by_hand(m: Model) -> None:
    prompts = ["w3 w4 w20 w21 w5 w6", "w9 w20 w21", "w2 w30", "w40 w41 w42"]

    def said() -> Tensor:
        return torch.cat([logits(m, p) for p in prompts]).double().log_softmax(-1)

    edit = Rome(layer=0, num_prefixes=1, steps=10).fit(m, TEXTS).edit(m, FACT)
    before = said()
    with edit.applied(m):
        after = said()
    got = checked(m, edit.applied(m), FACT, prompts[1:2], {prompts[2]: "w8"}, prompts[3:])
    assert got.probability == pytest.approx(float(after[0, 50].exp()), rel=1e-4)
    assert got.efficacy == float(after[0, 50] > after[0, 7])
    assert got.paraphrase == float(after[1, 50] > after[1, 7])
    assert got.neighbourhood == float(after[2, 8] > after[2, 50])
    kl = (before[3].exp() * (before[3] - after[3])).sum()
    assert got.kl == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
    assert np.isnan(checked(m, edit.applied(m), FACT).kl)
