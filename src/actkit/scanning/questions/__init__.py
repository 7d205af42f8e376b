"""The questions that a scan asks: one file each, found by reading this folder.

To add one, write `questions/<key>.py` with a `QUESTION` in it, and its test.
"""

from importlib import import_module
from pkgutil import iter_modules

from actkit.scanning.questions._base import Question


def find_questions() -> tuple[Question, ...]:
    """Return the questions of this folder in their order.

    Raises:
        ValueError: Two questions have one place or one key.
    """
    files = [found.name for found in iter_modules(__path__) if not found.name.startswith("_")]
    asked: list[Question] = [import_module(f"{__name__}.{file}").QUESTION for file in files]
    for what in ("order", "key"):
        each = [getattr(question, what) for question in asked]
        twice = sorted({value for value in each if each.count(value) > 1})
        if twice:
            raise ValueError(f"every question needs its own {what}, got {twice[0]} twice")
    return tuple(sorted(asked, key=lambda question: question.order))


QUESTIONS = find_questions()
