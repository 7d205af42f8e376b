"""Indirect objects with every ordered pair of eight names, in one sentence."""

from itertools import permutations

from actkit.trace import Task

NAMES = ("John", "Mary", "Tom", "Anna", "Paul", "Emma", "Jack", "Kate")
SENTENCE = "When {} and {} went to the store, {} gave a drink to"


def pairs(num: int | None = None) -> Task:
    """Return the first of 56 pairs, each against three other names (the ABC distribution)."""
    rows = list(permutations(range(8), 2))
    rows = sorted(rows, key=lambda r: ((r[1] - r[0]) % 8, r[0]))[:num]  # every name comes early
    clean, corrupt = [], []
    for a, b in rows:
        others = [NAMES[(b + i) % 8] for i in range(1, 8) if (b + i) % 8 != a]
        clean.append(SENTENCE.format(NAMES[a], NAMES[b], NAMES[b]))
        corrupt.append(SENTENCE.format(*others[:3]))
    answers, wrong = ([f" {NAMES[r[i]]}" for r in rows] for i in (0, 1))
    return Task(clean, corrupt, answers, wrong, name="indirect objects, 56 pairs")
