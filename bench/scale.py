"""What recording costs at 1e9 and 1e12 tokens, from rates that are measured here.

`python -m bench.scale` measures and writes the tables of docs/scale.md. The constants are what to
replace: prices, the rented machine, the networks.
"""

import logging
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import actkit as ak
from actkit.core.digest import digest
from actkit.core.engines.engine import run_jobs
from actkit.core.engines.settings import Ray
from actkit.core.sweep.stream import batches, encoded
from actkit.store._format import columns_of
from bench import store
from bench.instrument import BATCH, tokens

TOKENS = (1e9, 1e12)
DTYPES = ("bfloat16", "int8")

CORE_HOUR = 0.04
"""Dollars for one core of a rented CPU machine."""
GPU_HOUR, GPU_FLOPS, GPU_SHARE = 3.0, 989e12, 0.35
"""Dollars for an H100, its bfloat16 operations a second, and the share that a forward pass gets."""
GB_MONTH = 0.02
"""Dollars for keeping a gigabyte in object storage."""

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
START, END = "<!-- tables of bench/scale.py -->", "<!-- end of the tables -->"


@dataclass(frozen=True)
class Network:
    """A network: its width, and the parameters of its blocks, which cost two operations each."""

    name: str
    width: int
    params: float


SMOLLM2 = Network("SmolLM2-135M", 576, 106.2e6)
NETWORKS = (SMOLLM2, Network("a network of 8e9", 4096, 7.0e9))


@dataclass(frozen=True)
class Rates:
    """What one core does in a second here, at its best of several runs.

    The first three are of CPU seconds, so that what else runs on the machine does not count.

    Attributes:
        body: Tokens through the bare blocks of SmolLM2, in float32.
        harvest: The same with one site written to disk.
        skip: Tokens of text that are read and hashed, but are another process's to run.
        write: Bytes into a store, until they are durable.
        read: Bytes out of it in shuffled batches.
        start: Seconds from asking Ray for a worker until SmolLM2 is open in it.
    """

    body: float
    harvest: float
    skip: float
    write: float
    read: float
    start: float


def row_bytes(width: int, dtype: str) -> int:
    """Return the size of one row of one site, with what it belongs to."""
    return sum(column.row_bytes for column in columns_of({"site": (width,)}, dtype))


def hours(num_tokens: float, rate: float) -> float:
    """Return the hours of one machine that runs `rate` tokens a second."""
    return num_tokens / rate / 3600


def gpu_rate(network: Network) -> float:
    """Return the tokens a second of the rented GPU."""
    return GPU_SHARE * GPU_FLOPS / (2 * network.params)


def measure() -> Rates:
    """Measure every rate."""
    model = ak.open("smollm2")
    ids = tokens(model)
    groups = [{"input_ids": part, "use_cache": False} for part in ids.split(BATCH)]
    body = model.module.model

    def bare() -> None:
        with torch.no_grad():
            for group in groups:
                body(**group)

    clock = time.process_time
    with tempfile.TemporaryDirectory() as folder:
        paths = (Path(folder) / str(i) for i in range(99))
        harvest = _best(lambda: model.harvest(groups, "resid_post.29", next(paths)), clock)
        write = _best(lambda: store.written(next(paths)))
        written = store.written(next(paths))
        written.verify()
        read = _best(lambda: store.epoch(written))
        size = len(written) * row_bytes(store.WIDTH, "bfloat16")
    num_tokens, skip = _skip(model)
    return Rates(
        body=ids.numel() / _best(bare, clock),
        harvest=ids.numel() / harvest,
        skip=num_tokens / skip,
        write=size / write,
        read=len(written) * store.WIDTH * 2 / read,
        start=_start(model),
    )


def _skip(model: ak.Model) -> tuple[int, float]:
    """Return the tokens of a text, and the seconds in which a process passes over them."""
    texts = ak.data.text()
    num_tokens = sum(len(model.tokenizer(text)["input_ids"]) for text in texts)

    def skip() -> None:
        sha256 = ""
        for group, _, _ in encoded(model, batches(texts, BATCH), lambda _: False):
            sha256 = digest([sha256, group])

    return num_tokens, _best(skip, time.process_time)


def _start(model: ak.Model) -> float:
    import ray

    ray.init(logging_level=logging.ERROR, log_to_driver=False)
    try:
        return _best(lambda: run_jobs(repr, [model], Ray(1)))
    finally:
        ray.shutdown()


def _best(job: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    times = []
    for _ in range(3):
        start = clock()
        job()
        times.append(clock() - start)
    return min(times)


def tables(rates: Rates) -> str:
    """Return the rates, the cost of a run and the cost of each site, as Markdown."""
    return "\n\n".join(
        [
            f"Measured on one core ({_cpu()}), torch {torch.__version__}, "
            f"with SmolLM2-135M in float32, batches of {BATCH} x 128 tokens:",
            _table(
                ["rate", "one core"],
                [
                    ["forward pass of the bare blocks", f"{rates.body:,.0f} tokens/s"],
                    ["`harvest` of one site", f"{rates.harvest:,.0f} tokens/s"],
                    ["text that another process runs", f"{rates.skip / 1e6:,.1f}e6 tokens/s"],
                    ["writing a store, until durable", f"{rates.write / 1e6:,.0f} MB/s"],
                    ["shuffled reading of a store", f"{rates.read / 1e6:,.0f} MB/s"],
                    ["start of a Ray worker", f"{rates.start:.1f} s"],
                ],
            ),
            "A run, whatever it reads:",
            _table(["network", "tokens", "machine", "hours of one", "dollars"], _runs(rates)),
            "Each site that is kept:",
            _table(
                ["network", "tokens", "dtype", "a row", "on disk", "hours to write", "a month"],
                _sites(rates),
            ),
            "Each site that is only observed, whatever the number of tokens:",
            _table(["network", "moments", "spectrum"], [_states(n) for n in NETWORKS]),
        ]
    )


def _runs(rates: Rates) -> list[list[str]]:
    rows = []
    for network in NETWORKS:
        here = rates.harvest * SMOLLM2.params / network.params
        for num_tokens in TOKENS:
            for machine, rate, price in (
                ("a core", here, CORE_HOUR),
                ("an H100", gpu_rate(network), GPU_HOUR),
            ):
                time_ = hours(num_tokens, rate)
                cells = [network.name, _power(num_tokens), machine]
                rows.append([*cells, _number(time_), _number(time_ * price)])
    return rows


def _sites(rates: Rates) -> list[list[str]]:
    rows = []
    for network in NETWORKS:
        for num_tokens in TOKENS:
            for dtype in DTYPES:
                size = row_bytes(network.width, dtype)
                total = num_tokens * size
                cells = [network.name, _power(num_tokens), dtype, f"{size:,} B", _size(total)]
                cost = [_number(total / rates.write / 3600), f"${_number(total / 1e9 * GB_MONTH)}"]
                rows.append([*cells, *cost])
    return rows


def _states(network: Network) -> list[str]:
    """Return the size of readings' states: float64 sums for each unit, or each pair of units."""
    return [network.name, _size(2 * 8 * network.width), _size(8 * network.width**2)]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _size(num_bytes: float) -> str:
    power = min(5, int(math.log10(num_bytes) // 3))
    return f"{num_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _power(value: float) -> str:
    return f"1e{math.log10(value):.0f}"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def main() -> None:
    """Measure, and write the tables into the page."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    torch.set_num_threads(1)
    text = tables(measure())
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}")
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()
