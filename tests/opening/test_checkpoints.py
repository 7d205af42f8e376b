"""Checkpoints: the same networks from every kind of source, left as they were."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import ModelError
from actkit.opening.checkpoints import Checkpoints
from tests.core import tiny

STEPS = (2, 10, 100)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.ReLU())


def weight(model: ak.Model) -> Tensor:
    first = model.module.get_parameter("0.weight")
    return first.detach().clone()


def train() -> Iterator[tuple[int, nn.Module]]:
    module = net()
    for step in STEPS:
        nn.init.constant_(module.get_parameter("0.weight"), step)
        module.train()
        module[1].eval()
        yield step, module
        assert module.training and not module[1].training, "its own modes must come back"


def folder(path: Path, suffix: str) -> Path:
    for step in STEPS:
        module = net()
        nn.init.constant_(module.get_parameter("0.weight"), step)
        file = path / f"net-step{step}{suffix}"
        save: Any = save_file if suffix == ".safetensors" else torch.save
        save(module.state_dict(), file)
    return path


def test_a_training_loop_is_read_step_by_step_at_rest() -> None:
    found = Checkpoints(train).over(lambda m: (float(weight(m)[0, 0]), m.module.training))
    assert found == {step: (step, False) for step in STEPS}


def test_a_function_is_read_again_and_a_running_loop_once() -> None:
    again = Checkpoints(train)
    assert len(list(again)) == len(list(again)) == len(STEPS)
    once = Checkpoints(train())
    assert len(list(once)) == len(STEPS)
    with pytest.raises(ModelError, match="can be read once"):
        list(once)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_are_in_order_of_their_steps_and_the_network_is_not_changed(
    tmp_path: Path, suffix: str
) -> None:
    into = net(seed=1)
    before = weight(ak.Model(into))
    found = Checkpoints(folder(tmp_path, suffix), into=into).over(lambda m: float(weight(m).max()))
    assert found == {step: step for step in STEPS}
    assert torch.equal(weight(ak.Model(into)), before)


def test_folders_of_transformers_checkpoints(tmp_path: Path) -> None:
    written = {}
    for step in STEPS:
        module = tiny.llama()
        module.lm_head.weight.data.mul_(step)
        module.save_pretrained(tmp_path / f"checkpoint-{step}")
        written[step] = module.lm_head.weight.detach()
    found = Checkpoints(tmp_path, tokenizer=tiny.tokenizer()).over(
        lambda m: m.module.get_parameter("lm_head.weight")
    )
    assert list(found) == list(STEPS)
    for step in STEPS:
        assert torch.equal(found[step], written[step])


@pytest.mark.parametrize("keep", [lambda x: x, lambda x: [ak.Model(m) for m in x]])
def test_lists_count_and_mappings_say_their_steps(keep: Any) -> None:
    modules = keep([net(0), net(1)])
    assert [c.step for c in Checkpoints(modules)] == [0, 1]
    assert list(Checkpoints({7: modules[0], 9: modules[1]}).over(weight)) == [7, 9]


def test_an_error_in_the_reading_leaves_the_network_in_its_mode() -> None:
    module = net().train()

    def fail(_: ak.Model) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        Checkpoints([module]).over(fail)
    assert module.training


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ([], {}, "at least one network"),
        (lambda: iter(()), {}, "at least one network"),
        ("no-such-folder", {}, "must hold folders with a config.json"),
        ("no-such-folder", {"into": net()}, "must hold files of weights"),
        (3, {}, "got int"),
    ],
    ids=["empty list", "empty loop", "no folder", "no files", "a number"],
)
def test_bad_sources(source: Any, settings: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        list(Checkpoints(source, **settings))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.ones(9, 9)}, tmp_path / "a1.pt")
    with pytest.raises(ModelError, match=r"a1\.pt"):
        list(Checkpoints(tmp_path, into=net()))
    (tmp_path / "a1.pt").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"a1\.pt"):
        list(Checkpoints(tmp_path, into=net()))
