from typing import Any

import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read.network.task_inference import TaskMixture
from actkit.steer.inputs.conjugate_prompt import conjugate_prompt
from tests._evidence import Evidence
from tests.core import tiny


def scaled(gamma: float) -> Any:
    return conjugate_prompt(lambda x, y: (x, gamma * y), lambda answer: answer / gamma)


@pytest.mark.paper("understanding-catastrophic-forgetting-language")
def test_scaling_brings_back_what_a_skewed_prior_took(evidence: Evidence) -> None:
    """Fine-tuning is a prior that is skewed to the discrete tasks; all predictors are exact."""
    gen = torch.Generator().manual_seed(0)
    tasks_KD = torch.randn(4, 5, generator=gen, dtype=torch.float64)
    before, after = TaskMixture(tasks_KD, share=0.5), TaskMixture(tasks_KD, share=0.999)
    many = before.draw(3000, 10, 8, share=0.0, seed=1)
    assert many.target_BQ is not None
    prompt = many.x_BND.double(), many.y_BN.double()
    query_BQD, target_BQ = many.query_BQD.double(), many.target_BQ.double()

    def error(weights_BD: Tensor) -> float:
        return float(((query_BQD @ weights_BD[..., None])[..., 0] - target_BQ).square().mean())

    kept, lost = error(before.weights(*prompt)), error(after.weights(*prompt))
    evidence("rise of the error on continuous tasks with a prior of 0.999 (share)",
             measured=lost / kept - 1, at_least=0.5)  # fmt: skip
    found = error(scaled(2.0)(after.weights)(*prompt))
    evidence("recovered by labels times 2 (share of the rise)",
             measured=(lost - found) / (lost - kept), at_least=0.3)  # fmt: skip
    change = (scaled(1.0)(after.weights)(*prompt) - after.weights(*prompt)).abs().max()
    evidence("change by labels times 1", measured=change, at_most=0)


def test_ridge_regression_does_not_change() -> None:
    mixture = TaskMixture(torch.ones(1, 3))
    prompts = mixture.draw(20, 6, 1)
    given = prompts.x_BND.double(), prompts.y_BN.double()
    torch.testing.assert_close(scaled(-3.0)(mixture.ridge)(*given), mixture.ridge(*given))


def test_generate_is_asked_in_another_language_and_its_answer_translated_back() -> None:
    model = tiny.model()

    def shifted(by: int) -> Any:
        """Translate w7 to w8, and so on; the last word is the first again."""
        size = tiny.WORDS - 1

        def translate(texts: list[str]) -> list[str]:
            words = [[(int(w[1:]) - 1 + by) % size + 1 for w in t.split()] for t in texts]
            return [" ".join(f"w{i}" for i in row) for row in words]

        return translate

    generate = conjugate_prompt(shifted(5), shifted(-5))(model.generate)
    expected = shifted(-5)(model.generate(shifted(5)(tiny.PROMPTS), max_new_tokens=6))
    assert generate(tiny.PROMPTS, max_new_tokens=6) == expected
    plain = model.generate(tiny.PROMPTS, max_new_tokens=6)
    assert expected != plain
    same = conjugate_prompt(shifted(0), shifted(0))(model.generate)
    assert same(tiny.PROMPTS, max_new_tokens=6) == plain


def test_the_order_is_transform_then_predict_then_inverse() -> None:
    told: list[str] = []

    def step(name: str, value: str) -> str:
        told.append(name)
        return f"{name}({value})"

    ask = conjugate_prompt(lambda p: step("s", p), lambda a: step("back", a))
    assert ask(lambda p, end="": step("f", p) + end)("x", end="!") == "back(f(s(x))!)"
    assert told == ["s", "f", "back"]


@pytest.mark.parametrize("name", ["transform", "inverse"])
def test_what_is_no_function_is_refused(name: str) -> None:
    given: dict[str, Any] = {"transform": abs, "inverse": abs, name: 2.0}
    with pytest.raises(InputError, match=f"the {name} must be a function, got float"):
        conjugate_prompt(**given)
