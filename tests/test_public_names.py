"""The names of `import actkit as ak` are a promise; this list changes on purpose only."""

import subprocess
import sys

import actkit as ak

NAMES = [
    "Call",
    "Checkpoints",
    "Edit",
    "Leaderboard",
    "Model",
    "Ray",
    "Recording",
    "Report",
    "Rows",
    "SavedMeter",
    "Site",
    "Store",
    "Where",
    "add",
    "affine",
    "apply",
    "clamp",
    "compare",
    "data",
    "errors",
    "get",
    "load_edits",
    "methods",
    "open",
    "project_out",
    "save_edits",
    "scale",
    "scan",
    "set",
    "steer",
    "swap",
    "trace",
    "worlds",
]


def test_the_names_are_pinned_and_few() -> None:
    assert sorted(NAMES) == sorted(ak.__all__) == sorted(set(ak.__all__))
    assert len(NAMES) <= 40


def test_every_name_is_there() -> None:
    for name in NAMES:
        assert getattr(ak, name) is not None


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, actkit; heavy = {'torch', 'transformers', 'numpy', 'plotly', 'rich'};"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
