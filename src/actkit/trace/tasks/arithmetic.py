"""Additions below ten after three solved ones: "3 + 5 = " -> "8", another operand corrupt."""

from random import Random

from actkit.trace._task import Task
from actkit.trace.tasks._written import Row, written

PLACE = 3


def arithmetic(num: int = 20, seed: int = 0, metric: str = "logit difference") -> Task:
    """Additions below ten after three solved ones: "3 + 5 = " -> "8", another operand corrupt.

    Args:
        num: How many pairs.
        seed: Of the operands.
        metric: As in `Task`.
    """
    solved = "2 + 2 = 4\n1 + 5 = 6\n3 + 4 = 7\n"
    sums = [(a, b) for a in range(1, 9) for b in range(1, 10 - a)]

    def write(rng: Random) -> Row:
        a, b = rng.choice(sums)
        c, d = rng.choice([(c, d) for c, d in sums if (c == a) != (d == b)])
        return Row(f"{solved}{a} + {b} = ", f"{solved}{c} + {d} = ", str(a + b), str(c + d))

    return written(num, seed, write, "arithmetic", metric)
