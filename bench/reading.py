"""What a scan's readings cost, against the bare body of the network."""

import copy
import time
from typing import Any

import torch

import actkit as ak
from actkit.scanning.scan import unread
from bench._measure import Row, paired, row
from bench.instrument import tokens


def run() -> list[Row]:
    """Measure everything that needs SmolLM2."""
    model = ak.open("smollm2")
    return [_scan(model), _decompose(model)]


def _scan(model: ak.Model) -> Row:
    """Time one pass of all of scan's readings."""
    body = model.module.model
    ids = tokens(model)
    batch = [{"input_ids": ids, "use_cache": False}]

    def bare() -> None:
        with torch.no_grad():
            body(input_ids=ids, use_cache=False)

    wanted: dict[Any, list[Any]] = {}
    for readings in unread(model).values():
        for key, own in readings.items():
            wanted.setdefault(key, []).extend(own)
    return row(
        "one scan pass, all readings that stream, 8x128, float32, over the bare body",
        paired(lambda: model.observe(batch, wanted), bare, 5),
        "<= 1.5",
        "1.0: nothing is read",
    )


def _decompose(model: ak.Model) -> Row:
    """Time the decomposition of all 30 covariances against reading them once."""
    batch = [{"input_ids": tokens(model), "use_cache": False}]
    Spectrum = ak.get("spectrum")
    fed = model.observe(batch, {"resid_post.*": [Spectrum()]})

    def decompose() -> None:
        for own in fed.values():
            copy.deepcopy(own[0]).result()

    start = time.perf_counter()
    decompose()
    seconds = time.perf_counter() - start
    body = model.module.model

    def bare() -> None:
        with torch.no_grad():
            body(**batch[0])

    return row(
        "decomposing all 30 covariances of width 576 once, over one bare body",
        paired(decompose, bare, 3),
        "",
        "0: it does not grow with the tokens",
        f"{seconds:.2f} s a scan",
    )
