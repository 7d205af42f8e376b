"""Chains of thought as tokens: where their values stand.

Shapes: B traces, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.core.errors import InputError


@dataclass(frozen=True)
class ChainStep:
    """One value in a trace: where its token stands, and of which variable it is.

    Attributes:
        position: Of the value's token.
        variable: The name.
        value: The value's token id.
    """

    position: int
    variable: str
    value: int


def parse(trace_T: Tensor, names: Mapping[str, int], equals: int) -> list[ChainStep]:
    """Return the values of a trace in order: what follows a variable's name and an equals sign.

    Args:
        trace_T: Token ids.
        names: The token of each variable.
        equals: The token between name and value.

    Example:
        >>> parse(torch.tensor([3, 4, 10, 12, 7]), {"p": 10}, equals=12)
        [ChainStep(position=4, variable='p', value=7)]
    """
    ids, known = trace_T.tolist(), {token: name for name, token in names.items()}
    return [
        ChainStep(i + 2, known[ids[i]], ids[i + 2])
        for i in range(len(ids) - 2)
        if ids[i] in known and ids[i + 1] == equals
    ]


def places(traces_BT: Tensor, names: Mapping[str, int], equals: int) -> dict[str, int]:
    """Return the position of each variable's value, which all traces must share.

    Raises:
        InputError: Traces differ in where their values stand, or hold none.
    """
    found = {
        tuple((s.variable, s.position) for s in parse(trace, names, equals)) for trace in traces_BT
    }
    if len(found) != 1 or found == {()}:
        raise InputError(f"traces must hold their values at the same places, got {sorted(found)}")
    return dict(found.pop())


def only_values(traces_BT: Tensor, prompt: int, at: Mapping[str, int]) -> Tensor:
    """Return the traces without all tokens of the chain that are no values.

    Args:
        traces_BT: Traces.
        prompt: How many first tokens are the question, which stays.
        at: The position of each variable's value.
    """
    return torch.cat([traces_BT[:, :prompt], traces_BT[:, list(at.values())]], 1)


def other_values(value_B: Tensor, legal: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return for each value a random other legal one."""
    values = torch.tensor(list(legal))
    if len(values) < 2 or not torch.isin(value_B, values).all():
        raise InputError(
            f"values must be of 2 legal ones or more, got {sorted(set(value_B.tolist()))}"
        )
    index = (value_B[:, None] == values).long().argmax(-1)
    shift = torch.randint(1, len(values), index.shape, generator=generator)
    return values[(index + shift) % len(values)]
