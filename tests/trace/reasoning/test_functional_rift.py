"""The rift: wired at a layer, and in SmolLM2 on bigrams that the context turns around.

Shapes: B rows, T tokens, L layers, N rows that are asked.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace.reasoning.functional_rift import bigram_prior, functional_rift
from actkit.worlds.toy_transformer import reader
from tests._evidence import Evidence
from tests.core import tiny


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_rift_is_where_the_copying_head_lies(layer: int) -> None:
    m = Model(reader(layers=3, at=(layer, 1)))
    net: Any = m.module
    net.lm_head.weight.data[4] += 0.1 * net.transformer.wte.weight.data[2]
    prompts = torch.tensor([[3, 1, 2], [5, 3, 2]])
    found = functional_rift(m, prompts, torch.tensor([3, 5]), torch.tensor([4, 4]))
    assert found.layer == layer
    assert found.depth == pytest.approx((layer + 1) / 3)
    assert found.mixing.tolist() == [0.0] * layer + [1.0] * (3 - layer)
    never = functional_rift(m, prompts, torch.tensor([1, 1]), torch.tensor([4, 4]))
    assert never.layer is None
    assert never.depth is None


def test_probabilities_are_the_lens_by_hand_at_every_token_asked() -> None:
    m = tiny.model()
    net: Any = m.module
    context = torch.full((3, 7), -1)
    context[0, 2], context[0, 6], context[1, 5], context[2, 3] = 11, 12, 13, 14
    prior = torch.full((3, 7), 5)
    found = functional_rift(m, tiny.PROMPTS, context, prior)
    for layer in range(tiny.LAYERS):
        x = m.run(tiny.PROMPTS, record=f"resid_post.{layer}")[f"resid_post.{layer}"]
        p = net.lm_head(net.model.norm(x)).softmax(-1).detach()
        by_hand = [p[0, 2, 11], p[0, 6, 12], p[1, 5, 13], p[2, 3, 14]]
        torch.testing.assert_close(found.context_LN[layer], torch.stack(by_hand))
        torch.testing.assert_close(found.prior_LN[layer, 2], p[1, 5, 5])
    last = functional_rift(m, tiny.PROMPTS, torch.tensor([1, 2, 3]), torch.tensor([4, 4, 4]))
    logits = m.run(tiny.PROMPTS, logits=True).logits
    torch.testing.assert_close(last.context_LN[-1], logits[:, -1].softmax(-1)[range(3), [1, 2, 3]])


def test_the_prior_is_what_follows_a_token_alone() -> None:
    m = tiny.model()
    for first, prompts in ((None, ["w9", "w4"]), (7, ["w7 w9", "w7 w4"])):
        logits = m.run(prompts, logits=True).logits
        best = logits[:, -1].argmax(-1)
        assert bigram_prior(m, torch.tensor([4, 9, 4]), first).tolist() == best[[1, 0, 1]].tolist()


FIRST = (" United", " New", " Los", " Prime", " Hong", " San", " Middle", " World", " White",
         " Soviet", " Supreme", " Human")  # fmt: skip
WORDS = (" banana", " river", " pencil", " cloud", " tiger", " lemon", " brick", " candle",
         " window", " guitar", " spoon", " carpet", " rabbit", " bottle", " ladder")  # fmt: skip


def bigrams(m: Model, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return prompts with a pair of words four times, the same without it, and its second words.

    "banana" after "United" where the language has "States"; the pairs stand among other words, and
    the last word of a prompt is the first one of its pair. All begin with the token `start`.
    """
    gen = torch.Generator().manual_seed(0)
    first, words = (
        [m.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in group]
        for group in (FIRST, WORDS)
    )
    told, bare, second = [], [], []
    for a in first:
        b, *rest = (words[int(i)] for i in torch.randperm(len(words), generator=gen))
        around = [rest[2 * i : 2 * i + 2] for i in range(4)]
        told.append([start, *(t for own in around for t in (a, b, *own)), a])
        bare.append(
            [start, *(t for i, own in enumerate(around) for t in (*rest[8 + i :][:2], *own)), a]
        )
        second.append(b)
    return torch.tensor(told), torch.tensor(bare), torch.tensor(second)


@pytest.mark.paper("how-think-step-step")
def test_context_takes_over_late_in_smollm2(smollm2: Model, evidence: Evidence) -> None:
    """<|endoftext|>, id 0, stands first; after <|im_start|> a word alone is read as a role."""
    told, bare, second = bigrams(smollm2)
    assert told.shape == bare.shape
    found = functional_rift(smollm2, told, second, start=0)
    assert smollm2.tokenizer.decode(found.prior_N[:1]) == " States"
    evidence("depth at which the context outweighs the prior", measured=found.depth or 0.0,
             at_least=0.4)  # fmt: skip
    gain = (found.context_LN - found.prior_LN)[-1].mean()
    evidence("context less prior at the last layer (probability)", measured=gain, at_least=0.1)
    alone = functional_rift(smollm2, bare, second, start=0)
    assert alone.layer is None
    evidence("context less prior where the pair never came, most of all layers",
             measured=(alone.context_LN - alone.prior_LN).mean(1).max(), at_most=0)  # fmt: skip


def test_bad_input_is_refused() -> None:
    m = tiny.model()
    with pytest.raises(InputError, match=r"\(3,\) or \(3, 7\), got \(2,\)"):
        functional_rift(m, tiny.PROMPTS, torch.tensor([1, 2]))
    with pytest.raises(InputError, match="got -1 at all 21"):
        functional_rift(m, tiny.PROMPTS, torch.full((3, 7), -1))
    with pytest.raises(InputError, match=r"alike, got \(2,\) and \(3,\)"):
        functional_rift(m, tiny.PROMPTS, torch.tensor([1, 2, 3]), torch.tensor([1, 2]))
