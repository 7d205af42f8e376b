"""Pronouns of names: "So Mary is a really great friend, isn't" -> " she", against " he"."""

from random import Random

from actkit.trace._task import Task
from actkit.trace.tasks._written import MEN, WOMEN, Row, words_of, written

PLACE = 5

FRIENDS = words_of("friend cook teacher dancer writer doctor singer neighbor lawyer runner")


def gendered_pronouns(num: int = 20, seed: int = 0, metric: str = "logit difference") -> Task:
    """Pronouns of names: "So Mary is a really great friend, isn't" -> " she", against " he".

    Args:
        num: How many pairs; men and women take turns at random.
        seed: Of the names.
        metric: As in `Task`.
    """

    def write(rng: Random) -> Row:
        friend = rng.choice(FRIENDS)
        sides = [(rng.choice(MEN), " he"), (rng.choice(WOMEN), " she")]
        rng.shuffle(sides)
        clean, corrupt = (f"So {name} is a really great {friend}, isn't" for name, _ in sides)
        return Row(clean, corrupt, sides[0][1], sides[1][1])

    return written(num, seed, write, "gendered pronouns", metric)
