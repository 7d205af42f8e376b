"""Later years: "The war lasted from the year 1752 to the year 17" -> "6", "7", "8" or "9"."""

from random import Random

from actkit.trace._task import Task
from actkit.trace.tasks._written import Row, words_of, written

PLACE = 2

EVENTS = words_of("war siege plague drought strike storm reign voyage crisis famine trial tour")


def greater_than(num: int = 20, seed: int = 0, metric: str = "probability difference") -> Task:
    """Later years: "The war lasted from the year 1752 to the year 17" -> "6", "7", "8" or "9".

    Digits are tokens of their own, so the tens decide; the decade itself is on neither side, and
    the wrong ones lie before it. The corrupt prompt starts in the first decade of the century.

    Args:
        num: How many pairs.
        seed: Of the events and years.
        metric: As in `Task`.
    """

    def write(rng: Random) -> Row:
        event, century = rng.choice(EVENTS), rng.choice(("16", "17", "18"))
        tens, ones = rng.randint(2, 7), rng.randint(1, 8)
        text = f"The {event} lasted from the year {century}{{}}{ones} to the year {century}"
        later, earlier = (tuple(map(str, r)) for r in (range(tens + 1, 10), range(tens)))
        return Row(text.format(tens), text.format(0), later, earlier)

    return written(num, seed, write, "greater than", metric)
