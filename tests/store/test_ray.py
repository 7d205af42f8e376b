"""On a Ray cluster of two machines: results of the local engine, also when workers die.

The machines are processes of their own on this one, with one CPU each.
"""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import psutil
import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.engines.engine import as_done, run_jobs
from actkit.core.engines.settings import Ray
from actkit.core.errors import EditError, EngineError, InputError, ModelError, StoreError
from actkit.core.run.recording import Rows
from actkit.model import Model
from actkit.read._base import JointReading
from actkit.read.streaming.massive import Massive
from actkit.read.streaming.moments import Moments
from actkit.read.streaming.sparsity import Sparsity
from actkit.read.streaming.spectrum import Spectrum
from actkit.store import Store
from tests.core import tiny
from tests.store import torchrun_script as script

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
from ray.cluster_utils import Cluster  # noqa: E402

from actkit.core.engines import on_ray  # noqa: E402

ROOT = Path(__file__).parents[2]
MACHINE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80_000_000}
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_failure_threshold": 5,
}
"""A machine is missed after a second."""
SITES = ["0:out", "2:out"]
SETTINGS: dict[str, Any] = {"dtype": "float32", "shard_bytes": 200, "batch_size": 2}
TWO = Ray(2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines, and this process connected to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT / "src"), str(ROOT))))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = Cluster(initialize_head=True, head_node_args=MACHINE | {"_system_config": QUICK})
        cluster.add_node(**MACHINE)
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def mlp() -> Model:
    model = script.model()
    model.opener = script.model
    return model


def trained() -> Model:
    """Return a network whose weights are not those of an untrained one."""
    net = tiny.llama()
    net.lm_head.weight.data *= 1.5
    return Model(net, tiny.tokenizer())


def llama() -> Model:
    model = trained()
    model.opener = trained
    return model


def machine() -> str:
    """Return where this runs."""
    found: str = ray.get_runtime_context().get_node_id()
    return found


class Source:
    """Data that do something before batch 8, the first time that they get there.

    Args:
        act: What to do.
        once: A file that says that it was done.
        at: The machine that does it, any if None.
    """

    def __init__(self, act: Callable[[], object], once: Path, at: str | None = None) -> None:
        self._act, self._once, self._at = act, once, at
        self.hash = "of the data"

    def __iter__(self) -> Iterator[Any]:
        for index, batch in enumerate(script.data()):
            if index == 8 and self._at in (None, machine()) and not self._once.exists():
                self._once.touch()
                self._act()
            yield batch


def die() -> None:
    os._exit(1)


def hang() -> None:
    time.sleep(600)


class Calm:
    """The same data, without the accident."""

    hash = "of the data"

    def __iter__(self) -> Iterator[Any]:
        return iter(script.data())


def check_rows(parts: Store, whole: Store) -> None:
    """Hold that the rows of all parts are those of one store."""
    assert len(parts) == len(whole) and parts.header == whole.header
    by_sample = parts["sample"][:].argsort(stable=True)
    for name in (*SITES, "sample", "position", "token"):
        assert torch.equal(parts[name][by_sample], whole[name][:])
    parts.verify()


def waiting(folder: Path, index: int) -> tuple[int, str]:
    """Let job 0 be the last one to finish."""
    (folder / str(index)).touch()
    while index == 0 and not (folder / "4").exists():
        time.sleep(0.02)
    return 10 * index, machine()


def test_jobs_run_on_both_machines(cluster: Any, tmp_path: Path) -> None:
    done = list(as_done(partial(waiting, tmp_path), range(5), "ray"))
    values = [(index, value) for index, (value, _) in done]
    assert values[0] == (1, 10) and sorted(values) == [(i, 10 * i) for i in range(5)]
    assert len({where for _, (_, where) in done}) == 2
    assert run_jobs(int, ["3", "1"]) == [3, 1]


def test_harvest_writes_the_rows_of_the_local_engine(cluster: Any, tmp_path: Path) -> None:
    whole = mlp().harvest(script.data(), SITES, tmp_path / "whole", **SETTINGS)
    done = {"engine": TWO, **SETTINGS}
    parts = mlp().harvest(script.data(), SITES, tmp_path / "parts", **done)
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [
        "part-00000-of-00002",
        "part-00001-of-00002",
    ]
    check_rows(parts, whole)
    again = {**done, "batch_size": 3}
    with pytest.raises(StoreError, match=r"batch_size was 2 in .*, got 3"):
        mlp().harvest(script.data(), SITES, tmp_path / "parts", **again)


