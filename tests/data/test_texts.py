import pytest

from actkit import data
from actkit.core.errors import DataError


def test_at_least_a_megabyte_of_text_with_licence_and_source() -> None:
    assert sum(len("\n\n".join(data.text(t.name)).encode()) for t in data.texts()) > 1_000_000
    for t in data.texts():
        assert t.licence == "public domain" and t.author and t.source


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("austen", "It is a truth universally acknowledged, that", "in its national importance."),
        ("thoreau", "WHEN I WROTE the following pages", 'or free man, like the cypress."'),
        ("shakespeare", "First Citizen:\nBefore we proceed", "Whiles thou art waking."),
    ],
)
def test_texts_run_from_their_first_words_to_their_last(name: str, first: str, last: str) -> None:
    paragraphs = data.text(name)
    assert paragraphs[0].startswith(first) and paragraphs[-1].endswith(last)


@pytest.mark.parametrize("name", ["austen", "thoreau"])
def test_prose_is_one_line_a_paragraph_without_headings_or_repeats(name: str) -> None:
    paragraphs = data.text(name)
    assert not any("\n" in p or "  " in p or p != p.strip() for p in paragraphs)
    assert not any(p.lower().startswith(("chapter ", "volume ")) for p in paragraphs)
    assert len(set(paragraphs)) == len(paragraphs)


def test_num_samples_takes_from_the_beginning_and_refuses_more_than_there_are() -> None:
    everything = data.text("thoreau")
    assert data.text("thoreau", num_samples=7) == everything[:7]
    with pytest.raises(DataError, match=rf"1\.\.{len(everything)} .* got {len(everything) + 1}"):
        data.text("thoreau", num_samples=len(everything) + 1)
    with pytest.raises(DataError, match="got 0"):
        data.text("thoreau", num_samples=0)


def test_an_unknown_text_names_the_nearest() -> None:
    with pytest.raises(DataError, match="no bundled text 'austin'; nearest: austen"):
        data.text("austin")
