"""What strengths do to the next token: right answers, distance and entropy.

Shapes: N items, A strengths, C candidates, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.maths.next_token import kl, log_prob_of
from actkit.model import Model
from actkit.steer._concept import first_token
from actkit.steer._measure import next_logits


@dataclass(frozen=True, slots=True)
class LogitShift:
    """What each strength does to the next token, means over the items as (A,) float64.

    Attributes:
        strengths: In the order in which they were asked.
        accuracy: Share of items whose right answer is the likeliest of all items' answers.
        log_prob: log p of the right answer among them, in nats.
        kl: KL(p_alpha || p_0), in nats.
        entropy: Of p_alpha, in nats.
    """

    strengths: tuple[float, ...]
    accuracy: Tensor
    log_prob: Tensor
    kl: Tensor
    entropy: Tensor


def logit_shift_report(
    model: Model,
    edits: Callable[[float], Sequence[Edit]],
    prompts: Sequence[Any],
    answers: Sequence[str],
    strengths: Sequence[float] = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0),
) -> LogitShift:
    """Sweep a strength and report what happens to the token after each prompt.

    Args:
        model: A language model.
        edits: Gives the edits of a strength: `edits` of a fitted steerer, say.
        prompts: The items.
        answers: The right next word of each, with its space in front; its first token counts.
        strengths: To try.

    Raises:
        InputError: Answers and prompts differ in number, or two answers begin with one token.
    """
    if len(answers) != len(prompts):
        raise InputError(f"each prompt needs an answer, got {len(prompts)} and {len(answers)}")
    words = sorted(set(answers))
    first_C = [first_token(model, w) for w in words]
    if len(set(first_C)) < len(words):
        raise InputError(f"answers must begin with tokens of their own, got {words}")
    base_NV = next_logits(model, prompts).double().log_softmax(-1)
    right_N = torch.tensor([words.index(a) for a in answers], device=base_NV.device)
    rows = []
    for strength in track(list(strengths), "sweeping strengths"):
        log_NV = next_logits(model, prompts, edits(strength)).double().log_softmax(-1)
        among_NC, p_NV = log_NV[:, first_C].log_softmax(-1), log_NV.exp()
        rows.append(
            (
                (among_NC.argmax(-1) == right_N).double().mean(),
                log_prob_of(among_NC, right_N).mean(),
                kl(log_NV, base_NV).mean(),
                -(p_NV * log_NV).sum(-1).mean(),
            )
        )
    return LogitShift(tuple(strengths), *map(torch.stack, zip(*rows, strict=True)))
