"""Measures the house: rooms, functions, knots of imports, and the way of a call through the files.

`python -m bench.house` prints this tree's figures; `--source` takes another checkout's `src`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from tests import test_layers
from tests.complexity import functions
from tests.test_layers import modules

ROOT = Path(__file__).parents[1]
LIMIT = 10
WAYS = """
import json, sys, torch
sys.setrecursionlimit(5000)
import actkit as ak
model = ak.open("smollm2")
tokens = ["The cat sat on", "A dog"]
edit = ak.add("resid_post.0", torch.ones(576))
calls = {
    "run": lambda: model.run(tokens, record=["resid_post.*"], edits=[edit]),
    "generate": lambda: model.generate(tokens, edits=[edit], max_new_tokens=3),
    "sweep": lambda: model.sweep(tokens, [[edit], []], lambda l: l[:, -1, 3]),
    "compare": lambda: ak.compare("trace", model, methods=["attribution_patching"], seeds=1),
}
from pathlib import Path
home = str(Path(ak.__file__).parent)
found = {}
for name, call in calls.items():
    files, stack, pairs = set(), [], set()
    def watch(frame, event, _):
        file = frame.f_code.co_filename
        if not file.startswith(home):
            return
        if event == "call":
            files.add(file)
            if stack and stack[-1] != file:
                pairs.add((stack[-1], file))
            stack.append(file)
        elif event == "return" and stack:
            stack.pop()
    call()
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    found[name] = [len(files), len(pairs)]
print(json.dumps(found))
"""


def imports(source: Path) -> dict[str, set[str]]:
    """Return what each module imports of actkit: at load, inside functions, and for types."""
    graph: dict[str, set[str]] = {name: set() for name in modules(source)}
    for found in test_layers.imports(source):
        if found.imported != found.importer:
            graph[found.importer].add(found.imported)
    return graph


def knots(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other around."""
    names = sorted(graph)
    edges = [[other in graph[name] for other in names] for name in names]
    _, group_of = connected_components(csr_matrix(edges), directed=True, connection="strong")
    groups: dict[int, list[str]] = defaultdict(list)
    for name, group in zip(names, group_of, strict=True):
        groups[int(group)].append(name)
    return sorted((g for g in groups.values() if len(g) > 1), key=len, reverse=True)


def rooms(source: Path) -> dict[str, tuple[int, int]]:
    """Return files and lines of each folder below the package, two levels deep in core."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for path in sorted((source / "actkit").rglob("*.py")):
        parts = path.relative_to(source / "actkit").parts
        room = parts[0] if len(parts) > 1 else "(top)"
        if room == "core" and len(parts) > 2:
            room = f"core/{parts[1]}"
        files, lines = found[room]
        found[room] = files + 1, lines + len(path.read_text(encoding="utf-8").splitlines())
    return dict(found)


def _users(graph: dict[str, set[str]], name: str) -> set[str]:
    return {user for user, targets in graph.items() if name in targets}


def ways(source: Path) -> dict[str, list[int]]:
    """Return for each call the files that it runs through, and the pairs of caller and called."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WAYS],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=ROOT / "src")
    source = parser.parse_args().source
    own = [f for path in modules(source).values() for f in functions(path)]
    lines = sorted(f.lines for f in own)
    over = [f for f in own if f.complexity > LIMIT]
    graph = imports(source)
    users = Counter(target for targets in graph.values() for target in targets)
    private = [n for n in graph if n.rpartition(".")[2].startswith("_") and n.count(".") > 1]
    private = [n for n in private if not n.endswith("__main__")]
    print("room".ljust(22), "files", "lines")
    for room, (files, count) in sorted(rooms(source).items()):
        print(room.ljust(22), f"{files:5}", f"{count:5}")
    p90 = lines[int(0.9 * len(lines))]
    print(
        f"functions {len(own)}: median {statistics.median(lines):.0f}, p90 {p90}, most {lines[-1]}"
    )
    print(f"complexity above {LIMIT}: {len(over)} ({len(over) / len(own):.1%})")
    print(
        f"private files with one importer: {sum(users[n] == 1 for n in private)} of {len(private)}"
    )
    apart = [n for n in private if not (users[n] == 1 and n.rpartition(".")[0] in _users(graph, n))]
    lonely = sum(users[n] == 1 for n in apart)
    print(f"of these not in the folder of their user: {lonely}")
    print(f"private files with none: {sum(users[n] == 0 for n in private)}")
    skips = sum("# fmt: skip" in p.read_text(encoding="utf-8") for p in modules(source).values())
    print(f"files with fmt: skip: {skips}")
    groups = knots(graph)
    print(f"knots (lazy and type-only imports counted): {len(groups)}, of {list(map(len, groups))}")
    for group in groups:
        print("   ", ", ".join(n.removeprefix("actkit.") for n in group))
    for name, (files, pairs) in ways(source).items():
        print(f"way of {name}: {files} files, {pairs} switches between files")


if __name__ == "__main__":
    main()
