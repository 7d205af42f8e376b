"""Every tensor that is made from nothing names its device, or stands on a list with the reason.

What a network's tensor meets must be where the network is. `torch.zeros(n)` is on the CPU, and
nothing on a machine without an accelerator tells the two apart.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.made_on_the_cpu import REASONS

SOURCE = Path(__file__).parent.parent / "src" / "actkit"
FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "from_numpy", "full",
    "hamming_window", "hann_window", "linspace", "logspace", "normal", "ones", "rand", "randint",
    "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices",
    "zeros",
}  # fmt: skip
ALREADY_TENSORS = {"logits", "tokens", "valid", "plus"}
"""Fields that hold a tensor or None; `as_tensor` only tells the type checker which."""


def unnamed(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield the function, line and call of each tensor that is made on no device by name.

    Named is `device=`, and what is moved at once: `torch.eye(n).to(x)`. A draw from a generator
    is made where the generator is. A single number meets tensors of any device.
    """
    tree = ast.parse(source)
    moved = {
        id(node.func.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _moves(node)
    }

    def visit(node: ast.AST, name: str) -> Iterator[tuple[str, int, str]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            own = f"{name}.{child.name}".strip(".") if named else name  # type: ignore[attr-defined]
            if isinstance(child, ast.Call) and _makes(child) and id(child) not in moved:
                yield own, child.lineno, ast.unparse(child)
            yield from visit(child, own)

    yield from visit(tree, "")


def _moves(node: ast.Call) -> bool:
    """Say whether a call is `.to` with a tensor or a device, not with a dtype alone."""
    func = node.func
    if not isinstance(func, ast.Attribute) or func.attr != "to" or not (node.args or node.keywords):
        return False
    given = [ast.unparse(a) for a in node.args]
    return any(k.arg == "device" for k in node.keywords) or any(
        not (g.startswith("torch.") or g.endswith("dtype")) for g in given
    )


def _makes(node: ast.Call) -> bool:
    """Say whether a call makes a tensor from nothing without a device."""
    func = node.func
    if not isinstance(func, ast.Attribute) or not isinstance(func.value, ast.Name):
        return False
    if func.value.id != "torch" or func.attr not in FACTORIES:
        return False
    if {k.arg for k in node.keywords} & {"device", "generator"} or _is_number(node):
        return False
    first = node.args[0] if node.args else None
    return not (
        func.attr == "as_tensor"
        and isinstance(first, ast.Attribute)
        and first.attr in ALREADY_TENSORS
    )


def _is_number(node: ast.Call) -> bool:
    """Say whether what is made has no axis: the shape is (), or the value a number."""
    if not node.args or not isinstance(node.func, ast.Attribute):
        return False
    first = node.args[0]
    shape = isinstance(first, ast.Tuple) and not first.elts
    number = node.func.attr in ("tensor", "scalar_tensor") and isinstance(first, ast.Constant)
    return shape or number


def found() -> dict[str, list[str]]:
    """Return what is made without a device, by file and function."""
    places: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        file = path.relative_to(SOURCE).as_posix()
        for name, line, call in unnamed(path.read_text()):
            places.setdefault(f"{file}:{name}", []).append(f"line {line}: {call}")
    return places


def excused(place: str) -> list[str]:
    """Return the entries of the list that speak of a place: its function's, or its file's."""
    return [key for key in (place, place.partition(":")[0]) if key in REASONS]


def test_every_tensor_names_its_device() -> None:
    missing = {place: calls for place, calls in found().items() if not excused(place)}
    lines = [f"{place}, {call}" for place, calls in missing.items() for call in calls]
    assert not lines, "name the device, or give the reason in tests/made_on_the_cpu.py:\n" + (
        "\n".join(lines)
    )


def test_the_list_is_not_stale() -> None:
    used = {key for place in found() for key in excused(place)}
    assert not sorted(set(REASONS) - used), "these entries speak of nothing any more"
    assert all(reason.strip() for reason in REASONS.values())


@pytest.mark.parametrize(
    ("code", "num"),
    [
        ("torch.zeros(3)", 1),
        ("torch.arange(n)[None]", 1),
        ("torch.as_tensor(values)", 1),
        ("torch.eye(3).to(torch.float64)", 1),
        ("torch.eye(3).to(x.dtype)", 1),
        ("torch.from_numpy(array)", 1),
        ("f(torch.ones(torch.tensor([2])))", 2),
        ("torch.zeros(3, device=x.device)", 0),
        ("torch.eye(3).to(x)", 0),
        ("torch.eye(3).to(x.device, torch.float64)", 0),
        ("torch.randn(3, generator=gen)", 0),
        ("torch.zeros(())", 0),
        ("torch.tensor(2.0)", 0),
        ("rec.logits", 0),
        ("torch.zeros_like(x) + x.new_ones(3)", 0),
    ],
)
def test_what_counts(code: str, num: int) -> None:
    assert len(list(unnamed(f"def f():\n    {code}\n"))) == num
