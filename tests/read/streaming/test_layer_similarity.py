from typing import Any

import numpy as np
import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.read.similarity.cka import cka
from actkit.read.streaming.layer_similarity import LayerSimilarity
from tests import contract
from tests.contract import acts, rows

NUM = 43


def sites(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    first = acts(NUM, 5)
    second = (first[:, :3] - 2).square() + acts(NUM, 3, seed=1)
    return [x.to(dtype) for x in (first, second, acts(NUM, 6, seed=2))]


def read(given: list[torch.Tensor], **settings: Any) -> LayerSimilarity:
    reading = LayerSimilarity(**settings)
    reading.update(given, rows(len(given[0])))
    return reading


@pytest.mark.parametrize("unbiased", [False, True])
def test_every_pair_is_its_cka_and_padding_and_first_tokens_do_not_count(unbiased: bool) -> None:
    given, its_rows = sites(), rows(NUM)
    its_rows.valid[20] = False
    reading = LayerSimilarity(unbiased)
    reading.update(given, its_rows)
    keep = its_rows.valid & (its_rows.position > 0)
    result = reading.result()
    assert result.num_rows == int(keep.sum())
    for i in range(3):
        for j in range(3):
            expected = cka(given[i][keep], given[j][keep], unbiased)
            assert float(result.cka_LL[i, j]) == pytest.approx(expected, rel=1e-10)
    assert result.summary()["first_to_last"] == float(result.cka_LL[0, 2])


@pytest.mark.parametrize("unbiased", [False, True])
def test_merges_of_random_splits_equal_one_update(unbiased: bool) -> None:
    given, its_rows = sites(), rows(NUM)

    def feed(reading: LayerSimilarity, start: int, stop: int) -> None:
        reading.update([x[start:stop] for x in given], its_rows[start:stop])

    contract.check_merged(lambda: LayerSimilarity(unbiased), feed, NUM)
    contract.check_constant_size(LayerSimilarity(), lambda r: feed(r, 0, NUM))
    contract.check_copies(read(given), lambda r: r.result())
    contract.check_unchanged(lambda: read(given), given)
    with pytest.raises(InputError, match="same settings"):
        LayerSimilarity().merge(LayerSimilarity(unbiased=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_any_precision_is_summed_in_float64(dtype: torch.dtype) -> None:
    given = sites(dtype)
    contract.check_same(read(given).result(), read([x.double() for x in given]).result(), rtol=1e-9)


def test_rows_that_are_not_finite_at_any_site_are_left_out_at_all() -> None:
    given = sites()
    given[0][3, 1], given[2][3, 0], given[2][9, 0] = torch.nan, torch.inf, torch.nan
    keep = torch.tensor([i not in (3, 9) for i in range(NUM)])
    result = read(given, skip_first=False).result()
    assert (result.num_rows, result.num_nonfinite) == (NUM - 2, 2)
    expected = cka(given[0][keep], given[2][keep])
    assert float(result.cka_LL[0, 2]) == pytest.approx(expected, rel=1e-10)


def test_no_rows_one_row_a_constant_site_and_sites_that_do_not_fit() -> None:
    empty = LayerSimilarity().result()
    assert empty.num_rows == 0 and np.isnan(empty.summary()["neighbours"])
    given = sites()
    assert read([x[1:2] for x in given], skip_first=False).result().cka_LL.isnan().all()
    three = [x[1:4] for x in given]
    assert read(three, unbiased=True, skip_first=False).result().cka_LL.isnan().all()
    constant = read([given[0], torch.full((NUM, 2), 0.1)]).result().cka_LL
    assert constant[0, 0] == 1 and constant[1].isnan().all() and constant[0, 1].isnan()
    with pytest.raises(InputError, match="same 43 rows"):
        LayerSimilarity().update([given[0], given[1][:9]], rows(NUM))
    with pytest.raises(InputError, match="widths"):
        read(given).update(given[:2], rows(NUM))


def test_blocks_of_smollm2_are_the_less_alike_the_farther_apart(smollm2: Model) -> None:
    names = ("resid_post.2", "resid_post.10", "resid_post.18", "resid_post.26")
    fed = smollm2.observe(ak.data.text(num_samples=8), {names: [LayerSimilarity(unbiased=True)]})
    cka_LL = fed[names][0].result().cka_LL
    right, down = cka_LL.diff(dim=1), cka_LL.diff(dim=0)
    assert (right[torch.ones(4, 3).triu() > 0] < 0).all()
    assert (down[torch.ones(3, 4).triu(1) > 0] > 0).all()
    assert (cka_LL > 0.05).all()  # chance is 0 for the unbiased estimator
