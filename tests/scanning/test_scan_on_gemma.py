"""What a scan knows of Gemma-3-270M, beside what it knows of SmolLM2.

It reads blocks that begin with <bos>, as every text that Gemma was trained on.
"""

from itertools import islice

import pytest

import actkit as ak
from actkit.model import Model
from actkit.scanning.report import Report
from tests.scanning.test_scan import KEYS, page, values


@pytest.fixture(scope="module")
def of_gemma(gemma: Model) -> Report:
    prose = ak.data.chunks(ak.data.text(), gemma.tokenizer, 127)
    blocks = [[gemma.tokenizer.bos_token_id, *block] for block in islice(prose, 8)]
    return ak.scan(gemma, blocks, num_tokens=1024, control=False, questions=KEYS)


def test_it_puts_its_massive_activation_on_the_first_token(of_gemma: Report) -> None:
    assert values(of_gemma, "massive", "largest_unit") == 3 * [400] + 15 * [163]
    assert set(values(of_gemma, "massive", "largest_position")) == {0}
    massive = [i for i, n in enumerate(values(of_gemma, "massive", "num_massive")) if n]
    assert massive == [*range(14)]
    largest = values(of_gemma, "massive", "largest")
    assert max(largest) == pytest.approx(103_795, rel=0.01)
    assert largest[0] == pytest.approx(2_984, rel=0.01), "there from the first block on"
    findings = page(of_gemma, "massive").findings
    assert "14 of 18 layers hold massive activations" in findings[2]
    assert "layers 0 to 13, units 163 and 400" in findings[2]
    assert "position 0, token '<bos>'" in findings[0] and "unit 163 at layer 5" in findings[0]


def test_it_rests_its_attention_there_too(of_gemma: Report) -> None:
    """Does not hold on Gemma: the first blocks have no sink yet, and later a layer rests by .7.

    The first two blocks give <bos> .23 and .59 of their attention, and the most is .68 at block 5.
    """
    first = values(of_gemma, "sinks", "first")
    assert 0.3 < sum(first) / len(first) < 0.5
    assert sum(first) / len(first) == pytest.approx(0.404, abs=0.005)
    assert first[:2] == pytest.approx([0.228, 0.592], abs=0.01)
    assert first.index(max(first)) == 5
    assert first[5] == pytest.approx(0.678, abs=0.01)
    assert page(of_gemma, "sinks").figures[1].series.keys() == {f"head {h}" for h in range(4)}
    assert "47 of 72 heads give it more than 30%" in page(of_gemma, "sinks").findings[1]


def test_it_is_dense_grows_and_1024_tokens_are_few(of_gemma: Report) -> None:
    """Does not hold on Gemma: less than .01 % of activations are exactly zero (here .033 %)."""
    zeros = values(of_gemma, "sparsity", "below_0")
    assert sum(zeros) / len(zeros) == pytest.approx(0.00033, abs=0.00005)
    assert "are exactly zero, from" in page(of_gemma, "sparsity").findings[0]
    norms = values(of_gemma, "size", "norm_mean")
    assert norms[-1] > 15 * norms[0]
    assert norms[-1] / norms[0] == pytest.approx(241, rel=0.02)
    assert "grows from" in page(of_gemma, "size").findings[0]
    findings = page(of_gemma, "spectrum").findings
    assert any(f.startswith("18 layers had fewer than 4 rows") for f in findings)
    assert of_gemma.about["data"] == "all 1,024 tokens of the given list in 8 samples"


def test_one_direction_holds_nearly_all_of_its_first_blocks(of_gemma: Report) -> None:
    """The effective rank is 1.5 of 640 after the first block and 111 at block 11."""
    ranks = values(of_gemma, "spectrum", "effective_rank")
    assert ranks[0] == pytest.approx(1.46, abs=0.05)
    assert ranks.index(max(ranks)) == 11
    assert ranks[11] == pytest.approx(111, rel=0.03)
    assert values(of_gemma, "spectrum", "share_first")[0] == pytest.approx(0.945, abs=0.005)
