"""Bundled tasks: pairs of prompts of which the one changes what the answer depends on.

Words were chosen to be single tokens of SmolLM2, and all prompts of a task to be of one length; on
another network `task.on(model)` says which are not. The same seed gives the same pairs, and a
longer list begins with a shorter one.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import Literal, NamedTuple

import torch

from actkit import data
from actkit.core.errors import InputError
from actkit.data import Cloze
from actkit.trace._task import Task
from actkit.trace._task_words import (
    CAUSES,
    COLORS,
    COUNTRIES,
    EVENTS,
    FRIENDS,
    MEN,
    NODES,
    NOUNS,
    THINGS,
    WOMEN,
)


def ioi(
    num: int = 20,
    seed: int = 0,
    corrupt: Literal["abc", "swap"] = "abc",
    template: int | None = 0,
    metric: str = "logit difference",
) -> Task:
    """Indirect objects: "When Mary and John met at the park, John handed a ball to" -> " Mary".

    Args:
        num: How many pairs.
        seed: Of the names and things.
        corrupt: "abc": three other names, so that neither answer is favoured; "swap": the second
            mention names the other person, so that the wrong answer becomes right.
        template: One of the eight sentences, so that positions mean the same in all pairs; None
            for all of them.
        metric: As in `Task`.
    """
    rows = data.ioi(num, seed, template)
    task = _of(rows, "indirect objects", metric)
    if corrupt == "abc":
        return task
    if corrupt != "swap":
        raise InputError(f"corrupt must be 'abc' or 'swap', got {corrupt!r}")
    return Task(task.clean, [_swapped(r) for r in rows], task.answers, task.wrong, metric,
                name="indirect objects, swapped")  # fmt: skip


def _swapped(row: Cloze) -> str:
    """Return the prompt with the other person's name at the second mention of the subject."""
    before, _, after = row.clean.rpartition(row.subject)
    return before + row.answer.strip() + after


def capitals(
    num: int | None = None, kind: str = "statement", metric: str = "logit difference"
) -> Task:
    """Capitals of countries: "The capital of France is" -> " Paris", against another country.

    Args:
        num: How many pairs; all 26 if None.
        kind: One of the four sentences: "statement", "city", "parliament", "visit".
        metric: As in `Task`.
    """
    rows = [r for r in data.capitals() if r.kind == kind and r.subject in COUNTRIES][:num]
    if not rows:
        raise InputError(f"kind must be one of the sentences of ak.data.capitals(), got {kind!r}")
    return _of(rows, "capitals", metric)


def greater_than(num: int = 20, seed: int = 0, metric: str = "probability difference") -> Task:
    """Later years: "The war lasted from the year 1752 to the year 17" -> "6", "7", "8" or "9".

    Digits are tokens of their own, so the tens decide; the decade itself is on neither side, and
    the wrong ones lie before it. The corrupt prompt starts in the first decade of the century.

    Args:
        num: How many pairs.
        seed: Of the events and years.
        metric: As in `Task`.
    """

    def write(rng: Random) -> _Row:
        event, century = rng.choice(EVENTS), rng.choice(("16", "17", "18"))
        tens, ones = rng.randint(2, 7), rng.randint(1, 8)
        text = f"The {event} lasted from the year {century}{{}}{ones} to the year {century}"
        later, earlier = (tuple(map(str, r)) for r in (range(tens + 1, 10), range(tens)))
        return _Row(text.format(tens), text.format(0), later, earlier)

    return _written(num, seed, write, "greater than", metric)


def arithmetic(num: int = 20, seed: int = 0, metric: str = "logit difference") -> Task:
    """Additions below ten after three solved ones: "3 + 5 = " -> "8", another operand corrupt.

    Args:
        num: How many pairs.
        seed: Of the operands.
        metric: As in `Task`.
    """
    solved = "2 + 2 = 4\n1 + 5 = 6\n3 + 4 = 7\n"
    sums = [(a, b) for a in range(1, 9) for b in range(1, 10 - a)]

    def write(rng: Random) -> _Row:
        a, b = rng.choice(sums)
        c, d = rng.choice([(c, d) for c, d in sums if (c == a) != (d == b)])
        return _Row(f"{solved}{a} + {b} = ", f"{solved}{c} + {d} = ", str(a + b), str(c + d))

    return _written(num, seed, write, "arithmetic", metric)


def colored_objects(num: int = 20, seed: int = 0, metric: str = "logit difference") -> Task:
    """Colors of things: "The pen is red, the cup is ... What color is the pen? The pen is".

    The corrupt prompt asks for another of the three things.

    Args:
        num: How many pairs.
        seed: Of things, colors and questions.
        metric: As in `Task`.
    """

    def write(rng: Random) -> _Row:
        things, colors = rng.sample(THINGS, 3), rng.sample(COLORS, 3)
        a, b, c = (f"the {thing} is {color}" for thing, color in zip(things, colors, strict=True))
        told = f"{a.capitalize()}, {b}, and {c}."
        asked = rng.sample(range(3), 2)
        clean, corrupt = (
            f"{told} What color is the {things[i]}? The {things[i]} is" for i in asked
        )
        return _Row(clean, corrupt, *(f" {colors[i]}" for i in asked))

    return _written(num, seed, write, "colored objects", metric)


