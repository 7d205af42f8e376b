"""Run what is collected here with networks and activations on the pretended device."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from actkit.core.run.recording import Rows
from tests.core import tiny
from tests.pretended_device import pretended_device
from tests.read import test_contract as of_read
from tests.trace import test_contract as of_trace

MADE = (
    (tiny, ("llama", "gpt2")),
    (of_read, ("acts", "probs", "rows")),
    (of_trace, ("reader",)),
)
"""What makes the networks and the data of contract tests."""


@pytest.fixture(scope="module", autouse=True)  # no longer: tests of other folders follow
def device() -> Iterator[torch.device]:
    """Give the device, on which all of `MADE` is put."""
    with pretended_device() as there, pytest.MonkeyPatch.context() as patch:
        for module, names in MADE:
            for name in names:
                patch.setattr(module, name, _moved(getattr(module, name), there))
        for name in ("acts", "probs"):
            patch.setitem(of_read.MAKERS, name, getattr(of_read, name))
        yield there


def _moved(make: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    def made(*args: Any, **settings: Any) -> Any:
        found = make(*args, **settings)
        if not isinstance(found, Rows):
            return found.to(device)
        own = {f.name: getattr(found, f.name) for f in fields(found)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in own.items() if isinstance(v, Tensor)}
        return replace(found, **moved)

    return made
