"""Examine types and keep the results, or write the page: `python -m tests.architectures`."""

import argparse
import gc
import json
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.architectures.build import build, types
from tests.architectures.checks import examined
from tests.architectures.tweaks import NOT_BUILT

FOLDER = Path("build/architectures")
LONGEST = 60
"""Seconds that one type may take."""


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="types to examine; all if none")
    parser.add_argument("--slice", default="0/1", help="i/n: every n-th type from i on")
    parser.add_argument("--missing", action="store_true", help="leave out types with a result")
    parser.add_argument("--what", default="", help="only these kinds, with commas")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    index, number = map(int, args.slice.split("/"))
    names = args.types or [k for i, k in enumerate(types()) if i % number == index]
    if args.what:
        names = [k for k in names if types()[k][0] in args.what.split(",")]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for kind in names:
        file = FOLDER / f"{kind}.json"
        if args.missing and file.exists():
            continue
        signal.signal(signal.SIGALRM, _late)
        signal.alarm(LONGEST)
        try:
            result = one(kind)
        except Late:
            result = {"what": types()[kind][0], "reason": f"took over {LONGEST} s"}
        signal.alarm(0)
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False))
        cells = result.get("cells", {})
        bad = {k: w for k, (s, w) in cells.items() if s == "wrong"}
        refused = {k: w for k, (s, w) in cells.items() if s == "refused"}
        print(kind, result.get("class"), result.get("seconds"), result.get("reason", ""),
              "WRONG" if bad else "ok", bad or "", "REFUSED" if refused else "", refused or "", flush=True)
        gc.collect()


class Late(BaseException):
    """A type took too long; no check may catch it."""


def _late(*_: Any) -> None:
    raise Late


def one(kind: str) -> dict[str, Any]:
    """Return the result of one type."""
    if kind in NOT_BUILT:
        return {"what": types()[kind][0], "reason": NOT_BUILT[kind]}
    begun = time.perf_counter()
    try:
        built = build(kind)
    except Exception as error:  # noqa: BLE001
        return {"what": types()[kind][0], "reason": f"{type(error).__name__}: {str(error)[:200]}"}
    result = examined(built)
    result["seconds"] = round(time.perf_counter() - begun, 2)
    return result


if __name__ == "__main__":
    main()
