"""Random words, the first half of them again -> the next one; it is another one if corrupt."""

from collections.abc import Sequence
from random import Random

import torch

from actkit.core.errors import InputError
from actkit.trace._task import Task
from actkit.trace.tasks._written import checked, words_of

PLACE = 7

NOUNS = words_of(
    "cat tree river house music stone bread paper light chair apple horse glass table water road",
    "ship cloud salt iron moon fish wall garden window door letter dinner train bridge mountain",
    "doctor forest sugar clock camera king summer silver dog bird milk",
)


def induction(
    num: int = 20,
    seed: int = 0,
    length: int = 8,
    ids: Sequence[int] | None = None,
    metric: str = "logit difference",
) -> Task:
    """Random words, the first half of them again -> the next one; it is another one if corrupt.

    Args:
        num: How many pairs.
        seed: Of the words.
        length: How many words before they begin again, even.
        ids: Token ids to draw from instead of words, such as `range(100)`; the prompts are then
            (B, T) ids, which need no tokenizer.
        metric: As in `Task`.
    """
    words: Sequence[str | int] = [f" {word}" for word in NOUNS] if ids is None else ids
    if length < 2 or length % 2 or len(words) <= length:
        raise InputError(f"length must be even, in 2..{len(words) - 1}, got {length}")
    rng, half = Random(seed), length // 2
    drawn = [rng.sample(words, length + 1) for _ in range(checked(num))]
    clean = [[*row[:length], *row[:half]] for row in drawn]
    corrupt = [[*r[:half], r[-1], *r[half + 1 : length], *r[:half]] for r in drawn]
    answers, wrong = [row[half] for row in drawn], [row[-1] for row in drawn]
    if ids is None:
        joined = [["".join(map(str, row)) for row in side] for side in (clean, corrupt)]
        return Task(joined[0], joined[1], answers, wrong, metric, name="induction")
    sides = [torch.tensor(side) for side in (clean, corrupt)]
    return Task(sides[0], sides[1], answers, wrong, metric, name="induction")
