"""Worlds are public: each name opens, says what is known of it, and comes out the same again."""

import ast
from importlib import import_module
from pathlib import Path

import pytest
import torch

import actkit as ak
from actkit import worlds

RECORDS = {"IclBatch", "Episodes", "Prompts", "Trees", "Wiring", "Probe", "linear", "set_head"}
"""What other worlds return or take; their examples show it."""


@pytest.mark.parametrize("name", worlds.__all__)
def test_a_world_is_documented(name: str) -> None:
    made = getattr(ak.worlds, name)
    assert made.__doc__
    assert name in RECORDS or "Example:" in made.__doc__


def test_every_world_is_shown() -> None:
    """A public class or function of a file that the package does not show would have no door."""
    shown = set(worlds.__all__) | {"AttentionLayer"}
    for path in sorted(Path(str(worlds.__file__)).parent.glob("[!_]*.py")):
        module = import_module(f"actkit.worlds.{path.stem}")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert hasattr(module, node.name)
                assert node.name in shown, f"{node.name} of {path.name}"


@pytest.mark.parametrize("program", ["pointer", "duplicate", "fraction", "vote"])
def test_programs_answer_alike_for_the_same_prompt(program: str) -> None:
    made = getattr(worlds, program)()
    prompts = made.draw(17, torch.Generator().manual_seed(3))
    assert torch.equal(made.answers(prompts), made.answers(prompts.clone()))
    clean, corrupt = made.pairs(9, seed=1)
    assert (made.answers(clean) != made.answers(corrupt)).all()
    assert torch.equal(made.pairs(9, seed=1)[0], clean)
    assert not torch.equal(made.pairs(9, seed=2)[0], clean)
