"""A trained network is trained once for each code, arguments and arithmetic, and not twice."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from actkit.digests import Code
from tests._kept import kept

FILES = {
    "src/actkit/__init__.py": "",
    "tests/toy.py": "from tests import part\n",
    "tests/part.py": "import tests.below\n",
    "tests/below.py": "x = 1\n",
    "tests/beside.py": "x = 1\n",
}


def repository(root: Path, **changed: str) -> Code:
    for name, text in (FILES | {f"tests/{k}.py": v for k, v in changed.items()}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Code(root)


def toy(calls: list[object]) -> Callable[..., nn.Linear]:
    def made(data: Tensor, *, bias: float = 0.0) -> nn.Linear:
        calls.append(data)
        net = nn.Linear(2, 2)  # from the global generator, as a careless trainer would
        net.weight.data = data + bias
        return net

    made.__module__ = "tests.toy"
    return made


def test_the_same_is_made_once(tmp_path: Path) -> None:
    calls: list[object] = []
    make = kept(toy(calls), tmp_path / "kept", repository(tmp_path))
    data = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    state = torch.random.get_rng_state()
    first, again = make(data), make(data.clone())
    assert len(calls) == 1 and again is not first
    assert torch.equal(first.weight, data) and torch.equal(again.weight, data)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(make(data, bias=0.5).weight, data + 0.5)
    assert torch.equal(make(data.double()).weight, data.double())
    assert torch.equal(make(data[:1]).weight, data[:1])
    assert len(calls) == 4
    assert sorted(p.suffix for p in (tmp_path / "kept").iterdir()) == [".lock"] * 4 + [".pt"] * 4


@pytest.mark.parametrize(("file", "num"), [("toy", 2), ("part", 2), ("below", 2), ("beside", 1)])
def test_another_source_is_another_network(file: str, num: int, tmp_path: Path) -> None:
    calls: list[object] = []
    data = torch.ones(2, 2)
    kept(toy(calls), tmp_path / "kept", repository(tmp_path))(data)
    text = FILES[f"tests/{file}.py"] + "y = 2\n"
    kept(toy(calls), tmp_path / "kept", repository(tmp_path, **{file: text}))(data)
    assert len(calls) == num


def test_another_number_of_threads_is_another_arithmetic(tmp_path: Path) -> None:
    calls: list[object] = []
    make, threads = kept(toy(calls), tmp_path, repository(tmp_path)), torch.get_num_threads()
    make(torch.ones(2, 2))
    torch.set_num_threads(threads + 1)
    try:
        make(torch.ones(2, 2))
    finally:
        torch.set_num_threads(threads)
    assert len(calls) == 2


def test_those_who_come_at_once_wait_for_the_first(tmp_path: Path) -> None:
    calls: list[object] = []
    make = kept(toy(calls), tmp_path / "kept", repository(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        nets = list(pool.map(make, [torch.ones(2, 2)] * 4))
    assert len(calls) == 1 and all(torch.equal(net.weight, torch.ones(2, 2)) for net in nets)


def test_an_error_keeps_nothing(tmp_path: Path) -> None:
    make = kept(toy([]), tmp_path / "kept", repository(tmp_path))
    with pytest.raises(RuntimeError, match="size of tensor"):
        make(torch.ones(2, 2), bias=torch.ones(3))
    assert list((tmp_path / "kept").glob("*.pt")) == []
    with pytest.raises(TypeError, match=r"only numbers, texts and tensors .* got <class 'dict'>"):
        make({})
