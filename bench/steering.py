"""What steering costs: edits while writing, many edits in one batch, and the choice of a point."""

import time
from collections.abc import Sequence
from typing import Any

import torch

import actkit as ak
from actkit.model import Model
from bench._measure import Row, paired, row

PROMPT = "The capital of France is Paris, and the capital of Italy is"
TOKENS = 40
SWEEP = {"layers": 30, "strengths": 8, "prompts": 20, "tokens": 20}


def run() -> list[Row]:
    """Measure everything that needs SmolLM2."""
    model = ak.open("smollm2")
    return [_all_layers(model), _feedback(model), _batch(model), _tune(model)]


def _written(model: Model, prompts: Any, edits: Sequence[ak.Edit] = ()) -> None:
    model.generate(prompts, edits=edits, max_new_tokens=TOKENS, min_new_tokens=TOKENS)


def _inverse(ratios: list[float]) -> list[float]:
    return [1 / r for r in ratios]


def _all_layers(model: Model) -> Row:
    """Add one vector at each of the 30 layers."""
    vector = torch.randn(576, generator=torch.Generator().manual_seed(0))
    edits = [ak.add("resid_post.*", vector, 0.01)]
    ratios = paired(lambda: _written(model, PROMPT, edits), lambda: _written(model, PROMPT), 9)
    return row(
        "one additive edit at each of 30 layers in generate, tokens/s",
        _inverse(ratios),
        ">= 0.95",
        "1.0: 30 sums of 576 numbers beside 135M multiplications",
    )


def _feedback(model: Model) -> Row:
    """Steer by feedback at every layer that LQR controls."""
    pairs = ak.data.sentiment()[:24]
    edits = ak.get("lqr")().fit(model, pairs).edits(1.0)
    ratios = paired(lambda: _written(model, PROMPT, edits), lambda: _written(model, PROMPT), 9)
    return row(
        "closed-loop LQR in generate, tokens/s",
        _inverse(ratios),
        ">= 0.7",
        "1.0: a few dot products of 576 numbers a layer",
        f"{len(edits)} edits",
    )


def _batch(model: Model) -> Row:
    """Give each of 16 rows an edit of its own."""
    gen = torch.Generator().manual_seed(0)
    prompts = [PROMPT] * 16
    edits = [
        ak.add(f"resid_post.{10 + i}", torch.randn(576, generator=gen), 0.01, ak.Where(rows=i))
        for i in range(16)
    ]
    ratios = paired(lambda: _written(model, prompts, edits), lambda: _written(model, prompts), 7)
    return row(
        "16 rows with 16 different edits at 16 layers in generate, tokens/s",
        _inverse(ratios),
        ">= 0.9",
        "1.0: the unedited batch",
    )


def _tune(model: Model) -> Row:
    """Sweep 30 layers x 8 strengths x 20 prompts, against one generation after another."""
    task = ak.steer.as_task("sentiment")
    caa = ak.get("caa")().fit(model, task.examples)
    start = time.perf_counter()
    ak.steer.tune(model, caa, task)
    tuned = time.perf_counter() - start
    some = [(layer, s, p) for layer in (5, 15, 25) for s in (0.5, 2.0) for p in task.prompts[:2]]
    start = time.perf_counter()
    for layer, strength, prompt in some:
        edits = caa.at(layer).edits(strength)
        model.generate(prompt, edits=edits, max_new_tokens=SWEEP["tokens"])
    each = (time.perf_counter() - start) / len(some)
    runs = SWEEP["layers"] * SWEEP["strengths"] * SWEEP["prompts"]
    ratio = each * runs / tuned
    return row(
        "steer.tune over 30 layers x 8 strengths x 20 prompts, faster than one by one",
        [ratio],
        ">= 5",
        "the loop writes 96,000 tokens; the sweep reads 29,000 and writes for 4 points at most",
        f"{tuned:.0f} s; one by one {each:.2f} s each (of {len(some)}), {each * runs / 60:.0f} min",
    )
