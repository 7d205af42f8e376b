"""Sparse attention decomposition: exact on tiny networks, planted signals, SmolLM2's induction.

Shapes: D width, E = D + 1, K head width, C upstream heads, S terms.
"""

from collections.abc import Callable
from statistics import median

import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._in_context import repeated
from actkit.trace.heads.sparse_attention_decomposition import (
    SignalEdge,
    sparse_attention_decomposition,
)
from actkit.trace.heads.sparse_attention_decomposition._query_key import SIDES, QueryKey, query_key
from actkit.trace.heads.sparse_attention_decomposition._signals import contributions, decompose
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace._uneven import gpt2, llama

Opened = Callable[[], Model]
NETWORKS = pytest.mark.parametrize("opened", [llama, gpt2], ids=["llama", "gpt2"])
SITES = [f"{point}.*" for point in SIDES]


@NETWORKS
@pytest.mark.paper("sparse-attention-decomposition-applied")
def test_terms_sum_to_the_score_of_every_pair(opened: Opened, evidence: Evidence) -> None:
    m = opened()
    rec = m.run(tiny.PROMPTS[0], record=SITES)
    worst = 0.0
    for layer in range(len(m.sites("z.*"))):
        form = query_key(m, rec, layer)
        told = rec[f"attn_scores.{layer}"][0]
        for head in range(len(told)):
            for query, key in ((0, 0), (6, 0), (5, 3), (6, 6)):
                u_EK, s_K, v_EK = form.svd(head, query - key)
                terms_K = (form.x_TE[query] @ u_EK) * s_K * (form.x_TE[key] @ v_EK)
                worst = max(worst, abs(float(terms_K.sum() - told[head, query, key])))
    evidence("largest |sum of terms - score|", measured=worst, at_most=1e-4)


@NETWORKS
def test_the_form_is_its_singular_values_and_bases(opened: Opened) -> None:
    """Against numpy's view: the same matrix, and orthonormal sides."""
    m = opened()
    form = query_key(m, m.run(tiny.PROMPTS[0], record=SITES), 1)
    u_EK, s_K, v_EK = form.svd(2, 3)
    whole_EE = form.factor * form.q_HEK[2] @ form.turn_TKK[3] @ form.k_GEK[form.group(2)].mT
    torch.testing.assert_close(u_EK * s_K @ v_EK.mT, whole_EE, rtol=1e-4, atol=1e-5)
    known = torch.linalg.svdvals(whole_EE.double())[: len(s_K)].float()
    torch.testing.assert_close(s_K, known, rtol=1e-4, atol=1e-4)
    for basis in (u_EK, v_EK):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(len(s_K)), rtol=0, atol=1e-5)


def positive_pair(m: Model, layer: int) -> tuple[int, int, int]:
    """Return a head with the query and key of its largest score."""
    scores = m.run(tiny.PROMPTS[0], record=f"attn_scores.{layer}")[f"attn_scores.{layer}"][0]
    best = int(scores.masked_fill(~torch.ones_like(scores).bool().tril(-1), -torch.inf).argmax())
    head, rest = divmod(best, scores.shape[1] ** 2)
    query, key = divmod(rest, scores.shape[1])
    return head, query, key


