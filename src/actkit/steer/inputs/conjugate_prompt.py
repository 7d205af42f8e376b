"""Ask in another form, far from what fine-tuning saw, and translate the answer back."""

from collections.abc import Callable
from typing import Any, TypeVar

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.steer._base import InputSteering

A = TypeVar("A")


@method(source="Kotha et al. 2023, arXiv:2309.10105, section 3", interface=InputSteering)
def conjugate_prompt(
    transform: Callable[..., Any], inverse: Callable[[A], A]
) -> Callable[[Callable[..., A]], Callable[..., A]]:
    """Return what turns a predictor into the same predictor, asked in another form.

    Fine-tuning moves which task a network takes a prompt for, most of all near the prompts that
    it saw. A transform s that needs the same capability, but looks unlike them, brings the old
    answer back: s^-1(predictor(s(prompt))). For regression s scales the labels and s^-1 divides
    the answer; for language models both are translations. As in the paper.

    Args:
        transform: s. It takes the prompt and returns another; a tuple is given to the predictor
            as several arguments.
        inverse: s^-1, of the predictor's answer.

    Returns:
        A function of a predictor (of a language model, `model.generate`). It returns the
        conjugated predictor, which hands keyword arguments on as they are.

    Raises:
        InputError: One of the two is no function.

    Example:
        >>> def capped(y, cap=4):
        ...     return min(y, cap)
        >>> in_tens = conjugate_prompt(lambda y: y / 10, lambda answer: answer * 10)(capped)
        >>> capped(30), in_tens(30), in_tens(30, cap=2)
        (4, 30.0, 20)
    """
    for name, given in (("transform", transform), ("inverse", inverse)):
        if not callable(given):
            raise InputError(f"the {name} must be a function, got {type(given).__name__}")

    def conjugated(predictor: Callable[..., A]) -> Callable[..., A]:
        def ask(*prompt: Any, **settings: Any) -> A:
            moved = transform(*prompt)
            moved = moved if isinstance(moved, tuple) else (moved,)
            return inverse(predictor(*moved, **settings))

        return ask

    return conjugated
