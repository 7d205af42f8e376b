"""`actkit steer`: fitting, talking, saving, showing and exporting, on a tiny network."""

import builtins
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import actkit as ak
from actkit.cli import main
from actkit.core.edits.files import edit_facts
from actkit.export.llama_cpp import load_vectors
from actkit.model import Model
from tests.core import tiny

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def actkit(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process, with lines typed; every name opens a tiny network."""
    monkeypatch.setattr(ak, "open", lambda source: tiny.model(), raising=False)

    def run(*arguments: str, typed: tuple[str, ...] = ()) -> tuple[int, str, str]:
        lines: Iterator[str] = iter(typed)

        def ask(_: str = "") -> str:
            line = next(lines, None)
            if line is None:
                raise EOFError
            return line

        monkeypatch.setattr(builtins, "input", ask)
        monkeypatch.setattr(sys, "argv", ["actkit", "steer", *arguments])
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        return (code, *capfd.readouterr())

    return run


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two files of texts and the options that name them."""
    (tmp_path / "plus.txt").write_text("w1 w7 w3\nw2 w7\n\nw5 w9 w7\n")
    (tmp_path / "minus.txt").write_text("w1 w8 w3\nw2 w8\nw5 w9 w8\n")
    return ["--positive", str(tmp_path / "plus.txt"), "--negative", str(tmp_path / "minus.txt")]


def caa(strength: Any) -> list[ak.Edit]:
    plus, minus = ["w1 w7 w3", "w2 w7", "w5 w9 w7"], ["w1 w8 w3", "w2 w8", "w5 w9 w8"]
    fitted = ak.get("caa")(layers=1).fit(tiny.model(), {"positive": plus, "negative": minus})
    edits: list[ak.Edit] = fitted.edits(strength)
    return edits


def written(prompt: str, strength: float) -> str:
    model: Model = tiny.model()
    return model.generate(prompt, edits=caa(strength), max_new_tokens=5)[0].strip()


FIT = ("--layer", "1", "--strength", "3", "--tokens", "5")


def test_a_prompt_is_answered_plain_and_steered(actkit: Run, files: list[str]) -> None:
    code, out, _ = actkit("any", *files, *FIT, "--prompt", "w3 w4", "--json")
    assert code == 0
    assert json.loads(out) == {
        "prompt": "w3 w4",
        "plain": written("w3 w4", 0.0),
        "steered": written("w3 w4", 3.0),
        "method": "caa at layer 1",
        "strength": 3.0,
    }
    assert written("w3 w4", 0.0) != written("w3 w4", 3.0)


def test_talking_with_another_strength(actkit: Run, files: list[str]) -> None:
    typed = ("/strength 5", "w3 w4", "/clear", "/off", "w3 w4", "/clear", "/on", "w3 w4", "/quit")
    code, out, _ = actkit("any", *files, *FIT, typed=typed)
    lines = [line.strip() for line in out.splitlines()]
    assert code == 0
    assert "caa at layer 1, strength 5" in lines
    assert "caa at layer 1, off (strength was 5)" in lines
    answers = [line for line in lines if line in (written("w3 w4", 5.0), written("w3 w4", 0.0))]
    assert answers == [written("w3 w4", 5.0), written("w3 w4", 0.0), written("w3 w4", 5.0)]


def test_comparing_shows_both_side_by_side(actkit: Run, files: list[str]) -> None:
    code, out, _ = actkit("any", *files, *FIT, typed=("/compare", "w3 w4"))
    assert code == 0
    row = next(line for line in out.splitlines() if "plain" in line and "steered, 3" in line)
    assert row.index("plain") < row.index("steered")
    for word in (written("w3 w4", 0.0).split()[0], written("w3 w4", 3.0).split()[0]):
        assert word in out


def test_the_conversation_is_kept(actkit: Run, files: list[str]) -> None:
    code, out, _ = actkit("any", *files, *FIT, typed=("/off", "w3 w4", "w6"))
    first = written("w3 w4", 0.0)
    assert code == 0
    assert written(f"w3 w4\n{first}\nw6", 0.0) in out


def test_mistakes_are_said_and_nothing_is_lost(actkit: Run, files: list[str]) -> None:
    typed = ("/strength much", "/nosuch", "/layer 77", "/save", "/strength 1e39", "w3", "/show")
    code, out, _ = actkit("any", *files, *FIT, typed=(*typed, "/strength 3", "/clear", "w3 w4"))
    assert code == 0
    flat = " ".join(out.split())
    for said in ("got 'much'", "got /nosuch", "layers must be among", "a file after", "not finite"):
        assert said in flat
    assert written("w3 w4", 3.0) in out


def test_what_is_saved_says_what_it_does(actkit: Run, files: list[str], tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    code, out, _ = actkit(
        "any", *files, *FIT, "--save", str(path), "--prompt", "w3", "--tokens", "2"
    )
    assert code == 0 and f"wrote {path} at strength 3, side effects measured" in out
    settings = edit_facts(path)["settings"]
    assert set(settings["side_effects"]) >= {"concept", "kl", "perplexity", "text_loss"}
    code, out, _ = actkit("show", str(path))
    assert code == 0
    for said in (
        "fitted on    tiny-llama",
        "method       caa",
        "add at resid_post.1",
        "side effects",
    ):
        assert said in out
    assert json.loads(actkit("show", str(path), "--json")[1])["settings"] == settings


def test_loaded_edits_can_be_turned_up(actkit: Run, files: list[str], tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    actkit("any", *files, *FIT, "--save", str(path), "--prompt", "w3")
    line = ("any", "--load", str(path), "--prompt", "w3 w4", "--tokens", "5", "--json")
    assert json.loads(actkit(*line)[1])["steered"] == written("w3 w4", 3.0)
    found = json.loads(actkit(*line, "--strength", "6")[1])
    assert (found["steered"], found["strength"]) == (written("w3 w4", 6.0), 6.0)


def test_tuning_writes_its_plot_and_edits(
    actkit: Run, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [ak.data.Opening(f"w{i} w4", ()) for i in (3, 20, 40)]  # words that the toy knows
    monkeypatch.setattr(ak.data, "openings", lambda topic: known)
    out = tmp_path / "tuned"
    bounds = ("--kl", "50", "--perplexity", "1e9")
    code, printed, err = actkit("tune", "any", *files, *bounds, "--out", str(out), "--json")
    assert (code, err) == (0, "")
    found = json.loads(printed)
    assert found["chosen"]["layer"] in range(tiny.LAYERS)
    assert (out / "tuning.html").exists()
    assert ak.load_edits(out / "edits.safetensors", tiny.model())


def test_export(actkit: Run, files: list[str], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    path = tmp_path / "e.safetensors"
    actkit("any", *files, *FIT, "--save", str(path), "--prompt", "w3")
    code, _, err = actkit("export", str(path), "any", "--to", str(tmp_path / "v.gguf"))
    assert code == 2 and "all_tokens" in err
    code, _, err = actkit(
        "export", str(path), "any", "--to", str(tmp_path / "v.gguf"), "--all-tokens"
    )
    assert (code, err) == (0, "")
    vector = load_vectors(tmp_path / "v.gguf")[0].operation.tensors()["vector"]
    own = caa(1.0)[0].operation.tensors()["vector"]
    torch.testing.assert_close(vector, 3 * own)
    adapter, baked = tmp_path / "adapter", tmp_path / "baked"
    assert actkit("export", str(path), "any", "--to", str(adapter), "--all-tokens")[0] == 0
    assert (adapter / "adapter_config.json").exists()
    assert actkit("export", str(path), "any", "--to", str(baked), "--bake", "--all-tokens")[0] == 0
    assert json.loads((baked / "config.json").read_text())["mlp_bias"] is True


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("any", "needs --task, or both"),
        ("any --task joy", "task must be one of sentiment, refusal"),
        ("any --task sentiment --positive x --negative y", "not both"),
        ("any --positive /nosuch --negative /nosuch", "No such file"),
        ("any --task sentiment --method nosuch --strength 1", "no method 'nosuch'"),
        ("any --load /nosuch.safetensors", "must exist"),
        ("show /nosuch.safetensors", "must exist"),
    ],
)
def test_errors_are_one_line(actkit: Run, line: str, said: str) -> None:
    code, _, err = actkit(*line.split())
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
