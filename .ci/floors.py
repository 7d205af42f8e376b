"""Print the floor of each requirement of pyproject.toml as a pin: `torch>=2.6` as `torch==2.6`."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["default"]]:
    name, floor, version = requirement.partition(">=")
    if not floor:
        sys.exit(f"each requirement must have a floor, got {requirement!r}")
    sys.stdout.write(f"{name}=={version}\n")
