"""Massive activations and extreme tokens on Gemma-3-270M: what SmolLM2's tests claim, measured.

Every text begins with <bos> here, so the first token's state is one constant. A bound that holds
for SmolLM2 and not for Gemma is named in the docstring, and what was measured is pinned instead.
"""

import pytest

import actkit as ak
from actkit.model import Model
from actkit.read.streaming.extreme_tokens import active_dormant_index
from actkit.read.streaming.massive import Massive
from actkit.read.training.massive_dynamics import massive_ratios
from tests.read.streaming.test_extreme_tokens_on_smollm2 import CODE, layers
from tests.read.streaming.test_massive_on_smollm2 import TEXT, UNRELATED, loss

BLOCK, UNIT, EARLY, OTHER = 12, 163, 400, 300
"""Unit 400 is the largest one of blocks 0 to 2, unit 163 that of all others."""
WHERE = ak.Where(tokens=0, units=UNIT)


def test_few_activations_of_the_first_token_are_massive(gemma: Model) -> None:
    """Does not hold on Gemma: at most 20 massive entries in each layer (here 67 in block 1)."""
    fed = gemma.observe([TEXT], {"resid_post.*": [Massive()]})
    found = [readings[0].result() for readings in fed.values()]
    tops = [(r.top[0].position, r.top[0].unit) for r in found]
    assert tops == 3 * [(0, EARLY)] + 15 * [(0, UNIT)]
    assert found[BLOCK].ratios[0] >= 1000
    assert found[BLOCK].ratios[0] == pytest.approx(1327, rel=0.01)
    massive = [block for block, r in enumerate(found) if r.num_massive]
    assert massive == [*range(14)]
    # in the first blocks unit 400 is massive at the other tokens, too
    assert [r.num_massive for r in found[:7]] == [4, 67, 47, 25, 2, 2, 2]
    assert max(r.num_massive for r in found[7:]) == 1


def test_the_loss_needs_the_massive_activation_more_than_another_unit(gemma: Model) -> None:
    """Does not hold on Gemma: 5 nats of loss are added by setting it to zero (here 0.98).

    Its value is one constant over texts by construction, so setting it to its mean is no edit.
    """
    site = f"resid_post.{BLOCK}"
    held = gemma.run(UNRELATED, record=site)
    values = held[site][held.rows.valid & (held.rows.position == 0)][:, UNIT]
    assert values.std() / values.mean().abs() < 1e-5
    plain = loss(gemma)
    zeroed = loss(gemma, ak.set(site, 0.0, where=WHERE))
    mean = loss(gemma, ak.set(site, float(values.mean()), where=WHERE))
    control = loss(gemma, ak.set(site, 0.0, where=ak.Where(tokens=0, units=OTHER)))
    assert zeroed - plain == pytest.approx(0.98, abs=0.05)
    assert abs(mean - plain) < 1e-3
    assert abs(control - plain) < 2e-3


def test_one_entry_is_the_largest_from_block_3_on(gemma: Model) -> None:
    """Blocks 3 to 13; from 14 on the ratio is below 1000, for all other entries have grown."""
    sites = ["resid_pre.0", *(f"resid_post.{block}" for block in range(3, 18))]
    ratios = massive_ratios(gemma, [TEXT], sites)
    rec = gemma.run(TEXT, record=sites)
    assert ratios.pop("resid_pre.0") <= 100
    sizes = list(ratios.values())
    assert min(sizes[:11]) >= 1000
    assert sizes[11:] == pytest.approx([853, 635, 448, 282], rel=0.01)
    assert {divmod(int(rec[site].abs().argmax()), 640) for site in sites[1:]} == {(0, UNIT)}


def test_attention_rests_on_the_first_token_and_its_value_is_short(gemma: Model) -> None:
    """Does not hold on Gemma: three of the claims on how the first token becomes extreme.

    Its state is at most 29 medians long (100 for SmolLM2), longest after the first block already
    and not all at once. The first two layers rest on it as well (0.54 of their attention, at most
    0.1 for SmolLM2), since <bos> is alike in every text. In the layers 2 to 6 no head's share
    changes by more than 0.14 from prose to code (0.5 for SmolLM2).
    """
    found = layers(gemma, TEXT)
    dormant = sum(int(r.dormant_H.sum()) for r in found)
    assert dormant / 72 >= 80 / 270
    assert dormant == 31
    assert sum(float(r.drain_G.mean()) < 0.5 for r in found) == 18
    peaks = [float(r.peak) for r in found]
    assert peaks.index(max(peaks)) == 0
    assert peaks[0] == pytest.approx(29.3, rel=0.01)
    assert max(peaks[1:]) == pytest.approx(16.1, rel=0.01)
    assert sum(float(r.sink_H.mean()) / 2 for r in found[:2]) == pytest.approx(0.545, abs=0.01)
    # layers 3 to 9 of SmolLM2's 30 lie as deep as 2 to 6 of 18
    other = layers(gemma, CODE)
    changes = [float(active_dormant_index(a, b).max()) for a, b in zip(found, other, strict=True)]
    assert max(changes[2:7]) == pytest.approx(0.14, abs=0.01)
    assert changes.index(max(changes)) == 17
    assert changes[17] == pytest.approx(0.41, abs=0.01)