@NETWORKS
def test_all_parts_together_make_the_signal_and_each_can_be_taken_off(
    opened: Opened,
) -> None:
    m = opened()
    layer = len(m.sites("z.*")) - 1
    head, query, key = positive_pair(m, layer)
    site = f"attn_scores.{layer}"
    edges = sparse_attention_decomposition(
        m, tiny.PROMPTS[0], (layer, head), query, key, keep=999, depth=1
    )
    rec = m.run(tiny.PROMPTS[0], record=SITES)
    signal, form = edges[0].signal, query_key(m, rec, layer)
    for side, basis_ES, row in (("q", signal.u_ES, query), ("k", signal.v_ES, key)):
        other_ES, there = (signal.v_ES, key) if side == "q" else (signal.u_ES, query)
        # what the norm and the projections add on their own is in the constant coordinate
        constant = (basis_ES[-1] * signal.s_S * (form.x_TE[there] @ other_ES)).sum()
        own = [e for e in edges if e.side == side]
        whole = sum(e.contribution for e in own) + constant
        assert float(whole) == pytest.approx(float(signal.terms_K[: signal.num_terms].sum()), 1e-3)
        assert len({e.sender for e in own}) == len(own)
        for edge in own[:4] + own[-2:]:
            assert edge.position == row
            edited = m.run(tiny.PROMPTS[0], record=site, edits=[edge.removal])[site]
            change = (edited - rec[site])[0]
            assert float(change[head, query, key]) == pytest.approx(-edge.contribution, abs=1e-3)
            others = [h for h in range(len(change)) if form.group(h) != form.group(head)]
            assert not change[others].any()
            if side == "q":
                assert not change[:, :query].any()


def planted(seed: int, noise: float) -> tuple[QueryKey, Tensor]:
    """Return a form with one strong term that head 3 of 12 feeds, and what the 12 wrote (C, E).

    All heads write noise into the other seven terms, which cancels in the query.
    """
    gen = torch.Generator().manual_seed(seed)
    u_DK, v_DK = (torch.linalg.qr(torch.randn(48, 8, generator=gen)).Q for _ in range(2))
    loads_CK = noise * torch.randn(12, 8, generator=gen)
    loads_CK = (loads_CK - loads_CK.mean(0)) * torch.tensor([0.1, *[0.5] * 7])
    writes_CD = loads_CK @ u_DK.mT + 0.1 * noise * torch.randn(12, 48, generator=gen) / 48**0.5
    writes_CD[3] += u_DK[:, 0]
    key_D = v_DK @ torch.cat([torch.tensor([2.0]), torch.randn(7, generator=gen)])

    def extended(x: Tensor, last: float) -> Tensor:
        return torch.cat([x, torch.full_like(x[:, :1], last)], 1)

    q_DK = u_DK * torch.tensor([6.0, *[2.0] * 7])
    q_HEK, k_GEK = (extended(maps.mT, 0).mT[None] for maps in (q_DK, v_DK))
    x_TE = extended(torch.stack([key_D, writes_CD.sum(0)]), 1)
    form = QueryKey(q_HEK, k_GEK, torch.eye(8).repeat(2, 1, 1), 1.0, x_TE, torch.ones(2, 1))
    return form, extended(writes_CD, 0)


@pytest.mark.paper("sparse-attention-decomposition-applied")
def test_a_planted_signal_is_traced_to_its_source(evidence: Evidence) -> None:
    sizes, first, whole_first = [], [], []
    for seed in range(20):
        form, writes_CE = planted(seed % 10, 1.0 if seed < 10 else 3.0)
        # the last tenth is left out: small noise terms that are positive would have to be counted
        signal = decompose(form, 0, 1, 0, share=0.9)
        omega_EE = form.q_HEK[0] @ form.k_GEK[0].mT
        first.append(int(contributions(signal, writes_CE, form.x_TE[0]).argmax()) == 3)
        whole_first.append(int((writes_CE @ omega_EE @ form.x_TE[0]).argmax()) == 3)
        sizes.append(signal.num_terms)
    evidence("terms that carry a planted signal, most of 10", measured=max(sizes[:10]), at_most=2)
    evidence("source ranked first, of 10", measured=sum(first[:10]), at_least=10)
    evidence("source ranked first under noise 3x, of 10", measured=sum(first[10:]), at_least=10)
    evidence("of 10 by the full vector, noise 3x", measured=sum(whole_first[10:]), at_most=8)


