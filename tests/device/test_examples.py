"""The examples of all docstrings with their networks on the pretended device.

Every `Model` that an example makes puts its network there; what else the example makes, a user's
vectors, tokens and masks, stays on the CPU. The example must print what it prints on the CPU.
"""

import doctest
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from actkit.core.folder import module_name
from actkit.model import Model
from tests.pretended_device import DEVICE, Pretended

SOURCE = Path(__file__).parents[2] / "src"
FAMILIES = ("read", "find", "trace", "steer", "guard", "shrink", "nn")
REAL = ("smollm2", "minilm", "lite0", "texts()", "ak.data")
"""What opens a network or a corpus that takes seconds."""
OWN_CALLS = {"actkit.steer.weights.srmu.SRMU"}
"""Examples that call their network by themselves, with a CPU tensor."""


def examples() -> Iterator[doctest.DocTest]:
    """Yield each docstring's example of the families."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for family in FAMILIES:
        for path in sorted((SOURCE / "actkit" / family).rglob("*.py")):
            if ">>>" in path.read_text():
                found = finder.find(import_module(module_name(path.relative_to(SOURCE))))
                yield from (test for test in found if _small(test))


def _small(test: doctest.DocTest) -> bool:
    source = "".join(e.source for e in test.examples)
    opens = "Model(" in source or "ak.open(" in source
    return opens and test.name not in OWN_CALLS and not any(real in source for real in REAL)


@pytest.fixture(autouse=True)
def models_there(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Model.__init__

    def moved(self: Model, module: nn.Module, *args: Any, **settings: Any) -> None:
        made(self, module.to(DEVICE), *args, **settings)

    monkeypatch.setattr(Model, "__init__", moved)
    monkeypatch.setattr(Pretended, "__repr__", lambda x: repr(x.cpu()))


@pytest.mark.parametrize("test", list(examples()), ids=lambda test: test.name[7:])
def test_an_example_says_the_same(test: doctest.DocTest) -> None:
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
        test, out=said.append, clear_globs=False
    )
    assert not said, "".join(said)
