"""Examine types and keep the results, then write the page: `python -m tests.architectures`."""

import argparse
import gc
import json
import signal
from pathlib import Path
from typing import Any

from tests.architectures import page
from tests.architectures.build import types
from tests.architectures.one import one
from tests.architectures.tweaks import NOT_EXAMINED

FOLDER = Path("build/architectures")
LONGEST = 60
"""Seconds that one type may take."""


def main() -> int:
    """Examine; return 1 if a cell is wrong, or a type cannot be examined that is to be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="types to examine; all if none")
    parser.add_argument("--slice", default="0/1", help="i/n: every n-th type from the i-th on")
    parser.add_argument("--missing", action="store_true", help="leave out types with a result")
    parser.add_argument("--what", default="", help="only these kinds, with commas")
    parser.add_argument("--page", action="store_true", help="only write the page from the results")
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if args.page:
        lost = {"reason": "not examined in this run"}
        page.write(dict.fromkeys(types(), lost) | page.load(FOLDER))
        return 0
    index, number = map(int, args.slice.split("/"))
    names = args.types or [k for i, k in enumerate(types()) if i % number == index]
    if args.what:
        names = [k for k in names if types()[k][0] in args.what.split(",")]
    wrong = 0
    for kind in names:
        file = FOLDER / f"{kind}.json"
        if args.missing and file.exists():
            continue
        result = _in_time(kind)
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False))
        wrong += _told(kind, result)
        wrong += "cells" not in result and kind not in NOT_EXAMINED
        gc.collect()
    return int(wrong > 0)


def _told(kind: str, result: dict[str, Any]) -> int:
    """Print a line of a result; return the number of wrong cells."""
    cells = result.get("cells", {})
    told = {k: w for k, (s, w) in cells.items() if s in ("wrong", "refused")}
    wrong: int = sum(s == "wrong" for s, _ in cells.values())
    state = "WRONG" if wrong else "ok" if cells else result.get("reason", "")
    print(kind, result.get("seconds", ""), state, told or "", flush=True)  # noqa: T201
    return wrong


def _in_time(kind: str) -> dict[str, Any]:
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(LONGEST)
    try:
        return one(kind)
    except Late:
        return {"what": types()[kind][0], "reason": f"it takes over {LONGEST} s"}
    finally:
        signal.alarm(0)


class Late(BaseException):
    """A type took too long; no check may catch it."""


def _late(*_: Any) -> None:
    raise Late


if __name__ == "__main__":
    raise SystemExit(main())
