"""Run all measurements and write bench/results.md: `python -m bench`.

`python -m bench reading store` measures these parts alone; the other rows and the head, with its
date, stay as they are.
"""

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench import instrument, on_ray, peers, reading, steering, store, tracing, versions
from bench._measure import Row

PARTS = {
    "instrument": instrument,
    "reading": reading,
    "steering": steering,
    "tracing": tracing,
    "store": store,
    "on_ray": on_ray,
    "peers": peers,
    "versions": versions,
}
HEAD = """| what | median | lowest | highest | bound | holds | limit | detail |
|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(2)
    path, asked = Path(__file__).with_name("results.md"), sys.argv[1:]
    lines = {r.name: _line(r) for name in asked or PARTS for r in PARTS[name].run()}
    top, old = _head(), ""
    if asked:
        top, _, old = path.read_text().partition(HEAD)
    kept = {line.split("|")[1].strip(): line for line in old.splitlines()}
    text = top + HEAD + "\n".join((kept | lines).values()) + "\n"
    path.write_text(text)
    sys.stdout.write(text)


def _head() -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor(),
    )  # fmt: skip
    return (
        f"# Results\n\n{datetime.now(UTC):%Y-%m-%d}, {cpu}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}. Ratios of jobs that take "
        "turns in one process: the median, and the lowest and highest pair.\n\n"
    )


def _line(r: Row) -> str:
    holds = "-" if not r.bound else "yes" if r.ok else "NO"
    cells = (r.name, f"{r.ratio:.3f}", f"{r.low:.3f}", f"{r.high:.3f}", r.bound or "-", holds)
    return f"| {' | '.join((*cells, r.limit, r.detail))} |"


if __name__ == "__main__":
    main()
