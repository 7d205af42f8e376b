"""Colors of things: "The pen is red, the cup is ... What color is the pen? The pen is"."""

from random import Random

from actkit.trace._task import Task
from actkit.trace.tasks._written import Row, words_of, written

PLACE = 4

THINGS = words_of("pen cup key book ball hat box bag coin ring fork door")

COLORS = words_of("red blue green black white yellow pink brown orange purple")


def colored_objects(num: int = 20, seed: int = 0, metric: str = "logit difference") -> Task:
    """Colors of things: "The pen is red, the cup is ... What color is the pen? The pen is".

    The corrupt prompt asks for another of the three things.

    Args:
        num: How many pairs.
        seed: Of things, colors and questions.
        metric: As in `Task`.
    """

    def write(rng: Random) -> Row:
        things, colors = rng.sample(THINGS, 3), rng.sample(COLORS, 3)
        a, b, c = (f"the {thing} is {color}" for thing, color in zip(things, colors, strict=True))
        told = f"{a.capitalize()}, {b}, and {c}."
        asked = rng.sample(range(3), 2)
        clean, corrupt = (
            f"{told} What color is the {things[i]}? The {things[i]} is" for i in asked
        )
        return Row(clean, corrupt, *(f" {colors[i]}" for i in asked))

    return written(num, seed, write, "colored objects", metric)
