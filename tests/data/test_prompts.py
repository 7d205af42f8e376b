from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from actkit import data
from actkit.core.errors import DataError
from actkit.data import Cloze, Contrast


def test_ioi_prompts_are_distinct_balanced_and_name_the_subject_twice() -> None:
    rows = data.ioi(1001, seed=3)
    assert len({row.clean for row in rows}) == 1001
    assert Counter(row.kind for row in rows) == {"ABBA": 501, "BABA": 500}
    for row in rows:
        words = row.clean.replace(",", "").split()
        answer, wrong = row.answer.strip(), row.wrong.strip()
        assert row.subject == wrong and words.count(wrong) == 2 and words.count(answer) == 1
        assert (words.index(answer) < words.index(wrong)) == (row.kind == "ABBA")


def test_ioi_answers_are_spread_over_the_names() -> None:
    counts = Counter(row.answer for row in data.ioi(2000))
    assert len(counts) >= 40 and max(counts.values()) < 2 * 2000 / len(counts)


def test_ioi_counterfactual_differs_in_three_tokens_and_holds_no_answer(
    smollm2_tokenizer: Any,
) -> None:
    def ids(text: str) -> list[int]:
        found: list[int] = smollm2_tokenizer(text)["input_ids"]
        return found

    for row in data.ioi(300):
        assert len(ids(row.answer)) == len(ids(row.wrong)) == 1
        clean, corrupt = ids(row.clean), ids(row.corrupt)
        changed = [new for old, new in zip(clean, corrupt, strict=True) if old != new]
        assert len(set(changed)) == 3
        assert not {*ids(row.answer), *ids(row.wrong)} & set(changed)


def test_ioi_is_seeded_and_a_longer_list_begins_with_a_shorter_one() -> None:
    assert data.ioi(50, seed=1)[:20] == data.ioi(20, seed=1)
    assert data.ioi(20, seed=1) != data.ioi(20, seed=2)
    for num in (0, 100_001):
        with pytest.raises(DataError, match=f"got {num}"):
            data.ioi(num)


def test_capitals_are_known_facts_in_every_template() -> None:
    rows = data.capitals()
    facts = {row.subject: row.answer for row in rows}
    kinds = Counter(row.kind for row in rows)
    assert len(facts) >= 60 and len(kinds) >= 3 and set(kinds.values()) == {len(facts)}
    assert len({row.clean for row in rows}) == len(rows)
    assert len(set(facts.values())) == len(facts)
    known = {"France": " Paris", "Japan": " Tokyo", "Kenya": " Nairobi", "Peru": " Lima"}
    known |= {"Australia": " Canberra", "the Philippines": " Manila", "Brazil": " Brasília"}
    assert {country: facts[country] for country in known} == known
    assert all(row.subject in row.clean and row.answer not in row.clean for row in rows)


def test_capital_counterfactuals_come_in_pairs_of_equal_length(smollm2_tokenizer: Any) -> None:
    rows = data.capitals()
    by_prompt = {row.clean: row for row in rows}
    for row in rows:
        other = by_prompt[row.corrupt]
        assert (other.corrupt, other.answer, other.kind) == (row.clean, row.wrong, row.kind)
        clean, corrupt, answer, wrong = (
            smollm2_tokenizer(text)["input_ids"]
            for text in (row.clean, row.corrupt, row.answer, row.wrong)
        )
        assert len(clean) == len(corrupt) and answer[0] != wrong[0]


@pytest.mark.parametrize(("load", "least"), [(data.sentiment, 100), (data.refusal, 64)])
def test_contrasts_are_distinct_and_of_equal_length_on_average(
    load: Callable[[], list[Contrast]], least: int
) -> None:
    pairs = load()
    sides = [[pair.positive for pair in pairs], [pair.negative for pair in pairs]]
    assert len(pairs) >= least and len({s.lower() for side in sides for s in side}) == 2 * len(
        pairs
    )
    words = [sum(len(s.split()) for s in side) / len(pairs) for side in sides]
    assert abs(words[0] - words[1]) < 1.0
    assert all(s == s.strip() and s[-1] in ".?" and s[0].isupper() for side in sides for s in side)
    # No end sign tells the sides apart.
    assert sum(s.endswith("?") for s in sides[0]) == sum(s.endswith("?") for s in sides[1])


def test_split_is_a_seeded_partition_in_order() -> None:
    items = list(range(100, 137))
    train, test = data.split(items, test=0.3, seed=5)
    assert len(test) == 11 and sorted(train + test) == items
    assert train == sorted(train) and test == sorted(test)
    assert data.split(items, test=0.3, seed=5) == (train, test)
    assert data.split(items, test=0.3, seed=6) != (train, test)


def test_split_keeps_groups_whole() -> None:
    def country(row: Cloze) -> str:
        return row.subject

    train, test = data.split(data.capitals(), test=0.25, seed=0, by=country)
    assert not {row.subject for row in train} & {row.subject for row in test}
    assert len(train) + len(test) == len(data.capitals())
    assert Counter(row.kind for row in test)["city"] == round(0.25 * len(test + train) / 4)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 0.01, 0.99])
def test_split_refuses_an_empty_side(share: float) -> None:
    with pytest.raises(DataError, match="got"):
        data.split(["a", "b", "c"], test=share)
