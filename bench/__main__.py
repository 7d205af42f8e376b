"""Run all measurements and write bench/results.md: `python -m bench`."""

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench import instrument, on_ray, peers, reading, store
from bench._measure import Row


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(2)
    rows: list[Row] = []
    for part in (instrument, reading, store, on_ray, peers):
        rows += part.run()
    text = f"{_head()}\n{_table(rows)}\n"
    Path(__file__).with_name("results.md").write_text(text)
    sys.stdout.write(text)


def _head() -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor(),
    )  # fmt: skip
    return (
        f"# Results\n\n{datetime.now(UTC):%Y-%m-%d}, {cpu}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}. Ratios of jobs that take "
        "turns in one process: the median, and the lowest and highest pair.\n"
    )


def _table(rows: list[Row]) -> str:
    lines = [
        "| what | median | lowest | highest | bound | holds | limit | detail |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.name} | {r.ratio:.3f} | {r.low:.3f} | {r.high:.3f} | {r.bound or '-'} | "
        f"{'-' if not r.bound else 'yes' if r.ok else 'NO'} | {r.limit} | {r.detail} |"
        for r in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
