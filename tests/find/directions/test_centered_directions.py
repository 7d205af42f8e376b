"""Centred directions: by hand in float64, and on SmolLM2 against means that are not centred.

Shapes: G contexts, E concepts, D width.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.find.directions.centered_directions import (
    CenteredDirections,
    centered_directions,
    directions,
)
from actkit.model import Model
from tests._evidence import Evidence
from tests.core import tiny

EVENTS = [
    "The mail came at nine in the morning", "The bus stopped at the corner",
    "A neighbor painted the fence", "The store opened a new door", "The class began on Monday",
    "A man walked along the river", "The train left from platform two",
    "The cook boiled some water", "A woman read the newspaper", "The clerk filed the papers",
    "The dog lay under the table", "The team met in the large room",
]  # fmt: skip
EMOTIONS = ["joy", "anger", "fear", "sadness"]
PROMPTS = [[f"Someone full of {m} writes: {e}" for m in EMOTIONS] for e in EVENTS]


def acts(seed: int = 0) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    context_G1D = 5 * torch.randn(7, 1, 5, generator=gen, dtype=torch.float64) + 3
    concept_1ED = torch.randn(1, 3, 5, generator=gen, dtype=torch.float64)
    noise_GED = 0.3 * torch.randn(7, 3, 5, generator=gen, dtype=torch.float64)
    return context_G1D + concept_1ED + noise_GED


def test_directions_equal_those_by_hand() -> None:
    x = acts().numpy()
    mean = np.mean([row - row.mean(0) for row in x], axis=0)
    mean = mean - mean.mean(0)
    expected = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(directions(acts()).numpy(), expected, rtol=1e-10)


def test_what_differs_between_contexts_has_no_part() -> None:
    x = acts()
    moved = x + 100 * torch.arange(7.0, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(directions(moved), directions(x))
    torch.testing.assert_close(directions(3 * x), directions(x))
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(directions(x[:, order]), directions(x)[order])


def test_a_network_is_read_at_the_last_token_of_each_prompt() -> None:
    model = tiny.model()
    prompts = [["w1 w2 w3", "w4 w5"], ["w6 w2 w7 w3", "w8"], ["w9 w3 w1", "w2 w2"]]
    found = centered_directions(model, prompts, ["a", "b"])
    assert [*found.vectors] == [f"resid_{p}.{i}" for p in ("mid", "post") for i in range(3)]
    site = "resid_mid.1"
    alone = torch.stack(
        [torch.stack([model.run(p, record=site)[site][0, -1] for p in row]) for row in prompts]
    )
    torch.testing.assert_close(found.vectors[site], directions(alone), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.of("b")[site], found.vectors[site][1])


def test_the_nearest_direction_of_planted_concepts() -> None:
    x = acts()
    found = CenteredDirections({"s": directions(x[1:])}, "abc")
    assert found.nearest("s", x[:1]).tolist() == [[0, 1, 2]]
    assert found.nearest("s", x[:1].flip(1)).tolist() == [[2, 1, 0]]


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(3, 1, 4), r"concepts >= 2, width\), got \(3, 1, 4\)"),
        (torch.zeros(3, 4), r"got \(3, 4\)"),
        (torch.zeros(0, 2, 4), r"got \(0, 2, 4\)"),
        (torch.ones(3, 2, 4), r"\[0, 1\] have no direction"),
        (torch.full((1, 2, 2), torch.nan), "got 4 that are not"),
    ],
    ids=["one concept", "flat", "no context", "alike", "nan"],
)
def test_what_has_no_directions_is_refused(x: Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        directions(x)


def test_a_table_with_gaps_is_refused() -> None:
    with pytest.raises(InputError, match=r"for each of 2 concepts, got \[1, 2\]"):
        centered_directions(tiny.model(), [["w1", "w2"], ["w3"]], ["a", "b"])
    found = CenteredDirections({}, "ab")
    with pytest.raises(InputError, match="concepts are a, b, got 'c'"):
        found.of("c")


def held_out(acts_GED: Tensor, centered: bool) -> float:
    """Share of right concepts where each context in turn is left out of the directions."""
    right = []
    for g in range(len(acts_GED)):
        rest, own = torch.cat([acts_GED[:g], acts_GED[g + 1 :]]), acts_GED[g : g + 1]
        if centered:
            found = CenteredDirections({"s": directions(rest)}, EMOTIONS).nearest("s", own)[0]
        else:
            means_ED = rest.mean(0)
            cosine = torch.nn.functional.normalize(own[0], dim=-1) @ (
                torch.nn.functional.normalize(means_ED, dim=-1).mT
            )
            found = cosine.argmax(-1)
        right.append(found == torch.arange(len(found)))
    return float(torch.stack(right).float().mean())


def last_states(model: Model, sites: list[str]) -> list[Tensor]:
    """Return (G, E, D) states at each prompt's last token, of each site."""
    read: dict[str, Any] = {site: [] for site in sites}
    for row in PROMPTS:
        rec = model.run(row, record=sites)
        for site in sites:
            read[site].append(rec[site][:, -1].double())
    return [torch.stack(read[site]) for site in sites]


@pytest.mark.paper("do-llms-feel-emotion")
def test_directions_of_emotions_hold_for_new_events(smollm2: Model, evidence: Evidence) -> None:
    """Twelve events under four emotions; each event in turn is left out."""
    sites = [f"resid_post.{n}" for n in (3, 10)]
    for site, x, margin in zip(sites, last_states(smollm2, sites), (0.3, 0.05), strict=True):
        centered, plain = held_out(x, centered=True), held_out(x, centered=False)
        evidence(f"held-out accuracy at {site}, centred", measured=centered, at_least=0.95)
        evidence(f"the same less that of class means, {site}", measured=centered - plain,
                 at_least=margin)  # fmt: skip
    gen = torch.Generator().manual_seed(0)
    shuffled = torch.stack([row[torch.randperm(4, generator=gen)] for row in x])
    evidence("the same with the labels of each event shuffled",
             measured=held_out(shuffled, centered=True), at_most=0.5)  # fmt: skip
