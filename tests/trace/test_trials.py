"""A trial is of one network: all that takes a network and a trial refuses that of another one."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import actkit as ak
from actkit.catalog import methods
from actkit.core.errors import InputError
from actkit.core.folder import module_name
from actkit.model import Model
from actkit.trace import Localizer, Task, Trial
from actkit.worlds.toy_transformer import reader

FOLDER = Path(ak.__file__).parent / "trace"
TASK = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])


def takes_trials() -> Iterator[Any]:
    """Yield every public function that takes a network and a trial, by its annotations."""
    for path in sorted(FOLDER.rglob("*.py")):
        module = importlib.import_module(module_name(path.relative_to(FOLDER.parents[1])))
        for name, made in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(made):
                continue
            if made.__module__ != module.__name__ or name == "as_trial":
                continue
            kinds = {k: p.annotation for k, p in inspect.signature(made).parameters.items()}
            trials = [k for k, kind in kinds.items() if "Trial" in str(kind)]
            networks = [k for k, kind in kinds.items() if kind in (Model, "Model")]
            if trials and networks:
                yield pytest.param(made, networks[0], trials, id=name)


def localizers() -> Iterator[Any]:
    for entry in methods("trace"):
        made = entry.load()
        if isinstance(made, type) and issubclass(made, Localizer):
            needed = inspect.signature(made).parameters.values()
            if all(s.default is not inspect.Parameter.empty for s in needed):
                yield pytest.param(made, id=entry.name)


FUNCTIONS = [*takes_trials()]


def test_the_functions_of_the_family_are_found() -> None:
    names = {p.id for p in FUNCTIONS}
    assert {"subspace_patch", "das", "illusion_test", "writers", "circuit_scores"} <= names
    assert {"path_patch", "feature_relevance", "minimal_pair_scan", "double_dissociation"} <= names


@pytest.mark.parametrize(("function", "network", "trials"), FUNCTIONS)
def test_a_trial_of_another_network_is_refused_first(
    function: Callable[..., Any], network: str, trials: list[str]
) -> None:
    one, two = Model(reader(at=(1, 1))), Model(reader(at=(1, 2)))
    required = {
        name: object()  # refused before anything else is looked at
        for name, p in inspect.signature(function).parameters.items()
        if p.default is inspect.Parameter.empty
    }
    given = {**required, network: two, **dict.fromkeys(trials, TASK.on(one))}
    with pytest.raises(InputError, match=r"the trial is of .* not of "):
        function(**given)


@pytest.mark.parametrize("made", [*localizers()])
def test_a_localizer_refuses_it_too(made: Callable[[], Localizer]) -> None:
    one, two = Model(reader(at=(1, 1))), Model(reader(at=(1, 2)))
    with pytest.raises(InputError, match=r"the trial is of .* not of "):
        made()(two, TASK.on(one))


def test_a_trial_of_the_network_gives_what_its_task_gives() -> None:
    m = Model(reader(at=(1, 1)))
    v = torch.nn.functional.pad(torch.eye(6)[3] - torch.eye(6)[4], (0, 14))
    found = [ak.get("subspace_patch")(m, t, "z.1.1", v) for t in (TASK, TASK.on(m))]
    assert found[0].effect == found[1].effect == pytest.approx(1.0)
    assert isinstance(TASK.on(m), Trial)