def shards(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Return content and time of the committed shards."""
    lines = [
        (manifest.parent, json.loads(line))
        for manifest in folder.glob("part-*/manifest.jsonl")
        for line in manifest.read_bytes().rpartition(b"\n")[0].splitlines()[1:]
    ]
    paths = [part / line["shard"] for part, line in lines]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.mark.slow
def test_a_worker_that_dies_loses_its_open_shard_at_most(cluster: Any, tmp_path: Path) -> None:
    whole = mlp().harvest(Calm(), SITES, tmp_path / "whole", **SETTINGS)
    source = Source(partial(die_after_a_look, tmp_path), tmp_path / "died")
    parts = mlp().harvest(source, SITES, tmp_path / "parts", engine=TWO, **SETTINGS)
    found = torch.load(tmp_path / "found", weights_only=False)
    assert found and found.items() <= shards(tmp_path / "parts").items()
    check_rows(parts, whole)


def die_after_a_look(folder: Path) -> None:
    time.sleep(0.2)  # the writer commits in the background
    torch.save(shards(folder / "parts"), folder / "found")
    os._exit(1)


@pytest.mark.slow
def test_a_lost_machine_costs_its_open_shards_at_most(cluster: Any, tmp_path: Path) -> None:
    whole = mlp().harvest(Calm(), SITES, tmp_path / "whole", **SETTINGS)
    lost = cluster.add_node(**MACHINE)
    found: dict[Path, tuple[bytes, int]] = {}

    def unplug() -> None:
        while not (tmp_path / "hangs").exists():
            time.sleep(0.05)
        time.sleep(0.2)
        found.update(shards(tmp_path / "parts"))
        cluster.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=unplug)
    thread.start()
    source = Source(hang, tmp_path / "hangs", lost.node_id)
    parts = mlp().harvest(source, SITES, tmp_path / "parts", engine=Ray(3), **SETTINGS)
    thread.join()
    assert found and found.items() <= shards(tmp_path / "parts").items()
    assert len(shards(tmp_path / "parts")) > len(found)
    check_rows(parts, whole)


READINGS = {"resid_post.*": [Moments(), Sparsity(), Massive(), Spectrum()]}
TEXTS = [" ".join(f"w{(7 * i + 3 * j) % 88 + 1}" for j in range(1 + i % 9)) for i in range(23)]


def texts() -> list[str]:
    return TEXTS


@dataclass(eq=False)
class Gap(JointReading):
    """The sum of differences of two sites, and the samples they are of."""

    total: float = 0.0
    samples: tuple[int, ...] = ()

    def update(self, acts: Sequence[Tensor], rows: Rows) -> None:
        self.total += float((acts[1] - acts[0]).double().sum())
        self.samples += tuple(rows.sample.tolist())

    def merge(self, other: Self) -> Self:
        self.total += other.total
        self.samples += other.samples
        return self

    def result(self) -> tuple[float, tuple[int, ...]]:
        return self.total, tuple(sorted(self.samples))


def check_same(found: Any, want: Any) -> None:
    """Hold that counts, places and texts are equal and other numbers equal to 1e-6.

    Of tensors 1e-6 of the largest entry, which is what small eigenvalues are right to.
    """
    if isinstance(want, float):
        assert math.isclose(found, want, rel_tol=1e-6, abs_tol=1e-9) or math.isnan(want)
    elif isinstance(want, Tensor) and want.is_floating_point():
        scale = float(want.abs().nan_to_num().max()) if want.numel() else 0.0
        torch.testing.assert_close(found, want, rtol=0, atol=1e-6 * scale, equal_nan=True)
    elif isinstance(want, Tensor):
        assert torch.equal(found, want)
    elif isinstance(want, Mapping):
        assert found.keys() == want.keys()
        for key in want:
            check_same(found[key], want[key])
    elif isinstance(want, list | tuple):
        assert len(found) == len(want)
        for one, other in zip(found, want, strict=True):
            check_same(one, other)
    elif is_dataclass(want):
        for field in fields(want):
            check_same(getattr(found, field.name), getattr(want, field.name))
    else:
        assert found == want


def test_observe_finds_what_the_local_engine_finds(cluster: Any) -> None:
    model = llama()
    wanted: dict[Any, Any] = {**READINGS, ("resid_pre.1", "resid_post.1"): [Gap()]}
    edits = [ak.scale("mlp_out.0", 1.5)]
    local = model.observe(TEXTS, wanted, 4, edits)
    spread = model.observe(texts, wanted, 4, edits, engine=TWO)
    check_same(
        {site: [r.result() for r in own] for site, own in spread.items()},
        {site: [r.result() for r in own] for site, own in local.items()},
    )
    assert {peak.sample for peak in spread["resid_post.2"][2].result().top} - {0, 1, 2, 3}


@pytest.mark.slow
def test_a_worker_that_dies_repeats_its_share(cluster: Any, tmp_path: Path) -> None:
    local = mlp().observe(Calm(), {"2:out": [Moments(skip_first=False)]}, 2)
    source = Source(die, tmp_path / "died")
    found = mlp().observe(source, {"2:out": [Moments(skip_first=False)]}, 2, engine=TWO)
    assert (tmp_path / "died").exists()
    check_same(found["2:out"][0].result(), local["2:out"][0].result())


@pytest.mark.slow
def test_scan_reports_what_the_local_engine_reports(cluster: Any) -> None:
    model, data = llama(), [[(5 * i + j) % 88 + 1 for j in range(3 + i % 7)] for i in range(9)]
    local = json.loads(ak.scan(model, data, batch_size=2).to_json())
    spread = ak.scan(model, data, batch_size=2, engine=TWO)
    check_same(json.loads(spread.to_json()), local)


def test_compare_measures_what_the_local_engine_measures(cluster: Any) -> None:
    asked: dict[str, Any] = {"task": "sparsity", "seeds": 2}
    local, spread = ak.compare("read", **asked), ak.compare("read", **asked, engine=TWO)
    assert [(run.method, run.seed) for run in spread.runs] == [
        (run.method, run.seed) for run in local.runs
    ]
    first = local.metrics[0].name
    check_same([r.values[first] for r in spread.runs], [r.values[first] for r in local.runs])


@pytest.mark.slow
def test_a_named_network_is_opened_by_the_workers(cluster: Any, smollm2: Model) -> None:
    assert len(on_ray._pickled(smollm2)) < 2000
    wanted = {"resid_post.1": [Moments()]}
    prose = ["The history of the steam engine begins in", "Water boils at"]
    local = smollm2.observe(prose, wanted, 1)
    spread = smollm2.observe(prose, wanted, 1, engine=TWO)
    check_same(spread["resid_post.1"][0].result(), local["resid_post.1"][0].result())


def failing(index: int) -> int:
    raise EditError(f"no {index}")


def dying(index: int) -> None:
    os._exit(1)


def shifted() -> Model:
    model = script.model()
    next(model.module.parameters()).data += 1
    return model


@pytest.mark.slow
def test_what_fails_in_a_worker_is_told(cluster: Any) -> None:
    with pytest.raises(EditError, match=r"^no 7$"):
        run_jobs(failing, [7], "ray")
    with pytest.raises(EngineError, match="a worker must live through job 0: "):
        run_jobs(dying, [7], Ray(num_restarts=0))
    model = script.model()
    model.opener = shifted
    with pytest.raises(ModelError, match="must open the same weights: Sequential has SHA-256"):
        run_jobs(repr, [model], "ray")


def test_what_cannot_go_to_workers_is_refused(cluster: Any) -> None:
    model, wanted = mlp(), {"2:out": [Moments()]}
    with pytest.raises(ModelError, match="Sequential was opened from a module: set its opener"):
        script.model().observe(script.data(), wanted, engine="ray")
    with pytest.raises(InputError, match=r"from their beginning: .*, got list_iterator"):
        model.observe(iter(script.data()), wanted, engine=TWO)
    with pytest.raises(EngineError, match="must be picklable: cannot pickle"):
        run_jobs(repr, [threading.Lock()], "ray")
    with pytest.raises(EngineError, match=r"needs 1 CPUs and 3 GPUs .* no machine of the"):
        run_jobs(abs, [1], Ray(num_gpus=3))
    with pytest.raises(EngineError, match="at least one worker with more than 0 CPUs, got 0"):
        run_jobs(abs, [1], Ray(0))
    with pytest.raises(EngineError, match="must be one of local, ray, got 'slurm'"):
        run_jobs(abs, [1], "slurm")


OWN = """
import ray
from actkit.core.engines.engine import run_jobs
from actkit.core.engines.settings import Ray
print(run_jobs(abs, [3, -1], Ray(1)), ray.is_initialized())
"""


def test_a_cluster_that_was_begun_here_ends_here() -> None:
    with TemporaryDirectory(dir="/tmp") as folder:  # the path of a socket must be short
        own = {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, "-c", OWN]
        done = subprocess.run(
            command, env=os.environ | own, capture_output=True, text=True, check=False
        )
        assert done.stdout == "[3, 1] False\n", done.stderr
        assert [p.name() for p in psutil.process_iter() if place(p) == folder] == []


def place(process: psutil.Process) -> str | None:
    """Return where a process was told to keep Ray's files."""
    try:
        found: str | None = process.environ().get("RAY_TMPDIR")
    except psutil.Error:
        return None
    return found
