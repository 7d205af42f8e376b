"""Recording, harvesting, editing: each against the bare network, in one process."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import actkit as ak
from bench._measure import Row, paired, row

BATCH, LENGTH = 8, 128


def run() -> list[Row]:
    """Measure everything that needs SmolLM2."""
    model = ak.open("smollm2")
    ids = tokens(model)
    return [
        *_recording(model, ids),
        _harvest(model, ids),
        _generate(model),
        *_memory(),
        *_start(),
    ]


def tokens(model: ak.Model, num: int = 1) -> torch.Tensor:
    text = "\n".join(ak.data.text()[:2000])
    ids = model.tokenizer(text)["input_ids"][: num * BATCH * LENGTH]
    return torch.tensor(ids).view(num * BATCH, LENGTH)


def _recording(model: ak.Model, ids: torch.Tensor) -> list[Row]:
    body = model.module.model

    def bare() -> None:
        with torch.no_grad():
            body(input_ids=ids, use_cache=False)

    rows = []
    for name, sites, bound in (
        ("record resid_post of all 30 blocks, 8x128, float32", "resid_post.*", "<= 1.05"),
        ("record attn_probs of all 30 blocks", "attn_probs.*", ""),
    ):
        batch = {"input_ids": ids, "use_cache": False}
        ratios = paired(lambda s=sites, b=batch: model.run(b, record=s), bare, 9)
        rows.append(row(name, ratios, bound, "1.0: the body's own forward pass"))
    return rows


def _harvest(model: ak.Model, ids: torch.Tensor) -> Row:
    body = model.module.model
    batches = list(tokens(model, 4).split(BATCH))

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                body(input_ids=batch, use_cache=False)

    def harvest() -> None:
        with tempfile.TemporaryDirectory() as folder:
            data = [{"input_ids": b, "use_cache": False} for b in batches]
            model.harvest(data, "resid_post.29", Path(folder) / "store", dtype="bfloat16")

    ratios = [1 / r for r in paired(harvest, bare, 5)]
    return row(
        "harvest resid_post.29 to disk in bfloat16, tokens/s over the bare body's",
        ratios,
        ">= 0.85",
        "1.0: nothing is written",
    )


def _generate(model: ak.Model) -> Row:
    vector = torch.randn(576, generator=torch.manual_seed(0))
    edit = ak.add("resid_post.15", vector, scale=0.01)
    batch = model.encode("The history of the steam engine begins")
    settings = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False, "pad_token_id": 2}

    def plain() -> None:
        with torch.no_grad():
            model.module.generate(**batch.kwargs, **settings)

    def edited() -> None:
        with torch.no_grad(), model.edited([edit]):
            model.module.generate(**batch.kwargs, **settings)

    ratios = [1 / r for r in paired(edited, plain, 9)]
    return row("one additive edit in generate, tokens/s", ratios, ">= 0.98", "1.0: no edit")


_MEMORY = """
import os, sys, torch, actkit as ak
from actkit.read.streaming.moments import Moments
model = ak.open("smollm2")
ids = model.tokenizer("\\n".join(ak.data.text()))["input_ids"]
num = int(sys.argv[1])
ids = (ids * (num // len(ids) + 1))[:num]
for weights in model.module.parameters():
    weights.sum()  # so that pages of the mapped file that few tokens touch do not count
peak = 0
def batches():
    global peak
    for i in range(0, num - 1023, 1024):
        pages = int(open("/proc/self/statm").read().split()[1])
        peak = max(peak, pages * os.sysconf("SC_PAGE_SIZE"))
        yield torch.tensor(ids[i:i + 1024]).view(8, 128)
model.observe(batches(), {"resid_post.2": [Moments()]})
print(peak)
"""


def _memory() -> list[Row]:
    """Compare the resident memory between batches, so that the peak of loading hides nothing."""

    def peak(num_tokens: int) -> int:
        command = [sys.executable, "-c", _MEMORY, str(num_tokens)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    few, many = peak(10_240), peak(102_400)
    kept = 102_400 * 576 * 4 / 2**20
    detail = (
        f"{few / 2**20:.0f} MB at 10,240 tokens, {many / 2**20:.0f} MB at 102,400; "
        f"kept rows would add {kept:.0f} MB"
    )
    name = "memory of observing one site, 102,400 over 10,240 tokens"
    return [row(name, [many / few], "<= 1.05", "1.0: nothing is kept", detail)]


def _start() -> list[Row]:
    code = (
        "import time, torch; start = time.perf_counter(); import actkit;"
        "print(1000 * (time.perf_counter() - start))"
    )
    runs = [[sys.executable, "-c", code]] * 7
    added = [float(subprocess.check_output(command, text=True)) for command in runs]
    rows = [row("import actkit adds to importing torch, ms", added, "<= 50", "0: names are lazy")]
    for words in (["--help"], ["methods"]):
        command = [str(Path(sys.executable).parent / "actkit"), *words]
        seconds = [_wall(command) for _ in range(7)]
        floor = statistics.median(_wall([sys.executable, "-c", "pass"]) for _ in range(5))
        rows.append(
            row(f"actkit {words[0]}, s", seconds, "<= 0.3", f"{floor:.3f} s: an empty Python")
        )
    return rows


def _wall(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - start
