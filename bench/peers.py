"""The same recording job in TransformerLens and nnsight, each in its own environment.

The peers' requirements exclude each other, so each has a folder `.venv-NAME` beside this
project's `.venv` (bench/README.md says how to make it). A peer that is absent is left out of the
table. Each measures, in its own process, its recording of every block's residual stream against
the bare body of the same weights.
"""

import json
import statistics
import subprocess
from pathlib import Path

from bench._measure import Row, row

ROOT = Path(__file__).parent.parent
PEERS = {"tl": "TransformerLens 4.3", "nnsight": "nnsight 0.8"}


def run() -> list[Row]:
    """Return one row for each installed peer."""
    rows = []
    for key, name in PEERS.items():
        python = ROOT / f".venv-{key}" / "bin" / "python"
        if not python.exists():
            continue
        script = ROOT / "bench" / "_peer.py"
        done = subprocess.run(
            [str(python), str(script), key, str(_weights())],
            capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            raise RuntimeError(f"{name} failed: {last}")
        ratios = json.loads(done.stdout.strip().splitlines()[-1])
        detail = f"its own process, {len(ratios)} pairs, median {statistics.median(ratios):.2f}"
        rows.append(
            row(f"{name}: resid_post of all blocks over the bare body", ratios, "", "1.0", detail)
        )
    return rows


def _weights() -> Path:
    """Return a folder with SmolLM2 as safetensors, which any environment can open."""
    import actkit as ak

    folder = ROOT / "build" / "smollm2"
    if not (folder / "model.safetensors").exists():
        model = ak.open("smollm2")
        model.module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    return folder
