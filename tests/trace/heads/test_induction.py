"""Induction heads: wired by hand, formed in training, and found in SmolLM2.

Shapes: B rows, T tokens, N candidate tokens, L layers, H heads, V vocabulary.
"""

from typing import Any

import pytest
import torch

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._in_context import icl_score, prefix_matching, repeated, token_losses
from actkit.trace.heads.induction import ablation, eigen_positivity, induction
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace._induction_net import LENGTH, START, wired
from tests.trace._uneven import llama


@pytest.mark.paper("context-learning-induction-heads")
def test_a_wired_induction_head_and_a_head_that_attends_to_all_alike(evidence: Evidence) -> None:
    found = induction(Model(wired()), length=LENGTH, start=START)
    evidence("prefix matching of the wired head", measured=found.prefix_LH[1, 1], at_least=0.99)
    assert found.top(1) == [(1, 1)]
    assert found.copying_LH[1, 1] == 1
    assert found.eigen_LH[1, 1] == pytest.approx(1)
    assert found.eigen_LH[0, 1] == 0
    idle = found.prefix_LH[1, 0]
    i_N = torch.arange(LENGTH + 1, 2 * LENGTH + 1).double()
    error = abs(float(idle) - float((1 / (i_N + 1)).mean()))
    evidence("uniform attention less mean of 1 / (i + 1)", measured=error, at_most=1e-6)


def test_prefix_matching_is_the_mean_over_the_second_copy() -> None:
    gen = torch.Generator().manual_seed(0)
    probs = torch.rand(3, 4, 9, 9, generator=gen)
    for odd in (9, 8):
        own = probs[:, :, :odd, :odd]
        n, s = odd // 2, odd % 2
        by_hand = torch.stack([own[:, :, s + n + t, s + t + 1] for t in range(n)])
        torch.testing.assert_close(prefix_matching(own), by_hand.mean((0, 1)))


def test_copying_scores_equal_the_whole_map_from_tokens_to_logits() -> None:
    """Brute force over all tokens of the vocabulary, in float64, on grouped queries."""
    m = llama()
    found = induction(m, num=2, length=17, seed=3)
    tokens_N = torch.unique(found.tokens_BT)
    net: Any = m.module.double()
    embed, unembed = net.model.embed_tokens.weight, net.lm_head.weight
    with torch.no_grad():
        for layer, head in ((0, 0), (1, 2), (2, 3), (2, 5)):
            block, group, k = net.model.layers[layer], head // 3, tiny.WIDTH // tiny.HEADS
            v = block.self_attn.v_proj.weight[group * k : (group + 1) * k].mT
            o = block.self_attn.o_proj.weight[:, head * k : (head + 1) * k].mT
            g, last = block.input_layernorm.weight, net.model.norm.weight
            whole_VV = (embed * g) @ v @ o @ (unembed * last).mT
            values = torch.linalg.eigvals(whole_VV)
            positivity = values.real.sum() / values.abs().sum()
            assert found.eigen_LH[layer, head] == pytest.approx(float(positivity), abs=1e-4)
            own = whole_VV[tokens_N][:, tokens_N]
            first = (own.argmax(-1) == torch.arange(len(own))).double().mean()
            assert found.copying_LH[layer, head] == pytest.approx(float(first), abs=1e-6)


def test_eigenvalues_of_a_rotation_say_nothing() -> None:
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    assert eigen_positivity(turn) == 0
    assert eigen_positivity(torch.stack([turn + torch.eye(2), -3 * torch.eye(2)])).tolist() == [
        pytest.approx(0.5**0.5), -1
    ]  # fmt: skip


def test_losses_and_ablation_are_those_of_the_network() -> None:
    m = tiny.model()
    tokens = repeated(m, num=3, length=5)
    logits = m.module(tokens).logits.detach()
    by_hand = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    losses = token_losses(m, tokens)
    torch.testing.assert_close(losses.flatten(), by_hand)
    assert icl_score(losses, 1, 7) == pytest.approx(float((losses[:, 7] - losses[:, 1]).mean()))
    edits = ablation([(0, 1), (0, 4), (2, 3)])
    z = m.run(tokens, record="z.*", edits=edits)
    assert not z["z.0"][:, :, [1, 4]].any()
    assert not z["z.2"][:, :, 3].any()
    assert z["z.0"][:, :, [0, 2, 3, 5]].all()
    assert z["z.1"].all()


def test_kept_patterns_stop_what_a_head_does_to_later_attention() -> None:
    m = Model(wired())
    tokens = repeated(m, length=LENGTH, start=START)
    patterns = m.run(tokens, record="attn_probs.*")
    bare, led_astray = token_losses(m, tokens), token_losses(m, tokens, ablation([(0, 0)]))
    kept = token_losses(m, tokens, ablation([(0, 0)], patterns))
    torch.testing.assert_close(kept, bare)  # it served the later head's pattern alone
    assert led_astray[:, -LENGTH:].mean() > bare[:, -LENGTH:].mean() + 1


@pytest.mark.slow
@pytest.mark.paper("context-learning-induction-heads")
def test_heads_of_smollm2(smollm2: Model, evidence: Evidence) -> None:
    """The tokenizer adds no first token: its bos_token, <|im_start|>, stands first here."""
    found = induction(smollm2)
    assert (
        found.tokens_BT[:, 0].tolist()
        == [smollm2.tokenizer.convert_tokens_to_ids("<|im_start|>")] * 4
    )
    assert found.top(1) == [(18, 6)]
    evidence("prefix matching of L18H6", measured=found.prefix_LH[18, 6], at_least=0.8)
    evidence("prefix matching of the median head", measured=found.prefix_LH.median(), at_most=0.02)
    gain = found.first_nll - found.repeat_nll
    evidence("loss of the first copy less the second's (nats)", measured=gain, at_least=9)

    def repeat_nll(heads: list[tuple[int, int]]) -> float:
        tokens_BT = found.tokens_BT[:2]  # half of them, for time
        return float(token_losses(smollm2, tokens_BT, ablation(heads))[:, -40:].mean())

    random = []
    for seed in range(3):
        order = torch.randperm(270, generator=torch.Generator().manual_seed(seed))
        random.append(repeat_nll([divmod(int(i), 9) for i in order[:10]]))
    worse = repeat_nll(found.top(10)) - max(random)
    evidence("repeat NLL without the top 10, over 3 random tens (nats)", measured=worse, at_least=0)


def test_bad_input_is_refused() -> None:
    m = tiny.model()
    with pytest.raises(InputError, match=r"length in 2..88, got 1 and 89"):
        induction(m, num=1, length=89)
    with pytest.raises(InputError, match="got 4 and 1"):
        induction(m, length=1)
    with pytest.raises(InputError, match=r"0 <= early < late < 9, got 5 and 9"):
        icl_score(torch.zeros(2, 9), 5, 9)
