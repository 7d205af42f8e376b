"""Change the values in a chain of thought and see whether the steps after them obey.

Shapes: B traces, T tokens, V legal values, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit
from actkit.core.edits.edit import set as put
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._base import Analysis
from actkit.trace.reasoning.cot_variables._chains import other_values
from actkit.worlds.causal import Causal


@dataclass(frozen=True)
class Outcome:
    """What regenerating does after a value was changed, as shares of the traces.

    Attributes:
        success: All later values are those of the interpreter with the changed value.
        shortcut: The answer is still that of the unchanged trace.
        error: Neither.
        num: Traces in which the interpreter's answer changes; only these count.
    """

    success: float
    shortcut: float
    error: float
    num: int


@method(source="Zhu et al. 2025, arXiv:2505.04955, interventions on values", interface=Analysis)
def cot_variables(
    model: Model,
    traces_BT: Tensor,
    program: Causal,
    at: Mapping[str, int],
    legal: Sequence[int],
    seed: int = 0,
) -> dict[str, Outcome]:
    """Change each value of a chain of thought and see whether what follows obeys.

    The value's token is replaced by a random other legal one, and the rest is written anew,
    greedily. As in the paper.

    Args:
        model: A decoder.
        traces_BT: Right traces, all alike in layout.
        program: The interpreter: its variables are those of `at`, its last one the answer.
        at: The position of each variable's value, in order (see `places`).
        legal: The token ids that are values.
        seed: Of the values.

    Returns:
        For each variable but the answer what its change does.

    Raises:
        InputError: The program has other variables, or no change would change an answer.

    Example:
        >>> from actkit.worlds import reader  # says the first token again
        >>> rules = {"p": lambda t, _: t[:, 0], "q": lambda _, values: values["p"]}
        >>> copy, traces = Causal("copy", rules, None, 6, 2), torch.tensor([[3, 3], [1, 1]])
        >>> cot_variables(Model(reader()), traces, copy, {"p": 0, "q": 1}, legal=range(6))
        {'p': Outcome(success=1.0, shortcut=0.0, error=0.0, num=2)}
    """
    *changed, answer = at
    if list(program.nodes) != [*changed, answer] or not changed:
        raise InputError(f"need the program's variables {list(program.nodes)}, got {list(at)}")
    generator = torch.Generator().manual_seed(seed)
    outcomes = {}
    for name in changed:
        new_B = other_values(traces_BT[:, at[name]], legal, generator)
        wanted = program(traces_BT, {name: new_B})
        later = [n for n in at if at[n] > at[name]]
        written = rewritten(model, traces_BT, at[name], new_B)
        right = torch.stack([written[:, at[n]] == wanted[n] for n in later]).all(0)
        unmoved = written[:, at[answer]] == traces_BT[:, at[answer]]
        told = wanted[answer] != traces_BT[:, at[answer]]
        success, shortcut = right & told, unmoved & told
        num = int(told.sum())
        if not num:
            raise InputError(f"a change of {name} must change some answers, got none")
        error = float((told & ~success & ~shortcut).sum()) / num
        outcomes[name] = Outcome(
            float(success.sum()) / num, float(shortcut.sum()) / num, error, num
        )
    return outcomes


def rewritten(model: Model, traces_BT: Tensor, position: int, value_B: Tensor) -> Tensor:
    """Return the traces with another value at a position and all that follows written anew."""
    begun = torch.cat([traces_BT[:, :position], value_B[:, None]], 1)
    return continued(model, begun, traces_BT.shape[1])


def patched(
    model: Model, traces_BT: Tensor, position: int, donor_BT: Tensor, site: str, start: int
) -> Tensor:
    """Return the traces from `start` on written anew, with one residual from other traces.

    Args:
        model: A decoder.
        traces_BT: The traces; their own tokens stay before `start`.
        position: Where the activation is replaced.
        donor_BT: The traces that it comes from; what stands up to `position` counts.
        site: Such as "resid_post.0".
        start: The first token that is written anew, after `position`.
    """
    if start <= position:
        raise InputError(f"need a start after the position, got {start} and {position}")
    given_BD = model.run(donor_BT[:, : position + 1], record=site)[site][:, position]
    edits = [put(site, given_BD, Where(tokens=position))]
    return continued(model, traces_BT[:, :start], traces_BT.shape[1], edits)


def continued(model: Model, begun_BT: Tensor, length: int, edits: Sequence[Edit] = ()) -> Tensor:
    """Return traces written on greedily to a length; edits act on every run."""
    tokens = begun_BT
    while tokens.shape[1] < length:
        logits = model.run(tokens, edits=edits, logits=True).logits
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True).to(tokens.device)], 1)
    return tokens
