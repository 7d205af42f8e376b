"""The command line: its words are frozen, its errors are one line, its JSON is nothing but JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import actkit as ak
from actkit.cli import app, main
from actkit.model import Model
from tests.core import tiny

COMMANDS = {
    "": ["--version"],
    "scan": [
        "source!",
        "--data",
        "--tokens",
        "--against",
        "--control",
        "--question -q*",
        "--engine",
        "--out",
        "--json",
    ],
    "open": ["source!", "pattern", "--refused", "--json"],
    "record": ["source!", "--site -s!*", "--to!", "--data", "--tokens", "--dtype", "--json"],
    "compare": [
        "family!",
        "source",
        "--task",
        "--method -m*",
        "--seeds",
        "--engine",
        "--out",
        "--json",
    ],
    "methods": ["--family", "--json"],
    "methods show": ["name!", "--json"],
    "papers": ["question!", "--num", "--json"],
    "steer": [],
    "steer chat": [
        "source!",
        "--task",
        "--positive",
        "--negative",
        "--load",
        "--method -m",
        "--layer",
        "--strength",
        "--prompt",
        "--tokens",
        "--save",
        "--json",
    ],
    "steer tune": [
        "source!",
        "--task",
        "--positive",
        "--negative",
        "--method -m",
        "--kl",
        "--perplexity",
        "--out",
        "--json",
    ],
    "steer show": ["path!", "--json"],
    "steer export": ["path!", "source!", "--to!", "--bake", "--all-tokens"],
    "trace": [
        "source!",
        "task",
        "--method -m",
        "--parts",
        "--num",
        "--clean",
        "--corrupt",
        "--answer",
        "--wrong",
        "--top",
        "--html",
        "--json",
    ],
}
"""Every command with its arguments and options, "!" if they are required, "*" if repeatable.

A new one may be added; a change breaks someone's script.
"""

Spoken = tuple[int, str, str]


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    found = {prefix.strip(): group}
    for name, command in getattr(group, "commands", {}).items():
        found |= commands(command, f"{prefix} {name}")
    return found


def test_the_command_line_is_frozen() -> None:
    found = {
        name: [f"{' '.join(p.opts)}{'!' * p.required}{'*' * _repeats(p)}" for p in command.params]
        for name, command in commands(typer.main.get_command(app)).items()
    }
    assert found == COMMANDS


def _repeats(parameter: Any) -> bool:
    return bool(getattr(parameter, "multiple", False))


@pytest.fixture
def actkit(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run a command line in this process; returns exit code, standard output and error."""

    def run(*arguments: str) -> Spoken:
        monkeypatch.setattr(sys, "argv", ["actkit", *arguments])
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        return (code, *capfd.readouterr())

    return run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name open a tiny network."""
    monkeypatch.setattr(ak, "open", lambda source: tiny.model(), raising=False)


def shell(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run the installed program as a shell does."""
    program = Path(sys.executable).with_name("actkit")
    return subprocess.run([program, *arguments], capture_output=True, text=True, **settings)


# -- answers -------------------------------------------------------------------------------------


def test_version_and_help(actkit: Any) -> None:
    assert actkit("--version") == (0, f"{ak.__version__}\n", "")
    for name in COMMANDS:
        code, out, err = actkit(*name.split(), "--help")
        assert (code, err) == (0, "") and "Usage: actkit" in out


