"""A scan as a whole: what it asks, what it leaves alone, and what it knows of real networks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import InputError, ModelError
from actkit.model import Model
from actkit.opening.untrained import untrained
from actkit.scanning.answer import Page
from actkit.scanning.questions import QUESTIONS
from actkit.scanning.report import Report
from tests.core import tiny
from tests.scanning.planted import Times, axes, chain


def asked_at(*kinds: str) -> list[str]:
    """Return the questions that are asked of kinds of sites."""
    return [q.key for q in QUESTIONS if q.kind in kinds]


PLAIN = asked_at("stream", "hidden")
KEYS = asked_at("stream", "hidden", "attention", "heads", "path")
"""What is asked of every network that a table knows."""
DEEP = [q.key for q in QUESTIONS]
"""What is asked of a decoder with gated MLPs."""
TEXTS = [" ".join(f"w{(7 * i + j * j) % 88 + 1}" for j in range(23 + i)) for i in range(20)]


def page(report: Report, key: str) -> Page:
    return next(p for p in report.pages if p.key == key)


def written(report: Report, key: str) -> dict[str, Any]:
    """Return the numbers of a page as they stand in JSON."""
    pages: list[dict[str, Any]] = json.loads(report.to_json())["pages"]
    return next(p["numbers"] for p in pages if p["key"] == key)


def values(report: Report, key: str, number: str) -> list[float]:
    """Return one number of all sites of a page, in their order."""
    return [row[number] for row in page(report, key).numbers.values()]


def test_every_question_has_numbers_findings_a_figure_and_an_answer() -> None:
    report = ak.scan(tiny.model(), TEXTS, num_tokens=400)
    assert [p.key for p in report.pages] == DEEP
    assert report.title == "tiny-llama: what its activations do"
    points = {"sparsity": "mlp_hidden", "sinks": "attn_probs"}
    for found in (page(report, key) for key in asked_at("stream", "hidden", "attention")):
        point = points.get(found.key, "resid_post")
        assert list(found.numbers) == [f"{point}.{i}" for i in range(3)]
    assert list(page(report, "voids").numbers) == ["resid_pre.0 to resid_post.2"]
    for found in report.pages:
        assert found.findings and found.note and found.numbers
        assert {f.x for f in found.figures} == {("0", "1", "2")}
        assert found.answer is not None and found.answer.shown() != "-"
        assert bool(found.figures[0].beside) == (found.key != "needed")
    assert written(report, "sinks")["attn_probs.0"]["num_rows"] > 0


def test_the_numbers_are_those_of_one_run_over_the_same_tokens() -> None:
    m = tiny.model()
    tokens = [m.tokenizer(t)["input_ids"] for t in TEXTS]
    report = ak.scan(m, tokens, batch_size=3)
    acts: list[Tensor] = []
    for row in tokens:
        acts.append(m.run([row], "resid_post.1")["resid_post.1"][0, 1:].double())
    norms = torch.cat(acts).norm(dim=1)
    found = page(report, "size").numbers["resid_post.1"]
    assert found["num_rows"] == len(norms)
    assert found["norm_mean"] == pytest.approx(float(norms.mean()), rel=1e-5)
    assert found["norm_std"] == pytest.approx(float(norms.std(correction=0)), rel=1e-4)
    cov = torch.cat(acts).T.cov(correction=0)
    share = torch.linalg.eigvalsh(cov) / cov.trace()
    rank = float(torch.special.entr(share.clamp_min(0)).sum().exp())
    assert page(report, "spectrum").numbers["resid_post.1"]["effective_rank"] == pytest.approx(
        rank, rel=1e-4
    )


def test_the_batch_size_changes_no_number() -> None:
    one, other = (ak.scan(tiny.model(), TEXTS, batch_size=n) for n in (1, 7))
    for key in KEYS:
        for site, row in page(one, key).numbers.items():
            found = page(other, key).numbers[site]
            assert found == pytest.approx(row, rel=1e-3, abs=1e-5, nan_ok=True)


def test_provenance_names_model_weights_data_and_settings() -> None:
    about = ak.scan(tiny.model(), TEXTS, num_tokens=100).about
    assert about["data"] == (
        "the first 100 tokens of the given list in 2 samples, the rest was not read"
    )
    assert about["model"] == "tiny-llama" and about["actkit"] == ak.__version__
    assert len(about["weights"]) == len(about["settings"]["data"]) == 64
    assert about["settings"] | {"data": ""} == {
        "data": "", "num_tokens": 100, "batch_size": 8, "points": "points from the table of llama",
    }  # fmt: skip
    again = ak.scan(tiny.model(), TEXTS, num_tokens=100).about
    assert again == about
    assert (
        ak.scan(tiny.model(), TEXTS, num_tokens=99).about["settings"]["data"]
        != about["settings"]["data"]
    )


def test_the_network_is_left_as_it_was() -> None:
    m = tiny.model()
    with tiny.untouched(m.module):
        ak.scan(m, TEXTS, num_tokens=100)
    net = chain(Times(2.0), Times(3.0))
    before = tiny.state(net.module)
    ak.scan(net, [axes()])
    assert tiny.state(net.module) == before


@pytest.mark.parametrize("texts", [["w3"], ["w3 w4"], ["w3 w4 w5"]])
def test_too_little_text_is_told_and_breaks_nothing(texts: list[str], tmp_path: Path) -> None:
    report = ak.scan(tiny.model(), texts)
    num_tokens = len(texts[0].split())
    nothing = ("There was nothing to read here: no row was left.",)
    assert page(report, "sinks").findings == nothing, "no query at position 8"
    if num_tokens == 1:
        assert page(report, "size").findings == page(report, "spectrum").findings == nothing
        assert page(report, "size").figures == ()
    rows = f"{num_tokens} rows" if num_tokens > 1 else "1 row"
    assert page(report, "massive").findings[-1] == (
        f"Only {rows} could be read, too few for firm numbers."
    )
    assert written(report, "sinks")["attn_probs.0"]["first"] is None
    report.to_html(tmp_path / "index.html")
    report.print()


def test_rows_that_are_not_finite_are_told_by_layer() -> None:
    m = tiny.model()
    with torch.no_grad():
        m.module.model.layers[1].mlp.down_proj.weight[3, 4] = float("nan")  # type: ignore[union-attr,index]
    report = ak.scan(m, TEXTS, num_tokens=200)
    assert page(report, "size").findings[-2:] == (
        "No row was left to read at layers 1 and 2.",
        "392 rows held NaN or infinity and stayed out, at layers 1 and 2.",
    )
    assert page(report, "size").figures[0].x == ("0",)
    assert page(report, "sparsity").findings[-2:] == (
        "No row was left to read at layer 2.",
        "196 rows held NaN or infinity and stayed out, at layer 2.",
    )
    assert json.loads(report.to_json())["pages"][0]["numbers"]["resid_post.2"]["rms"] is None


def test_every_stack_that_the_data_reach_is_asked() -> None:
    config = tf.T5Config(
        vocab_size=91, d_model=24, d_kv=7, d_ff=37, num_layers=3, num_decoder_layers=2, num_heads=3
    )
    network: Any = tf.T5ForConditionalGeneration(config)
    m = Model(network.eval(), tiny.tokenizer(), name="tiny-t5")
    report = ak.scan(m, TEXTS, num_tokens=200)
    assert [p.key for p in report.pages] == [f"encoder-{k}" for k in KEYS]
    assert report.pages[0].question == "How big are activations? (encoder)"
    assert report.about["data"].endswith("the rest was not read; not reached: decoder")
    ids = torch.arange(1, 85).view(6, 14)
    both = ak.scan(m, [{"input_ids": ids, "decoder_input_ids": ids[:, :10]}])
    assert [p.key for p in both.pages] == [f"{s}-{k}" for s in ("encoder", "decoder") for k in KEYS]
    assert values(both, "encoder-size", "num_rows") == [78, 78, 78]
    assert values(both, "decoder-size", "num_rows") == [54, 54]
    assert both.about["data"] == "the 1 input of the given list"


def test_a_table_free_network_is_asked_about_its_blocks() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    report = ak.scan(Model(net), tiny.uneven(3, 3, 9, 9))
    assert [p.key for p in report.pages] == PLAIN, "there is no attention"
    assert values(report, "size", "num_rows") == [3 * 49, 3 * 49, 3 * 25]
    acts = net(tiny.uneven(3, 3, 9, 9)).detach()
    assert values(report, "size", "norm_mean")[2] == pytest.approx(float(acts.norm(dim=1).mean()))
    assert "First token" not in page(report, "size").note


def test_notes_speak_of_tokens_only_where_there_are_some() -> None:
    net = Model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)))
    image = torch.randint(256, (2, 3, 12, 12), dtype=torch.uint8)
    assert page(ak.scan(net, image), "size").note == "The output of each block."
    assert "first token" in page(ak.scan(tiny.model(), TEXTS, num_tokens=50), "size").note


@pytest.mark.parametrize(
    ("model", "data", "error", "rule"),
    [
        (Model(nn.Linear(3, 2)), torch.zeros(2, 3), ModelError, "a list of blocks, Linear has 0"),
        (tiny.model(), [], InputError, "at least one sample"),
        (tiny.model(), [["w1"]], InputError, "list of list needs a processor"),
        (tiny.model(), [[1, 200]], InputError, "token ids must be 0 to 88, got 1 to 200"),
        (tiny.model(), None, InputError, "num_tokens and batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_scanned_is_a_typed_error(
    model: Model, data: Any, error: type[Exception], rule: str
) -> None:
    with pytest.raises(error, match=rule):
        ak.scan(model, data, num_tokens=0 if data is None else 10)


def test_an_untrained_copy_is_scanned_on_the_same_tokens() -> None:
    m = tiny.model()
    report = ak.scan(m, TEXTS, num_tokens=200)
    control = ak.scan(untrained(m), TEXTS, num_tokens=200, control=False)
    assert report.pages[-1].key == "needed", "it is not asked of an untrained network"
    for own, alone in zip(report.pages[:-1], control.pages[:-1], strict=True):
        assert own.answer is not None and alone.answer is not None
        assert [*own.answer.values] == [m.name, "untrained"]
        (expected,) = alone.answer.values.values()
        assert own.answer.values["untrained"] == pytest.approx(expected, rel=1e-6, nan_ok=True)
        (drawn,) = own.figures[0].beside
        title, values = next(iter(alone.figures[0].series.items()))
        assert drawn == f"{title}, untrained"
        assert own.figures[0].series[drawn] == pytest.approx(values, rel=1e-6)
    assert "control" not in report.about
    assert control.about["control"] == "not asked for"
    assert not any(f.beside for p in control.pages for f in p.figures)


def test_another_network_stands_beside_it_whatever_its_depth() -> None:
    m = tiny.model()
    config = tf.LlamaConfig(
        vocab_size=91, hidden_size=24, intermediate_size=20, num_hidden_layers=5,
        num_attention_heads=3, num_key_value_heads=3,
    )  # fmt: skip
    deep: Any = tf.LlamaForCausalLM(config)
    other = Model(deep.eval(), tiny.tokenizer(), name="deep")
    report = ak.scan(m, TEXTS, num_tokens=200, against=other, control=False)
    alone = ak.scan(other, TEXTS, num_tokens=200, control=False)
    size = page(report, "size")
    assert size.answer is not None and [*size.answer.values] == [m.name, "deep"]
    norms = page(alone, "size").figures[0].series["mean"]
    assert size.figures[0].series["mean, deep"] == tuple(norms[i] for i in (0, 2, 4))
    assert report.title.endswith("and those of deep")
    assert report.about["against"]["weights"] == alone.about["weights"]
    with pytest.raises(InputError, match="readable twice"):
        ak.scan(m, iter(TEXTS), against=other)


def test_only_what_is_asked_is_read() -> None:
    m = tiny.model()
    report = ak.scan(m, TEXTS, num_tokens=100, questions=["sinks", "size"], control=False)
    assert [p.key for p in report.pages] == ["size", "sinks"]
    with pytest.raises(InputError, match=r"questions are size, .*, got colour"):
        ak.scan(m, TEXTS, questions=["size", "colour"])


def test_what_cannot_be_measured_is_told_on_its_page() -> None:
    report = ak.scan(tiny.model(), ["w3 w4"], questions=["needed"], control=False)
    (found,) = report.pages
    assert found.findings[0].startswith("This could not be measured: perplexity needs a finite")
    assert found.figures == () and found.answer is not None and found.answer.shown() == "-"


def test_where_no_untrained_copy_can_be_made_the_report_says_why() -> None:
    once = ak.scan(tiny.model(), iter(TEXTS), num_tokens=100)
    assert once.about["control"].endswith("the data can be read only once")
    bare = ak.scan(chain(Times(2.0), Times(3.0)), [axes()])
    assert bare.about["control"].endswith("planted has none")
    assert bare.pages[0].answer is not None and [*bare.pages[0].answer.values] == ["planted"]


# -- real networks -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_smollm2(smollm2: Model) -> Report:
    return ak.scan(smollm2, num_tokens=1024, control=False, questions=KEYS)


@pytest.mark.slow
def test_smollm2_puts_its_massive_activation_on_the_first_token(of_smollm2: Report) -> None:
    largest = values(of_smollm2, "massive", "largest")
    units = values(of_smollm2, "massive", "largest_unit")
    assert units.count(507) >= 28
    assert set(values(of_smollm2, "massive", "largest_position")[11:28]) == {0}
    massive = [i for i, n in enumerate(values(of_smollm2, "massive", "num_massive")) if n]
    assert massive == list(range(11, 28))
    assert max(largest) > 20_000 and largest[10] < 1000
    findings = page(of_smollm2, "massive").findings
    assert "17 of 30 layers hold massive activations" in findings[2]
    assert "layers 11 to 27, units 247 and 507" in findings[2]
    assert "position 0, token" in findings[0] and "unit 507 at layer 1" in findings[0]


@pytest.mark.slow
def test_smollm2_rests_its_attention_there_too(of_smollm2: Report) -> None:
    first = values(of_smollm2, "sinks", "first")
    assert 0.3 < sum(first) / len(first) < 0.5
    assert max(first[:2]) < 0.05, "the first blocks have no sink yet"
    assert max(first[12:]) > 0.7
    assert page(of_smollm2, "sinks").figures[1].series.keys() == {f"head {h}" for h in range(9)}


@pytest.mark.slow
def test_smollm2_is_dense_grows_and_says_that_1024_tokens_are_few(of_smollm2: Report) -> None:
    assert page(of_smollm2, "sparsity").findings[0] in (
        "No activation is exactly zero.", "Fewer than 0.01% of activations are exactly zero.",
    )  # fmt: skip
    norms = values(of_smollm2, "size", "norm_mean")
    assert norms[-1] > 15 * norms[0]
    assert "grows from" in page(of_smollm2, "size").findings[0]
    findings = page(of_smollm2, "spectrum").findings
    assert any(f.startswith("30 layers had fewer than 4 rows") for f in findings)
    assert of_smollm2.about["data"] == (
        "the first 1,024 tokens of the bundled prose in 8 samples, the rest was not read"
    )


def test_minilm_has_no_massive_activation_and_looks_at_its_class_token(minilm: Model) -> None:
    report = ak.scan(minilm, num_tokens=1000)
    assert [p.key for p in report.pages] == KEYS
    assert page(report, "massive").findings[-1].startswith("No activation is massive")
    assert "token '[CLS]'" in page(report, "massive").findings[0]
    assert set(values(report, "massive", "num_rows")) == {1000 + 2 * 8}, "8 blocks, 2 tokens each"
    first = values(report, "sinks", "first")
    assert first[0] < 0.1 < min(first[1:])
    assert "shrinks from" in page(report, "size").findings[0]


def test_lite0_has_many_exact_zeros_behind_its_relu6(lite0: Model) -> None:
    report = ak.scan(lite0)
    assert [p.key for p in report.pages] == PLAIN
    assert len(page(report, "size").numbers) == 16
    zeros = values(report, "sparsity", "below_0")
    assert min(zeros) > 0.1 and max(zeros) > 0.6
    assert report.about["data"] == (
        "all 20 images of the bundled photos, scaled by (x - 127) / 128"
    )
    assert values(report, "size", "num_rows")[-1] == 20 * 7 * 7
    assert "token" not in page(report, "massive").note
