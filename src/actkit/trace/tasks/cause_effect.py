"""Effects of causes: "Because Tom was sick, he went to the" -> " hospital"."""

from random import Random

from actkit.trace._task import Task
from actkit.trace.tasks._written import MEN, WOMEN, Row, written

PLACE = 6

CAUSES = {
    "hungry": "bakery",
    "sick": "hospital",
    "thirsty": "well",
    "religious": "church",
    "young": "school",
    "curious": "library",
    "guilty": "police",
    "bored": "cinema",
}
"""Where each state of mind or body sends people; for SmolLM2 more than any other one does."""


def cause_effect(num: int = 20, seed: int = 0, metric: str = "logit difference") -> Task:
    """Effects of causes: "Because Tom was sick, he went to the" -> " hospital".

    The corrupt prompt has another cause, of which the answer is nonsense and the wrong one is not.

    Args:
        num: How many pairs.
        seed: Of causes and names.
        metric: As in `Task`.
    """

    def write(rng: Random) -> Row:
        name, pronoun = rng.choice([*((m, "he") for m in MEN), *((w, "she") for w in WOMEN)])
        causes = rng.sample(list(CAUSES), 2)
        clean, corrupt = (f"Because {name} was {cause}, {pronoun} went to the" for cause in causes)
        return Row(clean, corrupt, *(f" {CAUSES[cause]}" for cause in causes))

    return written(num, seed, write, "cause and effect", metric)
