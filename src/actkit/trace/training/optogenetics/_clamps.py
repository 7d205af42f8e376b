"""What heads are held at: perfect patterns, and a perfect copy of what a pattern points to.

Shapes: B sequences, T tokens, S keys, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from actkit.core.edits.controller import Controller
from actkit.core.errors import InputError
from actkit.core.run.context import ForwardContext


def previous_pattern(length: int, strength: float = 1.0) -> Tensor:
    """Return (T, S) attention: `strength` to the previous token, the rest to itself.

    Raises:
        InputError: The strength is no share.

    Example:
        >>> previous_pattern(3, strength=0.75).tolist()
        [[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.0, 0.75, 0.25]]
    """
    _check_share(strength)
    eye_TS = torch.eye(length)
    before_TS = eye_TS.roll(-1, 1).tril()
    before_TS[0, 0] = 1.0
    return strength * before_TS + (1 - strength) * eye_TS


def match_pattern(
    token_BT: Tensor, strength: float = 1.0, temperature: float | None = None
) -> Tensor:
    """Return (B, T, S) attention to what followed earlier occurrences of the same token.

    Args:
        token_BT: (B, T) what stands at each position; equal numbers match.
        strength: The share of attention that goes there, evenly; the rest to itself, and all of
            it where nothing matches.
        temperature: Instead of a strength: the softmax over all visible keys, of logit
            1 / temperature where it matches and 0 elsewhere.

    Raises:
        InputError: The strength is no share, or the temperature not above 0.

    Example:
        >>> match_pattern(torch.tensor([[7, 1, 8, 0, 7]]))[0, 4].tolist()  # 1 followed 7
        [0.0, 1.0, 0.0, 0.0, 0.0]
    """
    _check_share(strength)
    batch, length = token_BT.shape
    before_BS = torch.cat([torch.full_like(token_BT[:, :1], -1), token_BT[:, :-1]], 1)
    match_BTS = ((token_BT[:, :, None] == before_BS[:, None]).float()).tril(-1)
    if temperature is not None:
        if not temperature > 0:
            raise InputError(f"a temperature must be above 0, got {temperature}")
        hidden_TS = torch.ones(length, length, device=token_BT.device).triu(1).bool()
        return (match_BTS / temperature).masked_fill(hidden_TS, -torch.inf).softmax(-1)
    num_BT1 = match_BTS.sum(-1, keepdim=True)
    share_BT1 = strength * (num_BT1 > 0)
    eye_BTS = torch.eye(length, device=token_BT.device).expand(batch, -1, -1)
    return share_BT1 * match_BTS / num_BT1.clamp_min(1) + (1 - share_BT1) * eye_BTS


@dataclass(frozen=True, eq=False)
class CopyHead(Controller):
    """Watches a head's pattern at one site, and writes logits at another: it copies labels.

    Attributes:
        label_BS: (B, S) the token id of each label, -1 where no label stands.
        gain: Logit of a label that gets all attention.
        watch: Whether this one watches; else it writes.
    """

    identifier: ClassVar[str] = "optogenetics.copy_head"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.trace._clamps:CopyHead",)
    label_BS: Tensor
    gain: float
    watch: bool = field(kw_only=True)

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Keep the (B, T, 1, S) pattern and leave it, or return (B, T, V) logits of it."""
        if self.watch:
            memory["pattern"] = x[:, :, 0]
            return x
        is_label_BSV = self.label_BS[..., None] == torch.arange(x.shape[-1], device=x.device)
        pattern_BTS: Tensor = memory["pattern"]
        return self.gain * pattern_BTS @ is_label_BSV.to(x.dtype)


def _check_share(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise InputError(f"a strength is a share in [0, 1], got {strength}")
