"""Values in chains of thought: networks that read them and that do not, and a trained one.

The trace of 3 + 4 + 5 modulo ten is "3 4 5 : p = 7 , q = 2".
Shapes: B traces, T tokens.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from actkit.core.errors import InputError, NotFittedError
from actkit.model import Model
from actkit.trace._latent_values import LatentValues
from actkit.trace.reasoning.cot_variables import continued, cot_variables, patched, rewritten
from actkit.trace.reasoning.cot_variables._chains import (
    ChainStep,
    only_values,
    other_values,
    parse,
    places,
)
from actkit.worlds.causal import Causal
from actkit.worlds.toy_transformer import toy
from tests._evidence import Evidence

NAMES, EQUALS, COLON, COMMA = {"p": 10, "q": 11}, 12, 13, 14
PROMPT, WORDS = 3, 15


def written(inputs_B3: Tensor) -> Tensor:
    a, b, c = inputs_B3.T
    p = (a + b) % 10
    q = (p + c) % 10
    said = [a, b, c, COLON, 10, EQUALS, p, COMMA, 11, EQUALS, q]
    return torch.stack([x if isinstance(x, Tensor) else torch.full_like(a, x) for x in said], 1)


def draw(num: int, generator: torch.Generator) -> Tensor:
    return written(torch.randint(10, (num, PROMPT), generator=generator))


SUMS = Causal(
    "running sums",
    {
        "p": lambda tokens, _: (tokens[:, 0] + tokens[:, 1]) % 10,
        "q": lambda tokens, values: (values["p"] + tokens[:, 2]) % 10,
    },
    draw,
    WORDS,
    11,
)
AT = {"p": 6, "q": 10}


class Says(nn.Module):
    """Says the layout, and at the two values what a rule says of the tokens so far."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer, self.unused = answer, nn.Linear(1, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        sums = (tokens[:, 0] + tokens[:, 1]) % 10
        following = written(tokens[:, :PROMPT])[:, 1 : tokens.shape[1] + 1]
        following = torch.cat([following, sums[:, None]], 1)[:, : tokens.shape[1]]
        if tokens.shape[1] > 9:
            following[:, 9] = self.answer(tokens)
        return one_hot(following, WORDS).float()


def sum_of_chain(tokens: Tensor) -> Tensor:
    return (tokens[:, 6] + tokens[:, 2]) % 10


def sum_of_prompt(tokens: Tensor) -> Tensor:
    return tokens[:, :3].sum(-1) % 10


def broken(tokens: Tensor) -> Tensor:
    return (tokens[:, 6] + tokens[:, 2] + 5 * (tokens[:, 6] > 4)) % 10


def test_values_are_parsed_with_their_places() -> None:
    trace = written(torch.tensor([[3, 4, 5]]))
    assert parse(trace[0], NAMES, EQUALS) == [ChainStep(6, "p", 7), ChainStep(10, "q", 2)]
    assert places(trace, NAMES, EQUALS) == AT
    assert only_values(trace, PROMPT, AT).tolist() == [[3, 4, 5, 7, 2]]
    shifted = torch.cat([trace.roll(1, 1), trace])
    with pytest.raises(InputError, match="at the same places"):
        places(shifted, NAMES, EQUALS)
    with pytest.raises(InputError, match=r"got \[\(\)\]"):
        places(trace[:, :5], NAMES, EQUALS)


def test_other_values_are_legal_and_never_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.tensor([3, 5, 9]).repeat(200)
    other = other_values(value, [3, 5, 9], generator)
    assert (other != value).all()
    assert all(
        sorted(set(other[value == v].tolist())) == sorted({3, 5, 9} - {v}) for v in (3, 5, 9)
    )
    with pytest.raises(
        InputError, match=r"values must be of 2 legal ones or more, got \[3, 5, 9\]"
    ):
        other_values(value, [3, 5], generator)


def test_networks_that_err_are_told_from_those_that_ignore() -> None:
    traces = draw(301, torch.Generator().manual_seed(0))
    found = cot_variables(Model(Says(broken)), traces, SUMS, AT, range(10))["p"]
    generator = torch.Generator().manual_seed(0)
    new = other_values(traces[:, 6], range(10), generator)
    said = broken(torch.cat([traces[:, :6], new[:, None]], 1))
    success = said == (new + traces[:, 2]) % 10
    shortcut = said == traces[:, 10]
    wrong = ~success & ~shortcut
    for share, told in ((found.success, success), (found.shortcut, shortcut), (found.error, wrong)):
        assert share == pytest.approx(told.float().mean().item())
    assert found.num == 301
    assert found.shortcut > 0.01


def test_patching_the_first_residual_is_swapping_the_token() -> None:
    model, traces = learner(), draw(30, torch.Generator().manual_seed(0))
    donor = traces.clone()
    donor[:, 6] = other_values(traces[:, 6], range(10), torch.Generator().manual_seed(1))
    said = patched(model, traces, 6, donor, "resid_pre.0", 8)
    assert torch.equal(said[:, :8], traces[:, :8])
    assert torch.equal(said[:, 8:], continued(model, donor[:, :8], 11)[:, 8:])
    assert not torch.equal(said[:, 8:], continued(model, traces[:, :8], 11)[:, 8:])


