"""A harvest holds what a run records, goes on where it stopped, and is shared by processes."""

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import BusyError, InputError, StoreError
from actkit.core.run.recording import Rows
from actkit.model import Model
from actkit.store import Store, StoreWriter
from actkit.store import harvest as harvesting
from actkit.store.harvest import Job, write_stream
from tests.store import torchrun_script as script

SITES = ["0:out", "2:out"]
SETTINGS: dict[str, Any] = {"dtype": "float32", "shard_bytes": 600, "batch_size": 2}


class Stopping:
    """Data that end in an error after some batches."""

    def __init__(self, data: list[Any], after: int) -> None:
        self.data, self.after = data, after
        self.hash = "of the data"

    def __iter__(self) -> Iterator[Any]:
        yield from self.data[: self.after]
        if self.after < len(self.data):
            raise OSError("the source went away")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_it_holds_what_a_run_records(tmp_path: Path) -> None:
    model, data = script.model(), script.data()
    store = model.harvest(data, "*:out", tmp_path, **SETTINGS)
    x, net = torch.cat(data), script.network()
    for site, want in {"0:out": net[0](x), "2:out": net(x)}.items():
        assert torch.equal(store[site][:], want.detach())
    assert torch.equal(store["sample"][:], torch.arange(len(x)))
    store.verify()
    assert store.header["weights"] and store.header["settings"]["data"]
    assert store.header["model"] == "Sequential"


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.table(input_ids)
        return found


def test_tokens_keep_their_places(tmp_path: Path) -> None:
    net = Embedding()
    model = Model(net)
    ids, mask = torch.tensor([[0, 7, 8], [4, 5, 6]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    data = [{"input_ids": ids, "attention_mask": mask}, {"input_ids": ids[1:] + 10}]
    store = model.harvest(data, "table:out", tmp_path, **SETTINGS)
    assert store["token"][:].tolist() == [7, 8, 4, 5, 6, 14, 15, 16]
    assert store["sample"][:].tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert store["position"][:].tolist() == [0, 1, 0, 1, 2, 0, 1, 2]
    assert torch.equal(store["table:out"][:], net.table.weight[store["token"][:]].detach())


def test_samples_are_numbered_across_a_resumption(tmp_path: Path) -> None:
    model = Model(Embedding())
    data: list[Any] = [[i % 50] * (1 + i % 4) for i in range(23)]
    with pytest.raises(OSError, match="went away"):
        model.harvest(Stopping(data, 17), "table:out", tmp_path, **{**SETTINGS, "batch_size": 3})
    assert 0 < len(Store(tmp_path)) < sum(map(len, data[:17]))
    store = model.harvest(
        Stopping(data, 99), "table:out", tmp_path, **{**SETTINGS, "batch_size": 3}
    )
    sample = store["sample"][:].tolist()
    assert sample == [i for i, tokens in enumerate(data) for _ in tokens]
    assert store["token"][:].tolist() == [t for tokens in data for t in tokens]


@pytest.mark.parametrize("after", [2, 4, 7, 12])
def test_a_resumed_harvest_equals_an_uninterrupted_one(after: int, tmp_path: Path) -> None:
    model, data = script.model(), script.data()
    model.harvest(Stopping(data, 99), SITES, tmp_path / "whole", **SETTINGS)
    with pytest.raises(OSError, match="went away"):
        model.harvest(Stopping(data, after), SITES, tmp_path / "store", **SETTINGS)
    rows = len(Store(tmp_path / "store"))
    assert rows <= sum(map(len, data[:after]))
    assert rows > 0 or after < 5
    model.harvest(Stopping(data, 99), SITES, tmp_path / "store", **SETTINGS)
    assert files(tmp_path / "store") == files(tmp_path / "whole")
    model.harvest(Stopping(data, 99), SITES, tmp_path / "store", **SETTINGS)  # nothing is left
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_only_what_is_missing_is_run(tmp_path: Path) -> None:
    model, data, calls = script.model(), script.data(), 0
    with pytest.raises(OSError, match="went away"):
        model.harvest(Stopping(data, 10), SITES, tmp_path, **SETTINGS)

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = model.module.register_forward_hook(count)
    model.module.register_forward_pre_hook(count)
    model.harvest(Stopping(data, 99), SITES, tmp_path, **SETTINGS)
    handle.remove()
    assert 0 < calls < len(data)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"record": ["2:out", "0:out"]}, r"sites was \['0:out', '2:out'\] in .*, got \['2:out'"),
        ({"data": script.data()[:-1]}, r"header\.settings\.data was '\w+' in .*, got '\w+'"),
        ({"batch_size": 3}, "batch_size was 2 in .*, got 3"),
        ({"edits": [ak.scale("0:out", 2.0)]}, r"edits was None in .*, got '\w+'"),
        ({"weights": "other"}, r"weights was '\w+' in .*, got '\w+'"),
    ],
)
def test_another_harvest_is_no_resumption(
    changed: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    model, data = script.model(), script.data()
    model.harvest(data, SITES, tmp_path, **SETTINGS)
    before = files(tmp_path)
    given: dict[str, Any] = {"data": data, "record": SITES, "to": tmp_path, **SETTINGS}
    given |= changed
    if given.pop("weights", None):
        next(model.module.parameters()).data += 1
    with pytest.raises(StoreError, match=rule):
        model.harvest(**given)
    assert files(tmp_path) == before


def test_data_that_are_read_once_are_recognised(tmp_path: Path) -> None:
    model, data = script.model(), script.data()
    model.harvest(iter(data[:9]), SITES, tmp_path / "store", **SETTINGS)
    other = [data[0] + 1, *data[1:]]
    with pytest.raises(StoreError, match="the first 9 batches had SHA-256"):
        model.harvest(iter(other), SITES, tmp_path / "store", **SETTINGS)
    with pytest.raises(StoreError, match="what was harvested, 9 batches, got 4"):
        model.harvest(iter(data[:4]), SITES, tmp_path / "store", **SETTINGS)
    longer = model.harvest(iter(data), SITES, tmp_path / "store", **SETTINGS)
    assert torch.equal(longer["2:out"][:], model.module(torch.cat(data)).detach())


def test_edits_act(tmp_path: Path) -> None:
    model, data = script.model(), script.data()
    store = model.harvest(data, "0:out", tmp_path, edits=[ak.scale("0:out", 2.0)], **SETTINGS)
    assert torch.equal(store["0:out"][:], 2 * script.network()[0](torch.cat(data)).detach())


def test_what_cannot_be_harvested_is_refused(tmp_path: Path) -> None:
    model, data = script.model(), script.data()
    with pytest.raises(StoreError, match="one of local, torchrun, ray, got 'slurm'"):
        model.harvest(data, SITES, tmp_path / "a", engine="slurm")
    with pytest.raises(StoreError, match="at least one site, got none"):
        model.harvest(data, [], tmp_path / "a")
    with pytest.raises(InputError, match="at least one sample, got none"):
        model.harvest([], SITES, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    conv = Model(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 2)))
    with pytest.raises(StoreError, match="share their rows, 0:out has 9 and 1:out has 4"):
        conv.harvest([torch.ones(1, 1, 4, 4)], ["0:out", "1:out"], tmp_path / "b")


