"""Programs with known steps, for networks to compute: pointers, duplicates, fractions, votes.

Shapes: B rows, T tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.worlds.causal import Causal, Rule


def pointer(places: int = 5, hops: int = 2) -> Causal:
    """Follow pointers: each of the first tokens names a place, the last one where to begin.

    Example:
        >>> pointer(3).answers(torch.tensor([[2, 0, 1, 1]]))  # 1 points to 0, and 0 to 2
        tensor([2])
    """
    if places < 2 or hops < 1:
        raise InputError(f"need at least 2 places and 1 hop, got {places} and {hops}")
    names = [f"hop {i + 1}" for i in range(hops - 1)] + ["answer"]
    before = dict(zip(names, [None, *names], strict=False))

    def follow(hop: str | None) -> Rule:
        def rule(tokens_BT: Tensor, values: Mapping[str, Tensor]) -> Tensor:
            place_B = tokens_BT[:, -1] if hop is None else values[hop]
            return tokens_BT.gather(1, place_B[:, None])[:, 0]

        return rule

    def draw(num: int, generator: torch.Generator) -> Tensor:
        return torch.randint(places, (num, places + 1), generator=generator)

    nodes = {name: follow(b) for name, b in before.items()}
    reads = {name: ["input"] if b is None else ["input", b] for name, b in before.items()}
    return Causal(f"pointer, {hops} hops", nodes, draw, places, places + 1, reads)


def duplicate(letters: int = 6, length: int = 4) -> Causal:
    """Say which letter stands twice: a start token, letters of which one is seen again, an end.

    Example:
        >>> list(duplicate().nodes)[-1]
        'answer'
    """
    if not 2 <= length <= letters:
        raise InputError(f"need 2 to {letters} letters in a row, got {length}")

    def again(tokens_BT: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        seen = (tokens_BT[:, :, None] == tokens_BT[:, None]).tril(-1).any(-1)
        return seen.long().argmax(-1)

    def answer(tokens_BT: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        return tokens_BT.gather(1, values["seen again"][:, None])[:, 0]

    def draw(num: int, generator: torch.Generator) -> Tensor:
        row = torch.rand(num, letters, generator=generator).argsort(-1)[:, :length]
        second = torch.randint(1, length, (num, 1), generator=generator)
        first = (torch.rand(num, 1, generator=generator) * second).long()
        row = row.scatter(1, second, row.gather(1, first))
        ends = torch.tensor([letters, letters + 1]).expand(num, 2)
        return torch.cat([ends[:, :1], row, ends[:, 1:]], 1)

    nodes = {"seen again": again, "answer": answer}
    reads = {"seen again": ["input"], "answer": ["input", "seen again"]}
    return Causal("duplicate", nodes, draw, letters + 2, length + 2, reads)


def fraction(letters: int = 3, length: int = 5) -> Causal:
    """Say whether over half of the letters are of the first kind; `length` is odd.

    Example:
        >>> program = fraction()
        >>> program.length, list(program.nodes)[-1]
        (6, 'answer')
    """
    if length % 2 == 0 or letters < 2:
        raise InputError(f"need an odd length and 2 letters, got {length} and {letters}")
    no, end = letters, letters + 2

    def answer(tokens_BT: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        return no + (2 * values["is x"].sum(-1) > length).long()

    def draw(num: int, generator: torch.Generator) -> Tensor:
        x = torch.rand(num, length, generator=generator) < 0.5
        others = torch.randint(1, letters, (num, length), generator=generator)
        return torch.cat([others.masked_fill(x, 0), torch.full((num, 1), end)], 1)

    nodes: dict[str, Rule] = {"is x": lambda tokens_BT, _: tokens_BT == 0, "answer": answer}
    reads = {"is x": ["input"], "answer": ["is x"]}
    return Causal("fraction of x before", nodes, draw, letters + 3, length + 1, reads)


def vote() -> Causal:
    """Say which of two letters stands at two or three of the first three places.

    Example:
        >>> program = vote()
        >>> program.answers(program.draw(3, torch.Generator().manual_seed(0))).shape
        torch.Size([3])
    """

    def look(place: int) -> Rule:
        return lambda tokens_BT, _: tokens_BT[:, place]

    def answer(tokens_BT: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        return (torch.stack([values[f"vote {i}"] for i in range(3)]).sum(0) > 1).long()

    def draw(num: int, generator: torch.Generator) -> Tensor:
        return torch.randint(2, (num, 4), generator=generator).index_fill(1, torch.tensor(3), 2)

    nodes = {f"vote {i}": look(i) for i in range(3)} | {"answer": answer}
    reads = {f"vote {i}": ["input"] for i in range(3)} | {"answer": [f"vote {i}" for i in range(3)]}
    return Causal("vote", nodes, draw, 3, 4, reads)