def test_bad_input_is_refused() -> None:
    traces, model = draw(3, torch.Generator().manual_seed(0)), Model(Says(sum_of_chain))
    with pytest.raises(InputError, match=r"variables \['p', 'q'\], got \['q', 'p'\]"):
        cot_variables(model, traces, SUMS, {"q": 10, "p": 6}, range(10))
    with pytest.raises(InputError, match="a start after the position, got 6 and 6"):
        patched(model, traces, 6, traces, "unused", 6)
    with pytest.raises(NotFittedError):
        LatentValues().write(learner(), traces, AT)
    with pytest.raises(InputError, match="values must be from 0 to 3, got"):
        LatentValues(base=2, digits=2).fit(learner(), traces, AT, torch.arange(WORDS))


def test_latent_values_with_the_maps_of_the_network_are_its_tokens() -> None:
    """With rows of the embedding and columns of the head, values are written as greedily."""
    model, latent = learner(), LatentValues()
    net: Any = model.module
    net.transformer.wte.weight.data *= 5
    latent.project_CD = net.transformer.wte.weight[:10].detach()
    latent.readout_DC = net.lm_head.weight[:10].detach().mT
    traces = draw(50, torch.Generator().manual_seed(0))
    read = latent.write(model, traces.index_fill(1, torch.tensor([6, 10]), COMMA), AT)
    for place, value in zip(AT.values(), read.mT, strict=True):
        logits = model.run(traces[:, :place], logits=True).logits
        traces[:, place] = logits[:, -1, :10].argmax(-1)
        assert torch.equal(value, traces[:, place])
    assert len(set(read[:, 1].tolist())) > 1


def test_latent_values_of_several_digits() -> None:
    model, latent = learner(), LatentValues(base=4, digits=2, num_steps=1)
    traces = draw(60, torch.Generator().manual_seed(0))
    latent.fit(model, traces, AT, torch.arange(WORDS))
    site = "final_norm"
    assert latent.readout_DC is not None
    state = model.run(traces[:, :6], record=site)[site][:, -1] @ latent.readout_DC
    first = state[:, :4].argmax(-1) + 4 * state[:, 4:].argmax(-1)
    assert torch.equal(latent.write(model, traces, AT)[:, 0], first)


@pytest.mark.paper("chain-thought-tokens-computer")
def test_consistency_of_networks_built_by_hand(evidence: Evidence) -> None:
    traces = draw(500, torch.Generator().manual_seed(0))
    reads = cot_variables(Model(Says(sum_of_chain)), traces, SUMS, AT, range(10))["p"]
    evidence(
        "a network that reads the chain, success", measured=reads.success, equals=1, tolerance=0
    )
    ignores = cot_variables(Model(Says(sum_of_prompt)), traces, SUMS, AT, range(10))["p"]
    evidence("one that ignores it, success", measured=ignores.success, equals=0, tolerance=0)
    evidence("one that ignores it, shortcut", measured=ignores.shortcut, equals=1, tolerance=0)


def learner(length: int = 11) -> Model:
    return Model(toy(WORDS, 3, 4, 64, length, mlp=128, norm=True, scale=True))


def trained(traces: Tensor, num_steps: int = 500) -> Model:
    model = learner(traces.shape[1])
    weights = [w for w in model.module.parameters() if w.requires_grad]
    optimizer = torch.optim.Adam(weights, 5e-3, fused=True)
    cool = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, num_steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        rows = traces[torch.randint(len(traces), (64,), generator=generator)]
        logits = model.module(rows[:, :-1]).logits[:, PROMPT - 1 :]
        loss = cross_entropy(logits.flatten(0, 1), rows[:, PROMPT:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cool.step()
    return model


@pytest.mark.slow
@pytest.mark.paper("chain-thought-tokens-computer")
def test_values_of_a_trained_network_are_variables(evidence: Evidence) -> None:
    everything = written(torch.cartesian_prod(*[torch.arange(10)] * 3))
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    train, test = everything[order[:800]], everything[order[800:]]
    model = trained(train)

    def accuracy(model: Model, traces: Tensor) -> float:
        said = continued(model, traces[:, :PROMPT], traces.shape[1])
        return float((said[:, -1] == traces[:, -1]).float().mean())

    found = cot_variables(model, test, SUMS, AT, range(10))["p"]
    evidence("held out: success of changed values", measured=found.success, at_least=0.9)

    donor = test.clone()
    donor[:, 6] = other_values(test[:, 6], range(10), torch.Generator().manual_seed(1))
    swapped = rewritten(model, test, 6, donor[:, 6])[:, 10]
    value, comma = (
        (patched(model, test, place, donor, "resid_post.0", 8)[:, 10] == swapped).float().mean()
        for place in (6, 7)
    )
    evidence("patched residual of the value acts as its token", measured=value, at_least=0.85)
    evidence("patched residual of the comma acts as the value's", measured=comma, at_most=0.05)

    full, short = accuracy(model, test), only_values(test, PROMPT, AT)
    brief = accuracy(trained(only_values(train, PROMPT, AT), num_steps=300), short)
    evidence("accuracy, full less values only (points)", measured=100 * (full - brief), at_most=2)

    latent = LatentValues()
    latent.fit(model, train[:200], AT, torch.arange(WORDS))
    hidden = test.index_fill(1, torch.tensor([6, 10]), COMMA)
    right = (latent.write(model, hidden, AT)[:, -1] == test[:, 10]).float().mean()
    evidence("accuracy with latent values", measured=right, at_least=0.9)
