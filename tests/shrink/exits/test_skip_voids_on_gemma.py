"""Leaving out voids of Gemma-3-270M, beside what SmolLM2's tests claim.

A bound that holds for SmolLM2 and not for Gemma is named in the docstring, and what was measured
is pinned instead.
"""

import random
from typing import Any

import pytest

from actkit import data
from actkit.model import Model
from actkit.shrink.exits.skip_voids import SkipVoids, without_layers
from tests.core.tiny import counted
from tests.shrink.exits.test_skip_voids_on_smollm2 import PROMPTS, final_states, loss


@pytest.fixture(scope="module")
def tokens(gemma: Model) -> list[int]:
    text = " ".join(data.text(num_samples=12))
    ids: list[int] = gemma.tokenizer(text)["input_ids"][:120]
    return ids


@pytest.mark.slow
def test_final_state_is_the_lens_of_the_last_active_layer(gemma: Model, tokens: list[int]) -> None:
    off, changed = final_states(gemma, tokens)
    assert off <= 1e-5
    assert changed == 0
    plain = loss(gemma, tokens)
    added = [loss(gemma, tokens, SkipVoids(a).final_state(gemma)) - plain for a in (0.0, 0.8)]
    assert added[0] <= 0.5 and added[1] <= 1.5
    assert added == pytest.approx([0.086, 0.623], abs=0.02)


@pytest.mark.slow
def test_void_layers_matter_less_than_others(gemma: Model, tokens: list[int]) -> None:
    """Does not hold on Gemma: 8 of 30 layers are void at alpha .2 (here 2 of 18).

    Random ones cost more in the mean, 1.5 times as much, though six of eight draws cost less.
    """
    plain, draw = loss(gemma, tokens), random.Random(0)
    with SkipVoids(0.2).skipping(gemma, [tokens]) as voids:
        added = loss(gemma, tokens) - plain
    by_chance = []
    for _ in range(8):
        with without_layers(gemma, draw.sample(range(18), len(voids))):
            by_chance.append(loss(gemma, tokens) - plain)
    assert sorted(voids) == [4, 6]
    assert added == pytest.approx(1.56, abs=0.05)
    assert sum(by_chance) / 8 / added >= 1.2
    assert sum(cost < added for cost in by_chance) == 6


@pytest.mark.slow
def test_skipped_blocks_are_not_run_and_the_cache_stays_right(gemma: Model) -> None:
    def written(**settings: Any) -> list[str]:
        return gemma.generate(PROMPTS, max_new_tokens=12, min_new_tokens=12, **settings)

    plain = written()
    counters = [counted(gemma.module, f"model.layers.{n}") for n in range(18)]
    with SkipVoids(alpha=0.8).skipping(gemma, PROMPTS) as voids:
        before = [len(calls) for calls, _ in counters]
        texts = written()
        runs = [len(calls) - n for (calls, _), n in zip(counters, before, strict=True)]
        assert texts == written(use_cache=False)
    for _, remove in counters:
        remove()
    assert written() == plain
    assert runs == [0 if n in voids else 12 for n in range(18)]
    assert len(voids) / 18 >= 15 / 30
