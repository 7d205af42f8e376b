"""The sweep against a loop of hooks on the lowest, the pinned and the newest versions.

`make versions` builds the environments. Each measures in a process of its own; one that is absent
is left out of the table.
"""

import json
import subprocess

from bench._measure import Row, row
from bench.peers import ROOT

ENVIRONMENTS = {"lowest": ".venv-lowest", "pinned": ".venv", "newest": ".venv-newest"}


def run() -> list[Row]:
    """Return one row for each environment that was built."""
    rows = []
    for name, folder in ENVIRONMENTS.items():
        python = ROOT / folder / "bin" / "python"
        if not python.exists():
            continue
        done = subprocess.run(
            [str(python), "-m", "bench._version_sweep"],
            capture_output=True, text=True, check=False, timeout=900, cwd=ROOT,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        title = f"{name} versions: a loop of {found['runs']} runs with hooks over the sweep"
        detail = f"{found['versions']}, values within {found['gap']:.1e}"
        rows.append(row(title, found["ratios"], ">= 15", "a pass for each version", detail))
    return rows