@pytest.mark.slow
@pytest.mark.paper("sparse-attention-decomposition-applied")
def test_the_induction_head_of_smollm2(smollm2: Model, evidence: Evidence) -> None:
    """L18H6 looks for keys at which earlier heads wrote the token before.

    A random form is one of the same singular values with random sides; its terms are counted up to
    the same score, all 64 where they never reach it.
    """
    tokens = repeated(smollm2, num=1)
    rec = smollm2.run(tokens, record=["resid_pre.18", "attn_in.18", "attn_scores.18"])
    probs = smollm2.run(tokens, record="attn_probs.18")["attn_probs.18"][0, 6]
    form, error = query_key(smollm2, rec, 18), 0.0
    own, random = [], []
    gen = torch.Generator().manual_seed(0)
    for query in range(41, 81):
        key = query - 39
        if probs[query, key] < 0.5:
            continue
        signal = decompose(form, 6, query, key, 18)
        error = max(error, abs(signal.score - float(rec["attn_scores.18"][0, 6, query, key])))
        own.append(signal.num_terms)
        _, s_K, _ = form.svd(6, 39)
        u_EK, v_EK = (torch.linalg.qr(torch.randn(577, 64, generator=gen)).Q for _ in range(2))
        terms_K = (form.x_TE[query] @ u_EK) * s_K * (form.x_TE[key] @ v_EK)
        reached = terms_K.sort(descending=True).values.cumsum(0) >= signal.score
        random.append(1 + int(reached.long().argmax()) if reached.any() else 64)
    evidence("|sum of 64 terms - score|, largest", measured=error, at_most=1e-4)
    assert len(own) >= 30
    evidence("terms at attended pairs, median of 64", measured=median(own), at_most=32)
    ratio = median(random) / median(own)
    evidence("times as many terms of a random form, median", measured=ratio, at_least=3)

    edges = sparse_attention_decomposition(smollm2, tokens, (18, 6), query=60, depth=1)
    keys = [e for e in edges if e.side == "k" and e.sender.startswith("z.")]
    back = [before(smollm2, tokens, edge) for edge in keys[:2]]
    # by chance 1 / 22
    evidence("attention of the two largest key-side heads to the token before, least",
             measured=min(back), at_least=0.2)  # fmt: skip
    edited = smollm2.run(tokens, record="attn_probs.18", edits=[e.removal for e in keys])
    drop = float(probs[60, 21] - edited["attn_probs.18"][0, 6, 60, 21])
    evidence("attention lost without what these heads send", measured=drop, at_least=0.5)


def before(m: Model, tokens: Tensor, edge: SignalEdge) -> float:
    """Return the sender's attention from where it wrote to the token before."""
    _, layer, head = edge.sender.split(".")
    site = f"attn_probs.{layer}"
    probs = m.run(tokens, record=site)[site]
    return float(probs[0, int(head), edge.position, edge.position - 1])


def test_bad_input_is_refused() -> None:
    m, prompt = tiny.model(), tiny.PROMPTS[0]
    head, query, key = positive_pair(m, 2)
    with pytest.raises(InputError, match="need one prompt, got 3"):
        sparse_attention_decomposition(m, tiny.PROMPTS, (1, 0))
    with pytest.raises(InputError, match=r"layers 0 to 2, got \(3, 0\)"):
        sparse_attention_decomposition(m, prompt, (3, 0))
    with pytest.raises(InputError, match="a head below 6 and a position of 7 tokens, got head 6"):
        sparse_attention_decomposition(m, prompt, (1, 6))
    with pytest.raises(InputError, match=r"a key must be in 0..4, got 5"):
        sparse_attention_decomposition(m, prompt, (2, head), 4, 5)
    with pytest.raises(InputError, match="at least 1, got 0 and 3"):
        sparse_attention_decomposition(m, prompt, (2, head), query, key, depth=0)
    scores = m.run(prompt, record="attn_scores.2")["attn_scores.2"][0]
    low = int(scores[head, query, : query + 1].argmin())
    if scores[head, query, low] < 0:
        with pytest.raises(InputError, match="positive score"):
            sparse_attention_decomposition(m, prompt, (2, head), query, low)
