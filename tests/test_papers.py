"""The table of papers, and the way from a question to a paper."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import actkit.papers as module
from actkit.core.errors import DataError, InputError
from actkit.papers import PURPOSES, MeasuredFigure, Paper, Standing, papers, search, standings

Right = Callable[[Paper], bool]


def of(*families: str) -> Right:
    return lambda paper: paper.family in families


def says(pattern: str) -> Right:
    return lambda paper: re.search(pattern, f"{paper.title} {paper.about}".lower()) is not None


QUESTIONS: dict[str, Right] = {
    "how do I stop a model from refusing": lambda p: of("steer")(p) or says("refus")(p),
    "make inference cheaper by skipping neurons": of("shrink"),
    "find which heads cause the answer": of("trace"),
    "detect out of distribution inputs": says("out-of-dist|ood|anomal"),
    "use less memory when fine-tuning": of("tune"),
    "which activation function should I use": of("nn"),
    "compare a network with fMRI recordings": of("brain"),
    "why do a few activations have huge values": says("massive|outlier"),
    "train a sparse autoencoder": says("sparse autoenc|sae"),
    "compress the KV cache": says("kv|context compr|cache"),
    "why does attention rest on the first token": says("sink|dormant|massive|extreme-token"),
    "make the model more honest": says("truth|steer|persona|honest|hallucin"),
    "decode seen images from brain activity": of("brain"),
    "where is a fact stored": says("fact|knowledge|relation-specific"),
    "is the output really from this model": says("verif|proof|trustless|commit"),
    "speed up a mixture of experts": says("moe|expert"),
    "show which pixels mattered": says(
        "saliency|attribution|explanation map|masking|cam|relevance"
    ),
    "steer an image generator": says("diffusion|image|visual"),
    "prove a bound on a network's output": says("verif|certif|bound|lipschitz|lipsdp"),
    "quantise a network to 4 bits": says("quanti|bit"),
    "spiking neurons": says("spik"),
    "does the model plan several steps ahead": says("step|chain-of-thought|think"),
    "early exit": says("exit|layerwise|intermediate"),
    "remove dangerous knowledge from a model": says("unlearn|refus|misdirection|safety"),
}


@pytest.fixture
def words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ACTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def firsts() -> list[bool]:
    """Return for each question whether the first paper is a right one."""
    return [right(search(question, 1)[0].paper) for question, right in QUESTIONS.items()]


def right_of_three(question: str) -> int:
    return sum(QUESTIONS[question](hit.paper) for hit in search(question, 3))


def test_table_is_whole() -> None:
    found = papers()
    assert len(found) == 281
    assert {p.family for p in found.values()} == set(PURPOSES)
    assert len({p.title for p in found.values()}) == 281
    for key, paper in found.items():
        assert paper.key == key and re.fullmatch(r"[a-z0-9-]+", key)
        assert paper.title and paper.headline and paper.about.endswith(".")
        assert re.fullmatch(r"(\d{4}\.\d{4,5})?", paper.arxiv)
    assert sum(bool(p.arxiv) for p in found.values()) == 269
    assert found["massive-activations-large-language"].arxiv == "2402.17762"


def test_every_paper_has_a_standing() -> None:
    assert list(standings()) == list(papers())
    for standing in standings().values():
        assert standing.works == (not standing.note)
        assert not standing.works or (standing.figures and all(f.holds for f in standing.figures))


def test_meaning_finds_a_right_paper_first() -> None:
    assert sum(firsts()) >= 20  # 21 of 24 measured
    assert right_of_three("how do I stop a model from refusing") == 3
    assert right_of_three("make inference cheaper by skipping neurons") >= 2
    answer = search("how do I stop a model from refusing")
    assert len(answer) == 8
    assert answer.by == "by meaning (all-MiniLM-L6-v2) and words"


@pytest.mark.usefixtures("words_only")
def test_words_find_a_right_paper_first() -> None:
    assert sum(firsts()) >= 17  # 18 of 24 measured
    assert right_of_three("how do I stop a model from refusing") >= 2
    assert right_of_three("make inference cheaper by skipping neurons") == 3
    assert search("spiking neurons").by == "by words"


@pytest.mark.usefixtures("words_only")
def test_a_title_finds_its_own_paper() -> None:
    for key in ("toploc", "mish", "comblm", "pad-activation-units"):
        hits = search(papers()[key].title, 2)
        assert hits[0].paper.key == key
        assert 0.3 < hits[0].score <= 1 and hits[0].score > hits[1].score


@pytest.mark.usefixtures("words_only")
def test_words_that_no_paper_has_find_nothing() -> None:
    answer = search("zxqv wwkj")
    assert len(answer) == 0
    assert "281 papers" in str(answer)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stand in for the slow network; return how many texts each call embedded."""
    calls: list[int] = []

    def embed(texts: tuple[str, ...]) -> torch.Tensor:
        calls.append(len(texts))
        lengths = torch.tensor([[len(text), 50.0] for text in texts])
        return torch.nn.functional.normalize(lengths, dim=-1)

    monkeypatch.setattr(module, "_embed", embed)
    return calls


def test_texts_are_embedded_once_and_damage_is_mended(own_cache: Path, embedded: list[int]) -> None:
    first = search("early exit")
    assert search("early exit") == first
    assert embedded == [291, 1, 1]
    (path,) = (own_cache / "papers").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    assert search("early exit") == first
    assert embedded == [291, 1, 1, 291, 1]


@pytest.mark.usefixtures("embedded")
def test_a_cache_that_cannot_be_written_costs_no_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACTKIT_CACHE", str(tmp_path / "file"))
    assert len(search("early exit", 3)) == 3


def test_embeddings_are_unit_and_do_not_depend_on_the_batch() -> None:
    texts = ("one short text", "quite another and much longer text about attention heads")
    together = module._embed(texts)
    alone = torch.cat([module._embed((text,)) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(together.norm(dim=1).numpy(), 1, atol=1e-5)


def test_standing_of_a_hit_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = MeasuredFigure("gap over random direction", 0.3125, ">= 0.2", holds=True)
    works = Standing(True, ("transport",), (figure,), ("tests/steer/test_x.py::test",), 1.5, "")
    table = {**standings(), "mish": works}
    monkeypatch.setattr(module, "standings", lambda: table)
    hit = next(h for h in search("Mish: a self regularized activation") if h.paper.key == "mish")
    assert hit.standing == works
    text = str(hit)
    assert text.startswith("works    Mish")
    assert "methods: transport" in text
    assert "gap over random direction 0.3125 (>= 0.2)" in text
    card = json.loads(json.dumps(search("mish", 1).to_dict()))["hits"][0]
    assert card["standing"]["figures"][0]["measured"] == 0.3125
    assert card["paper"]["arxiv"] == "1908.08681"


@pytest.mark.parametrize("question", ["", "  ", "how do I", "?!"])
def test_a_question_needs_a_word(question: str) -> None:
    with pytest.raises(InputError, match="must hold a word"):
        search(question)


def test_num_must_be_positive() -> None:
    with pytest.raises(InputError, match="num must be at least 1, got 0"):
        search("early exit", 0)


def test_a_missing_table_is_named() -> None:
    with pytest.raises(DataError, match=r"table nothing\.csv"):
        module._table("nothing.csv")
