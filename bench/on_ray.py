"""The engine `ray` with one worker against the local engine, on one machine.

Both use the same threads. A run on Ray pays once for its worker: a process that imports torch,
opens the network and hashes its weights. After that a batch should cost what it costs here.
"""

import logging
import time
from collections.abc import Callable

import ray
import torch

import actkit as ak
from actkit.core.engines.settings import Ray
from actkit.read.streaming.moments import Moments
from bench._measure import Row, paired, row
from bench.instrument import BATCH, tokens

FEW, MANY = 1, 4


def run() -> list[Row]:
    """Compare an observation after all blocks of SmolLM2, with and without the worker's start."""
    model = ak.open("smollm2")
    groups = [{"input_ids": ids} for ids in tokens(model, MANY).split(BATCH)]
    threads = torch.get_num_threads()
    ray.init(num_cpus=threads, logging_level=logging.ERROR, log_to_driver=False)

    def job(engine: str | Ray, num: int) -> Callable[[], object]:
        wanted = {"resid_post.29": [Moments()]}
        return lambda: model.observe(groups[:num], wanted, engine=engine)

    def slope(engine: str | Ray) -> float:
        return _seconds(job(engine, MANY)) - _seconds(job(engine, FEW))

    spread = Ray(1, num_cpus=threads)
    try:
        whole = paired(job(spread, MANY), job("local", MANY), 3)
        batches = [slope(spread) / slope("local") for _ in range(3)]
    finally:
        ray.shutdown()
    limit = "1.0: the local engine"
    name = f"observe {MANY * BATCH * 128:,} tokens on Ray, one worker, over local"
    return [
        row(name, whole, "", limit),
        row(f"{MANY - FEW} more batches of it, without the worker's start", batches, "", limit),
    ]


def _seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start
