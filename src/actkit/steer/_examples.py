"""Examples of a concept: inputs that show it and inputs that do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actkit.core.digest import digest
from actkit.core.errors import InputError
from actkit.data import Contrast, split


@dataclass(frozen=True)
class Examples:
    """Inputs that show a concept, and inputs that do not.

    Attributes:
        positive: Texts, chats or whatever else one input of the network is.
        negative: The same without the concept, or with its opposite.
    """

    positive: Sequence[Any]
    negative: Sequence[Any]

    @classmethod
    def of(cls, data: Any) -> "Examples":
        """Take a list of `Contrast` or of pairs, or a mapping of `positive` and `negative`.

        Raises:
            InputError: It is none of these, or a side is empty.
        """
        found = data if isinstance(data, Examples) else cls(*_sides(data))
        for side in ("positive", "negative"):
            if not len(getattr(found, side)):
                sizes = f"{len(found.positive)} positive and {len(found.negative)} negative"
                raise InputError(f"examples must not lack the {side} side, got {sizes}")
        return found

    def check_paired(self) -> "Examples":
        """Return the examples if each positive one has its negative one.

        Raises:
            InputError: The sides differ in number.
        """
        if len(self.positive) != len(self.negative):
            raise InputError(
                "this method needs pairs, as many positive as negative examples, got "
                f"{len(self.positive)} and {len(self.negative)}"
            )
        return self

    def sample(self, share: float, seed: int) -> "Examples":
        """Return a share of the examples, drawn at random; pairs stay together."""
        if len(self.positive) == len(self.negative):
            pairs = list(zip(self.positive, self.negative, strict=True))
            return Examples.of(split(pairs, 1 - share, seed)[0])
        sides = (split(list(side), 1 - share, seed)[0] for side in (self.positive, self.negative))
        return Examples(*sides)

    def facts(self) -> dict[str, Any]:
        """Return how many there are and their hash, for JSON."""
        hashed = digest([list(self.positive), list(self.negative)])
        sizes = {"positive": len(self.positive), "negative": len(self.negative)}
        return {**sizes, "sha256": hashed}


def _sides(data: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    if isinstance(data, Mapping) and {"positive", "negative"} <= set(data):
        return list(data["positive"]), list(data["negative"])
    rows = list(data) if isinstance(data, Sequence) and not isinstance(data, str) else None
    if rows is None or not all(isinstance(r, Contrast | tuple) for r in rows):
        raise InputError(
            "examples must be pairs (positive, negative), or a mapping of the two sides, "
            f"got {type(data).__name__}"
        )
    pairs = [(r.positive, r.negative) if isinstance(r, Contrast) else r for r in rows]
    if odd := [i for i, pair in enumerate(pairs) if len(pair) != 2]:
        raise InputError(f"a pair must have two sides, got {len(pairs[odd[0]])} at {odd[0]}")
    return [p for p, _ in pairs], [n for _, n in pairs]
