"""Every option does something, and is looked at before a network is opened for it."""

import ast
import inspect
import json
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import actkit as ak
from actkit.cli import app, main
from actkit.core.errors import InputError
from actkit.model import Model
from tests.core import tiny

Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def actkit(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Run a command line in this process, in an empty folder; no network may be opened."""

    def opened(source: str) -> None:
        raise AssertionError(f"{source} was opened")

    monkeypatch.setattr(ak, "open", opened, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["actkit", *shlex.split(line)])
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        return (code, *capfd.readouterr())

    return run


def commands(group: typer.Typer) -> Iterator[Callable[..., Any]]:
    yield from (c.callback for c in group.registered_commands if c.callback is not None)
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance)


@pytest.mark.parametrize("command", [*commands(app)], ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_every_option_is_used(command: Callable[..., Any]) -> None:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(command))).body
    assert isinstance(tree, ast.FunctionDef)
    used = {node.id for part in tree.body for node in ast.walk(part) if isinstance(node, ast.Name)}
    assert {arg.arg for arg in tree.args.args} <= used


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scan any --engine no-such-engine", "engine must be one of local, ray, got 'no-such"),
        ("scan any -q nosuch", "questions are size, sparsity"),
        ("scan any --data /nosuch.txt", "nosuch.txt"),
        ("scan any --out /dev/null/x", "--out needs a folder"),
        ("record any -s resid_post.0 --to new --dtype float7", "dtype must be one of float32"),
        ("record any -s resid_post.0 --to new --data /nosuch.txt", "nosuch.txt"),
        ("record any -s resid_post.0 --to /dev/null/x/y", "--to needs a folder"),
        ("compare steer", "methods of steer are compared on a network, got none"),
        ("compare trace --task ioi", "methods of trace are compared on a network, got none"),
        ("compare read any", "methods of read are compared on planted data"),
        ("compare nosuch any", "no family 'nosuch'"),
        ("compare brain any", "family brain has no protocol yet"),
        ("compare steer any --task joy", "task must be one of sentiment"),
        ("compare steer any -m nosuch", "methods for this task are"),
        ("compare trace any --engine no-such-engine", "engine must be one of local, ray"),
        ("compare steer any --out /dev/null/x", "--out needs a folder"),
        ("methods --family read show caa", "--family chooses what is listed"),
        ("trace any ioi --parts nosuch", "parts must be one of resid"),
        ("trace any --clean a --corrupt b --answer c --num 3", "--num is of a bundled task"),
        ("trace any ioi --html /nosuch/page.html", "a folder that exists"),
        ("steer any", "needs --task, or both"),
        ("steer any --task joy", "task must be one of sentiment"),
        ("steer any --task sentiment -m nosuch", "no method 'nosuch'"),
        ("steer any --task sentiment -m patch", "'patch' is of trace"),
        ("steer any --task sentiment -m srmu", "srmu is not fitted on texts"),
        ("steer any --task sentiment -m lineas --layer 3", "lineas chooses its layers itself"),
        ("steer any --load e.safetensors --task sentiment", "got --task beside it"),
        ("steer any --load e.safetensors --layer 3", "got --layer beside it"),
        ("steer any --load e.safetensors -m caa", "got --method beside it"),
        ("steer any --load /nosuch.safetensors", "must exist"),
        ("steer any --task sentiment --save /dev/null/x/e.safetensors", "--save needs a folder"),
        ("steer tune any --task joy", "task must be one of sentiment"),
        ("steer tune any --task sentiment -m nosuch", "no method 'nosuch'"),
        ("steer tune any --task sentiment --out /dev/null/x", "--out needs a folder"),
        ("steer export e.safetensors any --to v.gguf --bake", "--bake writes a folder"),
        ("steer export /nosuch.safetensors any --to v.gguf", "must exist"),
    ],
)
def test_an_argument_is_refused_before_the_network_is_opened(
    actkit: Run, line: str, said: str
) -> None:
    code, out, err = actkit(line)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


def test_the_engine_reaches_the_scan(actkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(ak, "open", lambda source: tiny.model(), raising=False)
    plain = ak.scan

    def scan(*args: Any, **settings: Any) -> Any:
        asked.update(settings)
        return plain(*args, **settings)

    monkeypatch.setattr(ak, "scan", scan, raising=False)
    Path("texts.txt").write_text("w1 w2 w3 w4\nw5 w6 w7 w8\n")
    code, _, err = actkit("scan any --data texts.txt -q size --no-control --engine local")
    assert (code, err) == (0, "") and asked["engine"] == "local"


def test_a_comparison_in_which_nothing_could_be_measured_fails(
    actkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ak, "open", lambda source: Model(tiny.Cnn()), raising=False)
    code, out, err = actkit("compare trace any --task ioi -m random --seeds 1 --json")
    assert code == 2 and "no method could be measured: " in err
    assert json.loads(out)["runs"][0]["error"]


def test_the_library_refuses_as_the_command_line_does() -> None:
    with pytest.raises(InputError, match="compared on a network, got none"):
        ak.compare("steer")
    with pytest.raises(InputError, match="compared on planted data"):
        ak.compare("read", tiny.model())
