"""What is asked next gets its own answer: nothing is kept between calls by name or by address."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import actkit as ak
from actkit.catalog import FAMILIES
from actkit.core.errors import DataError
from actkit.model import Model
from actkit.trace import Task
from actkit.trace.nodes.patch import Patch
from tests.core import tiny

SOURCE = Path(__file__).parents[1] / "src" / "actkit"
PURE = {("read", "subsets"), ("read", "splits"), ("read", "_slopes")}
"""Cached functions of a family: combinatorics of a few integers, the same in any call."""
CHANGERS = {"append", "add", "update", "setdefault", "extend", "pop", "clear", "insert"}


def network(seed: int = 0) -> Model:
    """Return a tiny Llama, the embeddings of its words in another order for each seed."""
    m = tiny.model()
    net: Any = m.module
    weight = net.get_input_embeddings().weight
    weight.data = weight.data.roll(seed, 0)
    return m


def task(m: Model, length: int, seed: int) -> Task:
    """Return pairs of random tokens that differ in two places; the network is always right."""
    gen = torch.Generator().manual_seed(seed)
    clean = torch.randint(2, 11, (8, length), generator=gen)
    corrupt = clean.clone()
    corrupt[:, 0] = 2 + (clean[:, 0] - 1 + seed) % 9
    corrupt[:, 2] = 2 + (clean[:, 2] + 1) % 9
    logits = m.run(clean, logits=True).logits
    return Task(clean, corrupt, logits[:, -1].argmax(-1), logits[:, -1].argmin(-1), name="mine")


def test_exact_patching_agrees_with_itself_on_the_next_task_of_the_same_name() -> None:
    m = network()
    for own in (task(m, 5, 0), task(m, 5, 1), task(m, 9, 2)):
        board = ak.compare("trace", m, task=own, methods={"mine": Patch("heads")}, seeds=[0])
        found = board.scores()["mine"]
        for kind in ("heads", "stream", "MLPs"):
            assert found[f"agreement, {kind}"].mean == pytest.approx(1.0, abs=1e-5)
        assert found["top heads shared"].mean == 1.0


def test_exact_patching_agrees_with_itself_on_the_next_network() -> None:
    for seed in range(4):  # a network that is gone may leave its address to the next
        m = network(seed)
        own = task(m, 5, 0)
        board = ak.compare("trace", m, task=own, methods={"mine": Patch("heads")}, seeds=[0])
        assert board.scores()["mine"]["agreement, heads"].mean == pytest.approx(1.0, abs=1e-5)
        del m, own, board


def test_exact_patching_runs_once_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    plain = Patch.__call__

    def counted(*args: Any) -> Any:
        ran.append(args[0])
        return plain(*args)

    monkeypatch.setattr(Patch, "__call__", counted)
    m = network()
    ak.compare("trace", m, task=task(m, 5, 0), methods=["random", "eap"], seeds=2)
    assert len(ran) == 2 * 3  # heads, MLPs and stream, whatever the number of methods


def test_a_log_is_not_taken_for_that_of_another_task_of_the_same_name(tmp_path: Path) -> None:
    m, log = network(), tmp_path / "runs.jsonl"
    ak.compare("trace", m, task=task(m, 5, 0), methods=["random"], seeds=1, log=log)
    again = ak.compare("trace", m, task=task(m, 5, 0), methods=["random"], seeds=1, log=log)
    assert len(again.runs) == 1 and len(log.read_text().splitlines()) == 2
    with pytest.raises(DataError, match="a log is of one comparison"):
        ak.compare("trace", m, task=task(m, 5, 1), methods=["random"], seeds=1, log=log)


def trees() -> Iterator[tuple[str, Path, ast.Module]]:
    for family in FAMILIES:
        for path in sorted((SOURCE / family).rglob("*.py")):
            yield family, path, ast.parse(path.read_text(encoding="utf-8"))


def test_no_family_remembers_what_it_was_asked() -> None:
    found = [
        f"{path.relative_to(SOURCE)}: {said}"
        for family, path, tree in trees()
        for said in remembers(tree, family)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "KEPT = {}\ndef f(x):\n    KEPT[x] = 1",
        "KEPT = []\ndef f(x):\n    KEPT.append(x)",
        "def f(x):\n    global KEPT\n    KEPT = x",
        "@lru_cache(maxsize=4)\ndef f(model): ...",
        "@functools.cache\ndef f(model): ...",
        "class P(Protocol):\n    def measure(self, x):\n        self.kept = x",
        "class P(Protocol):\n    def measure(self, x):\n        self.kept[x] = 1",
    ],
)
def test_the_check_finds_what_remembers(code: str) -> None:
    assert len(list(remembers(ast.parse(code), "trace"))) == 1


def remembers(tree: ast.Module, family: str) -> Iterator[str]:
    """Yield what of a file lives on between calls: globals, caches, attributes of a protocol."""
    known = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"global {', '.join(node.names)}"
        if isinstance(node, ast.FunctionDef):
            if is_cached(node) and (family, node.name) not in PURE:
                yield f"{node.name} is cached"
            yield from (f"{node.name} changes {n}" for n in changed(node) if n in known)
        if isinstance(node, ast.ClassDef) and "Protocol" in {ast.unparse(b) for b in node.bases}:
            yield from (f"{node.name} keeps {n}" for n in kept(node))


def is_cached(node: ast.FunctionDef) -> bool:
    calls = [mark.func if isinstance(mark, ast.Call) else mark for mark in node.decorator_list]
    return any(ast.unparse(c).rpartition(".")[2] in ("cache", "lru_cache") for c in calls)


def changed(node: ast.FunctionDef) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Subscript) and isinstance(part.ctx, ast.Store):
            if isinstance(part.value, ast.Name):
                yield part.value.id
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute):
            owner = part.func.value
            if part.func.attr in CHANGERS and isinstance(owner, ast.Name):
                yield owner.id


def kept(node: ast.ClassDef) -> Iterator[str]:
    for part in ast.walk(node):
        if not (
            isinstance(part, ast.Attribute | ast.Subscript) and isinstance(part.ctx, ast.Store)
        ):
            continue
        owner = part.value
        if isinstance(owner, ast.Attribute):
            owner = owner.value
        if isinstance(owner, ast.Name) and owner.id == "self":
            yield ast.unparse(part)