def test_help_and_listings_do_not_load_torch() -> None:
    lines = [
        ["--help"], ["--version"], ["scan", "--help"], ["trace", "--help"], ["nosuch"], ["methods"],
        ["methods", "--json"], ["methods", "show", "moments"], ["methods", "show", "nosuch"],
    ]  # fmt: skip
    script = f"""
import sys
from actkit.cli import main
for line in {lines!r}:
    sys.argv = ["actkit", *line]
    try:
        main()
    except SystemExit:
        pass
heavy = {{"torch", "numpy", "transformers", "plotly"}} & set(sys.modules)
sys.exit(f"loaded: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.usefixtures("opened")
def test_scan_writes_a_report_and_prints_it(actkit: Any, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    code, printed, err = actkit("scan", "any", "--tokens", "70", "--out", str(out))
    assert (code, err) == (0, "")
    assert "How big are activations?" in printed and "the first 70 tokens" in printed
    assert printed.endswith(f"wrote {out / 'index.html'} and {out / 'report.json'}\n")
    assert json.loads((out / "report.json").read_text())["title"].startswith("tiny-llama")
    assert (out / "index.html").stat().st_size > 1e6


@pytest.mark.usefixtures("opened")
def test_scan_prints_only_its_json_file(actkit: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("w1 w2 w3\n\nw4 w5 w6 w7")
    code, out, err = actkit(
        "scan", "any", "--data", str(tmp_path / "mine.txt"), "--out", str(tmp_path), "--json"
    )
    assert (code, err) == (0, "")
    assert out == (tmp_path / "report.json").read_text() + "\n"
    assert json.loads(out)["about"]["data"] == f"all 7 tokens of {tmp_path}/mine.txt in 1 sample"


@pytest.mark.usefixtures("opened")
def test_open_lists_the_sites(actkit: Any) -> None:
    code, out, err = actkit("open", "any", "resid_*.2")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "Model('tiny-llama', LlamaForCausalLM, 0.1M parameters)",
        "points from the table of llama",
        "resid_pre.2   batch, token, 48  model.layers.2:in",
        "resid_mid.2   batch, token, 48  model.layers.2.post_attention_layernorm:in",
        "resid_post.2  batch, token, 48  model.layers.2:out",
    ]
    assert "has no experts" not in out
    assert "has no experts" in actkit("open", "any", "--refused")[1]


@pytest.mark.usefixtures("opened")
def test_open_as_json_is_what_the_library_says(actkit: Any) -> None:
    code, out, err = actkit("open", "any", "--refused", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert list(found) == ["model", "note", "sites"]
    sites = tiny.model().sites(refused=True)
    assert [s["name"] for s in found["sites"]] == [s.name for s in sites]
    assert {bool(s["refused"]) for s in found["sites"]} == {True, False}
    assert found["sites"][1] == {
        "name": "resid_pre.0", "shape": ["batch", "token", 48], "where": "model.layers.0:in",
        "refused": "",
    }  # fmt: skip


@pytest.mark.usefixtures("opened")
def test_record_writes_a_store_and_goes_on_where_it_stopped(actkit: Any, tmp_path: Path) -> None:
    to = str(tmp_path / "store")
    line = ("record", "any", "-s", "resid_post.1", "--site", "z.*", "--to", to, "--tokens", "150")
    wanted = {
        "path": to, "rows": 150, "sites": ["resid_post.1", "z.0", "z.1", "z.2"],
        "data": "the first 150 tokens of the bundled prose in 3 samples, the rest was not read",
    }  # fmt: skip
    for _ in range(2):
        code, out, err = actkit(*line, "--dtype", "float32", "--json")
        assert (code, err) == (0, "") and json.loads(out) == wanted
    store = ak.Store(to)
    blocks = list(ak.data.chunks(ak.data.text(), tiny.tokenizer(), 64))[:3]
    acts = tiny.model().run([blocks[0]], "resid_post.1")["resid_post.1"][0]
    assert (torch_of(store["resid_post.1"])[:64] - acts).abs().max() < 1e-4
    code, out, _ = actkit(*line[:-1], "150", "--dtype", "float32")
    assert out.startswith(f"150 rows of resid_post.1, z.0, z.1, z.2 in {to}\nthe first 150 tokens")


def torch_of(values: Any) -> Any:
    """Return a stored site as a tensor."""
    import torch

    return torch.as_tensor(values[:])


def test_methods_are_listed_and_shown(actkit: Any) -> None:
    code, out, err = actkit("methods", "--family", "read")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    names = [name for _, name, *_ in rows]
    assert {r[0] for r in rows} == {"read"} and names == sorted(names)
    assert {"massive", "moments"} <= {*names}
    found = json.loads(actkit("methods", "--json")[1])
    assert [e["name"] for e in found] == [e.name for e in ak.methods()]
    card = next(e for e in found if e["name"] == "sinks")
    for line in (["show", "sinks", "--json"], ["--json", "show", "sinks"]):
        assert json.loads(actkit("methods", *line)[1]) == card
    shown = actkit("methods", "show", "sinks")[1].splitlines()
    assert shown[0].split() == ["name", "sinks"] and shown[4].startswith("call     Sinks(")
    assert list(card) == ["name", "family", "summary", "source", "call"]


def test_a_question_leads_to_papers(actkit: Any) -> None:
    code, out, err = actkit("papers", "how do I stop a model from refusing", "--num", "3", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert len(found["hits"]) == 3 and found["question"].startswith("how do I")
    text = actkit("papers", "how do I stop a model from refusing", "--num", "3")[1]
    assert all(hit["paper"]["title"] in text for hit in found["hits"])


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("open any nosuch.3", "unknown site 'nosuch.3'"),
        ("open any mlp_gat.1", "nearest: mlp_gate.1"),
        ("scan any --data /nosuch.txt --out {}", "no file or folder '/nosuch.txt'"),
        ("scan any --out {}/file", "--out needs a folder, got"),
        ("scan any --out {}/file/deeper", "Not a directory"),
        ("record any --site resid_post.9 --to {}/s", "resid_post.9"),
        ("record any --site resid_post.1 --to {}/s --dtype float7", "float7"),
        ("methods show momentz", "nearest: moments"),
        ("methods --family nosuch", "no family 'nosuch'; families: read, find"),
        ("papers ???", "a question must hold a word"),
    ],
)
@pytest.mark.usefixtures("opened")
def test_an_error_is_one_line_and_exit_code_2(
    actkit: Any, tmp_path: Path, line: str, said: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    code, out, err = actkit(*line.format(tmp_path).split())
    assert (code, out) == (2, "")
    assert err.startswith("actkit: ") and err.count("\n") == 1 and err.endswith("\n")
    assert said in err


@pytest.mark.parametrize(
    "line",
    ["nosuch", "scan", "scan x --nosuch", "scan x --tokens many", "scan x --tokens 0",
     "record x --to y", "papers", "papers x --num 0", "methods show"],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2_too(actkit: Any, line: str) -> None:
    code, out, err = actkit(*line.split())
    assert (code, out) == (2, "") and "Usage: actkit" in err and "Traceback" not in err


def test_an_error_of_several_lines_is_told_in_one(
    actkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: str) -> Model:
        raise ak.errors.ModelError("a rule\n  and its value")

    monkeypatch.setattr(ak, "open", broken, raising=False)
    assert actkit("open", "x") == (2, "", "actkit: a rule and its value\n")


def test_an_error_that_is_not_ours_is_not_hidden(
    actkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: str) -> Model:
        raise ZeroDivisionError("a mistake in the program")

    monkeypatch.setattr(ak, "open", broken, raising=False)
    with pytest.raises(ZeroDivisionError):
        actkit("open", "x")


def test_the_runner_of_typer_sees_the_same(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["methods", "show", "momentz"])
    assert isinstance(result.exception, ak.errors.MethodError)
    assert CliRunner().invoke(app, ["methods", "--json"]).exit_code == 0


# -- as a program --------------------------------------------------------------------------------


def test_the_program_prints_nothing_but_json_while_it_opens_a_real_network() -> None:
    done = shell("open", "minilm", "resid_post.*", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [s["name"] for s in json.loads(done.stdout)["sites"]] == [
        f"resid_post.{i}" for i in range(6)
    ]


def test_the_program_says_an_error_in_one_line() -> None:
    done = shell("open", "./nosuch.gguf")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("actkit: no such folder or file")
    assert done.stderr.count("\n") == 1


def test_output_that_cannot_show_a_letter_does_not_stop_it(tmp_path: Path) -> None:
    script = """
import sys
import actkit as ak
from actkit.cli import main
from actkit.scanning.report import Report
ak.open = str
ak.scan = lambda *_, **__: Report("a caf\\u00e9", {}, ())
sys.argv = ["actkit", "scan", "any", "--out", sys.argv[1]]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "a caf?" in done.stdout