class Twice(nn.Module):
    """A network with a layer that runs twice, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Embedding(9, 2), nn.Linear(2, 2)
        self.last, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self.last(self.right(self.right(self.left(input_ids))))
        return found


def test_one_call_of_a_layer_and_none(tmp_path: Path) -> None:
    model, data = Model(Twice()), [{"input_ids": torch.tensor([[1, 2, 3]])}]
    with pytest.raises(StoreError, match="must run, idle:out did not"):
        model.harvest(data, ["left:out", "idle:out"], tmp_path)
    sites = ["left:out", "right:out#1", "last:out"]
    store = model.harvest(data, sites, tmp_path, dtype="float32")
    last = model.module.last
    assert isinstance(last, nn.Linear)
    assert torch.equal(last(store["right:out#1"][:]), store["last:out"][:])


def test_a_stream_without_a_model(tmp_path: Path) -> None:
    def produce(cursor: int | None) -> Iterator[tuple[dict[str, Tensor], Rows, int]]:
        for index in range(cursor or 0, 30):
            rows = Rows.of(torch.ones(1, 3, dtype=torch.bool)).flat().shifted(index)
            yield {"a": torch.full((3, 2), float(index))}, rows, index + 1

    store = write_stream(tmp_path, produce, ["a"], "float32", {}, 200)
    assert store["a"][:][:, 0].tolist() == [i for i in range(30) for _ in range(3)]
    assert len(write_stream(tmp_path, produce, ["a"], "float32", {}, 200)) == 90
    with pytest.raises(StoreError, match="a store needs rows, got none"):
        write_stream(tmp_path / "no", lambda _: [], ["a"])


def launch(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", str(Path(__file__).with_name("torchrun_script.py"))]
    return subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)


def test_torchrun_writes_the_rows_of_a_local_harvest(tmp_path: Path) -> None:
    done = launch(tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    whole = script.model().harvest(script.data(), SITES, tmp_path / "whole", **SETTINGS)
    parts = Store(tmp_path / "parts")
    names = ["part-00000-of-00002", "part-00001-of-00002"]
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == names
    assert len(parts) == len(whole) and parts.header == whole.header
    by_sample = parts["sample"][:].argsort()
    for name in (*SITES, "sample", "position", "token"):
        assert torch.equal(parts[name][by_sample], whole[name][:])
    sizes = [len(Store(tmp_path / "parts" / name)) for name in names]
    assert min(sizes) > 15 and sum(sizes) == len(whole)
    seen = torch.cat([b["sample"] for b in parts.batches("sample", 7)])
    assert torch.equal(seen.sort().values, whole["sample"][:])
    parts.verify()


def part(
    folder: Path, rank: int, world: int, monkeypatch: pytest.MonkeyPatch, data: Any = None
) -> Store:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    data = script.data() if data is None else data
    return script.model().harvest(data, SITES, folder, engine="torchrun", **SETTINGS)


def test_a_part_that_stopped_early_is_not_read_as_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part(tmp_path, 0, 2, monkeypatch, Stopping(script.data(), 99))
    with pytest.raises(OSError, match="went away"):
        part(tmp_path, 1, 2, monkeypatch, Stopping(script.data(), 8))
    with pytest.raises(StoreError, match="all 2 parts must be finished, part-00001-of-00002 is no"):
        Store(tmp_path)
    some = Store(tmp_path, unfinished=True)
    assert len(pickle.loads(pickle.dumps(some))) == len(some)
    assert 0 < len(Store(tmp_path / "part-00001-of-00002")) < len(some)
    part(tmp_path, 1, 2, monkeypatch, Stopping(script.data(), 99))
    assert len(some) < len(Store(tmp_path)) == sum(map(len, script.data()))


def test_a_finished_part_that_goes_on_is_unfinished_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part(tmp_path, 0, 1, monkeypatch, iter(script.data()[:5]))
    assert len(Store(tmp_path)) == sum(map(len, script.data()[:5]))
    with pytest.raises(OSError, match="went away"):
        part(tmp_path, 0, 1, monkeypatch, iter(Stopping(script.data(), 12)))
    with pytest.raises(StoreError, match="must be finished, part-00000-of-00001 is not"):
        Store(tmp_path)


def test_a_folder_that_machines_do_not_share_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvesting, "run_shares", lambda *_: [[], []])
    with pytest.raises(StoreError, match=r"must share the store's folder, .*part-00000-of"):
        script.model().harvest(script.data(), SITES, tmp_path, engine="ray", **SETTINGS)


def test_a_worker_waits_for_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvesting, "PATIENCE", 1.0)
    folder, names = tmp_path / "part-00000-of-00001", {"0:out": (5,), "2:out": (2,)}
    job = Job(model=script.model(), data=script.data(), record=SITES, to=tmp_path, **SETTINGS)
    own = {**job.header(), "part": folder.name}
    before = StoreWriter(folder, names, "float32", own, 600)
    with pytest.raises(BusyError, match="one writer at a time"):
        harvesting._shards(job, job.header(), 0, 1)
    threading.Timer(0.4, before.discard).start()
    entries = harvesting._shards(job, job.header(), 0, 1)
    assert sum(entry.rows for entry in entries) == len(Store(tmp_path))


def test_parts_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(StoreError, match="RANK is not set; run: torchrun"):
        script.model().harvest(script.data(), SITES, tmp_path, engine="torchrun")
    part(tmp_path, 1, 2, monkeypatch)
    with pytest.raises(StoreError, match="all 2 parts must be there, part-00000-of-00002 is miss"):
        Store(tmp_path)
    with pytest.raises(StoreError, match="a store of 3 parts must be alone, got 2 parts"):
        part(tmp_path, 0, 3, monkeypatch)
    with pytest.raises(StoreError, match="a store without parts must be alone, got 2 parts"):
        script.model().harvest(script.data(), SITES, tmp_path, **SETTINGS)
    with pytest.raises(InputError, match="a batch for each of 2 parts, got 1"):
        part(tmp_path / "few", 1, 2, monkeypatch, script.data()[:1])
    part(tmp_path, 0, 2, monkeypatch)
    assert len(Store(tmp_path)) == sum(map(len, script.data()))
    other = tmp_path / "part-00001-of-00002" / "manifest.jsonl"
    other.write_bytes(other.read_bytes().splitlines(keepends=True)[0].replace(b"[5]", b"[6]"))
    with pytest.raises(StoreError, match=r"part-00001-of-00002.manifest\.jsonl: a part of another"):
        Store(tmp_path)