def gendered_pronouns(num: int = 20, seed: int = 0, metric: str = "logit difference") -> Task:
    """Pronouns of names: "So Mary is a really great friend, isn't" -> " she", against " he".

    Args:
        num: How many pairs; men and women take turns at random.
        seed: Of the names.
        metric: As in `Task`.
    """

    def write(rng: Random) -> _Row:
        friend = rng.choice(FRIENDS)
        sides = [(rng.choice(MEN), " he"), (rng.choice(WOMEN), " she")]
        rng.shuffle(sides)
        clean, corrupt = (f"So {name} is a really great {friend}, isn't" for name, _ in sides)
        return _Row(clean, corrupt, sides[0][1], sides[1][1])

    return _written(num, seed, write, "gendered pronouns", metric)


def cause_effect(num: int = 20, seed: int = 0, metric: str = "logit difference") -> Task:
    """Effects of causes: "Because Tom was sick, he went to the" -> " hospital".

    The corrupt prompt has another cause, of which the answer is nonsense and the wrong one is not.

    Args:
        num: How many pairs.
        seed: Of causes and names.
        metric: As in `Task`.
    """

    def write(rng: Random) -> _Row:
        name, pronoun = rng.choice([*((m, "he") for m in MEN), *((w, "she") for w in WOMEN)])
        causes = rng.sample(list(CAUSES), 2)
        clean, corrupt = (f"Because {name} was {cause}, {pronoun} went to the" for cause in causes)
        return _Row(clean, corrupt, *(f" {CAUSES[cause]}" for cause in causes))

    return _written(num, seed, write, "cause and effect", metric)


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
    drawn = [rng.sample(words, length + 1) for _ in range(_checked(num))]
    clean = [[*row[:length], *row[:half]] for row in drawn]
    corrupt = [[*r[:half], r[-1], *r[half + 1 : length], *r[:half]] for r in drawn]
    answers, wrong = [row[half] for row in drawn], [row[-1] for row in drawn]
    if ids is None:
        joined = [["".join(map(str, row)) for row in side] for side in (clean, corrupt)]
        return Task(joined[0], joined[1], answers, wrong, metric, name="induction")
    sides = [torch.tensor(side) for side in (clean, corrupt)]
    return Task(sides[0], sides[1], answers, wrong, metric, name="induction")


def symbolic_paths(
    num: int = 20,
    seed: int = 0,
    depth: int = 2,
    branches: int = 2,
    metric: str = "logit difference",
) -> Task:
    """Paths in a tree: shuffled edges "A > B, B > C, ...", a goal and the root -> the next node.

    The root is the only node with several children, each the start of a chain of `depth` edges;
    the goal ends one of them, and the corrupt goal another. Small networks need to be trained
    for it; SmolLM2 guesses.

    Args:
        num: How many pairs.
        seed: Of the nodes and the order of edges.
        depth: Edges from the root to a goal.
        branches: How many chains; with `depth` at most 25 nodes besides the root.
        metric: As in `Task`.
    """
    if depth < 1 or branches < 2 or depth * branches >= len(NODES):
        raise InputError(
            "a tree needs depth >= 1, branches >= 2 and at most 25 nodes besides the root, "
            f"got depth {depth} and {branches} branches"
        )

    def write(rng: Random) -> _Row:
        root, *nodes = rng.sample(NODES, 1 + depth * branches)
        chains = [[root, *nodes[i::branches]] for i in range(branches)]
        edges = [f"{a} > {b}" for chain in chains for a, b in pairwise(chain)]
        rng.shuffle(edges)
        text = f"Edges: {', '.join(edges)}\nGoal: {{}}\nPath: {root} >"
        clean, corrupt = (text.format(chain[-1]) for chain in chains[:2])
        return _Row(clean, corrupt, *(f" {chain[1]}" for chain in chains[:2]))

    return _written(num, seed, write, "symbolic paths", metric)


class _Row(NamedTuple):
    clean: str
    corrupt: str
    answer: str | tuple[str, ...]
    wrong: str | tuple[str, ...]


def _written(num: int, seed: int, write: Callable[[Random], _Row], name: str, metric: str) -> Task:
    """Return a task of different pairs."""
    rng, rows, wanted = Random(seed), dict[_Row, None](), _checked(num)
    while len(rows) < wanted:
        rows[write(rng)] = None
    clean, corrupt, answers, wrong = map(list, zip(*rows, strict=True))
    return Task(clean, corrupt, answers, wrong, metric, name=name)


def _checked(num: int) -> int:
    if not 1 <= num <= MOST:
        raise InputError(f"num must lie in 1..{MOST}, got {num}")
    return num


def _of(rows: Sequence[Cloze], name: str, metric: str) -> Task:
    return Task(
        [r.clean for r in rows], [r.corrupt for r in rows], [r.answer for r in rows],
        [r.wrong for r in rows], metric, name=name,
    )  # fmt: skip


MOST = 200
"""Most pairs of a task that is written here; below that none runs short of different ones."""
TASKS: Mapping[str, Callable[[], Task]] = {
    made.__name__: made
    for made in (
        ioi,
        capitals,
        greater_than,
        arithmetic,
        colored_objects,
        gendered_pronouns,
        cause_effect,
        induction,
        symbolic_paths,
    )
}
"""The bundled tasks, by name."""


def as_task(task: str | Task) -> Task:
    """Return a task, or the bundled one of a name."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return TASKS[task]()
