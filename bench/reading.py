"""What a scan's readings cost, against the bare body of the network."""

import copy
import time
from typing import Any

import torch

import actkit as ak
from actkit.report.scan import unread
from bench._measure import Row, paired, row
from bench.instrument import tokens


def run() -> list[Row]:
    """Measure everything that needs SmolLM2."""
    model = ak.open("smollm2")
    return [*_scan(model), _decompose(model)]


def _scan(model: ak.Model) -> list[Row]:
    """Time one pass of all of scan's readings, and each question's own share of it."""
    body = model.module.model
    ids = tokens(model)
    batch = [{"input_ids": ids, "use_cache": False}]

    def bare() -> None:
        with torch.no_grad():
            body(input_ids=ids, use_cache=False)

    everything = unread(model)
    wanted: dict[Any, list[Any]] = {}
    for readings in everything.values():
        for key, own in readings.items():
            wanted.setdefault(key, []).extend(own)
    ratios = paired(lambda: model.observe(batch, wanted), bare, 7)
    rows = [
        row(
            "one scan pass, all readings that stream, 8x128, float32, over the bare body",
            ratios,
            "<= 1.5",
            "1.0: nothing is read",
        )
    ]
    for key, readings in everything.items():
        ratios = paired(lambda r=readings: model.observe(batch, r), bare, 5)
        rows.append(row(f"a pass of scan's question {key} alone", ratios, "", "1.0"))
    return rows


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
        paired(decompose, bare, 5),
        "",
        "0: it does not grow with the tokens",
        f"{seconds:.2f} s a scan",
    )
