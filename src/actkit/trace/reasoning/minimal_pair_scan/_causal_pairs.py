"""Sentences with a cause and an effect, and twins whose cause makes no sense."""

from typing import Literal

from actkit.core.errors import InputError
from actkit.trace._task import Task

CAUSES = (
    ("Anna", "got wet", "forgot her umbrella", "painted her kitchen"),
    ("Mary", "got sick", "ate some poison", "wore some jewelry"),
    ("Sarah", "was late", "missed her train", "washed her hair"),
    ("Jane", "got rich", "won the lottery", "saw the bottle"),
    ("Alice", "got burned", "touched the stove", "painted the wall"),
    ("Maria", "was thirsty", "ate some chips", "wore some shoes"),
    ("Rose", "was full", "ate a pizza", "saw a movie"),
    ("Lily", "got drunk", "drank the wine", "read the book"),
)
"""Who, what happened to her, why, and what does not explain it; seven tokens without the last."""


def causal_pairs(template: Literal["because", "so"] = "because") -> Task:
    """Return eight minimal pairs; the metric is the log-probability of the last word.

    "because": "Anna got wet because she forgot her" -> " umbrella", against "... painted her";
    "so": "Anna forgot her umbrella so she got" -> " wet", against "Anna painted her kitchen ...".
    """
    if template not in ("because", "so"):
        raise InputError(f"template must be 'because' or 'so', got {template!r}")

    def sentence(who: str, effect: str, cause: str) -> str:
        halves = (effect, cause) if template == "because" else (cause, effect)
        return f"{who} {halves[0]} {template} she {halves[1]}"

    valid = [sentence(who, effect, cause) for who, effect, cause, _ in CAUSES]
    twins = [sentence(who, effect, other) for who, effect, _, other in CAUSES]
    return Task(
        [text.rpartition(" ")[0] for text in valid],
        [text.rpartition(" ")[0] for text in twins],
        [" " + text.rpartition(" ")[2] for text in valid],
        metric="log probability", name=f"causes with {template}",
    )  # fmt: skip
