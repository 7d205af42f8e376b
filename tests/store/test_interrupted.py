"""One bad text and Ctrl-C: named, what was read is kept, and the same call goes on."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.store import Store
from actkit.store.harvest import uninterrupted
from tests.core import tiny
from tests.core.sweep.test_observe import Kept

SITE = "resid_post.1"
BAD = {6: " \n ", 11: "w1 " * 65, 12: ""}
TEXTS = [
    BAD.get(i, " ".join(f"w{1 + (3 * i + j) % 80}" for j in range(1 + i % 4))) for i in range(17)
]
REASONS = {
    6: r"a prompt must have a token, got ' \\n '",
    11: "must fit the context of 64 tokens, got 65",
    12: "a prompt must not be empty",
}
SETTINGS: dict[str, Any] = {"dtype": "float32", "batch_size": 3, "shard_bytes": 2000}


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


def wanted(m: Model, texts: list[str]) -> tuple[Tensor, list[int]]:
    """Return what each good text has alone, and which text each row is of."""
    good = [(i, t) for i, t in enumerate(texts) if i not in BAD]
    acts = [m.run(t, record=SITE)[SITE][0] for _, t in good]
    return torch.cat(acts), [i for (i, _), a in zip(good, acts, strict=True) for _ in a]


def check(store: Store, m: Model, texts: list[str] = TEXTS) -> None:
    acts, samples = wanted(m, texts)
    assert store["sample"][:].tolist() == samples
    torch.testing.assert_close(store[SITE][:], acts, rtol=1e-4, atol=1e-4)
    store.verify()


def test_the_first_bad_text_is_named_and_what_came_before_is_kept(
    m: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "actkit"),
        pytest.raises(
            InputError, match=f"sample 6: {REASONS[6]} at index 0; on_bad='skip' leaves such"
        ),
    ):
        m.harvest(TEXTS, SITE, tmp_path, **SETTINGS)
    kept = Store(tmp_path)
    check(kept, m, TEXTS[:6])
    said = caplog.messages[-1]
    assert (
        said == f"{tmp_path} keeps {len(kept)} rows of 2 batches; the same call goes on from there"
    )
    with pytest.raises(InputError, match="sample 6"):
        m.harvest(TEXTS, SITE, tmp_path, **SETTINGS)
    assert len(Store(tmp_path)) == len(kept)
    check(m.harvest(TEXTS, SITE, tmp_path, on_bad="skip", **SETTINGS), m)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_bad_texts_are_left_out_and_counted(
    m: Model, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how = {**SETTINGS, "batch_size": size, "on_bad": "skip"}
    with caplog.at_level(logging.WARNING, "actkit"):
        check(m.harvest(TEXTS, SITE, tmp_path, **how), m)
    assert caplog.messages[-1].startswith("samples left out: 3 (sample 6: a prompt must have a")
    fed = m.observe(TEXTS, {SITE: [Kept()]}, batch_size=size, on_bad="skip")
    acts, samples = wanted(m, TEXTS)
    found = fed[SITE][0].result()
    assert found["sample"].tolist() == samples
    torch.testing.assert_close(found["acts"], acts, rtol=1e-4, atol=1e-4)
    assert [s.sample for s in fed.skipped] == [6, 11, 12]
    assert all(REASONS[s.sample].split(",")[0] in s.reason for s in fed.skipped)


def test_observe_names_the_sample_too(m: Model) -> None:
    with pytest.raises(InputError, match="sample 12: a prompt must not be empty"):
        m.observe([*TEXTS[:6], *TEXTS[7:11], *TEXTS[7:9], ""], {SITE: [Kept()]}, batch_size=5)
    with pytest.raises(InputError, match="on_bad must be one of raise, skip, got 'ignore'"):
        m.observe(TEXTS, {SITE: [Kept()]}, on_bad="ignore")


def test_whole_batches_are_left_out_too(m: Model) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    data = [{"input_ids": ids}, {"input_ids": ids + 86}, {"input_ids": ids[:1]}]
    fed = m.observe(data, {SITE: [Kept()]}, on_bad="skip")
    assert fed.skipped[0].sample == 2 and "token ids must be 0 to 88" in fed.skipped[0].reason
    assert fed[SITE][0].result()["sample"].tolist() == [0] * 3 + [1] * 3 + [4] * 3


class Stopped:
    """Data that the user stops with Ctrl-C after some samples."""

    hash = "of the data"

    def __init__(self, texts: list[str], after: int) -> None:
        self.texts, self.after = texts, after

    def __iter__(self) -> Iterator[str]:
        yield from self.texts[: self.after]
        if self.after < len(self.texts):
            raise KeyboardInterrupt


GOOD = [t for i, t in enumerate(TEXTS) if i not in BAD]


@pytest.mark.parametrize("after", [3, 8, 13])
def test_ctrl_c_commits_and_the_harvest_goes_on(
    m: Model, after: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = m.harvest(Stopped(GOOD, 99), SITE, tmp_path / "whole", **SETTINGS)
    with caplog.at_level(logging.WARNING, "actkit"), pytest.raises(KeyboardInterrupt):
        m.harvest(Stopped(GOOD, after), SITE, tmp_path / "cut", **SETTINGS)
    kept, full = len(Store(tmp_path / "cut")), after // 3
    assert kept == sum(len(t.split()) for t in GOOD[: 3 * full]) > 0
    assert f"keeps {kept} rows of {full} batches" in caplog.messages[-1]
    store = m.harvest(Stopped(GOOD, 99), SITE, tmp_path / "cut", **SETTINGS)
    for column in ("sample", "position", "token", SITE):
        assert torch.equal(store[column][:], whole[column][:])
    store.verify()


SCRIPT = """
import sys, time
from tests.core import tiny

def texts():
    for i in range(10_000):
        if i == 40:
            print("ready", flush=True)
        time.sleep(0.002 if i > 40 else 0)
        yield f"w{1 + i % 80} w2 w3"

tiny.model().harvest(texts, "resid_post.1", sys.argv[1], dtype="float32", batch_size=4)
"""


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt, also where a shell in the background lets it be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_commits_the_open_shard(m: Model, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store")]
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": f"{root}/src:{root}"}
    with subprocess.Popen(
        command, cwd=root, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == "ready\n"
        time.sleep(0.3)
        run.send_signal(signal.SIGINT)
        said = run.stderr.read()
    assert "KeyboardInterrupt" in said and "the same call goes on from there" in said
    store = Store(tmp_path / "store")
    assert 36 * 3 <= len(store) < 30_000 and len(store) % 12 == 0
    want = m.run(["w1 w2 w3", "w2 w2 w3"], record=SITE)[SITE].flatten(0, 1)
    torch.testing.assert_close(store[SITE][:6], want, rtol=1e-4, atol=1e-4)
    store.verify()


def test_ctrl_c_waits_for_rows_that_are_being_written() -> None:
    reached = []

    def write() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        write()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
