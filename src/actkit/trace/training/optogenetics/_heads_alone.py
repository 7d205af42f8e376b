"""What each head adds to an answer: attention to the right label, and accuracy with and without it.

Shapes: B sequences, T tokens, S keys, H heads, n rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit, scale
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model


def induction_strength(probs_BHTS: Tensor, right_B: Tensor, wrong_B: Tensor) -> Tensor:
    """Return each head's mean attention from the last token to the right label less the wrong one.

    Args:
        probs_BHTS: Attention probabilities, as recorded at an `attn_probs` site.
        right_B: (B,) positions of the label to copy.
        wrong_B: (B,) positions of the other label.

    Returns:
        (H,) strengths in [-1, 1]; 0 if a head does not tell the two apart.
    """
    last_BHS = probs_BHTS[:, :, -1]
    row_B = torch.arange(len(last_BHS), device=last_BHS.device)
    return (last_BHS[row_B, :, right_B] - last_BHS[row_B, :, wrong_B]).mean(0)


@dataclass(frozen=True, slots=True, eq=False)
class HeadsAlone:
    """A block's heads, one at a time; margins are the answer's logit less the others' mean.

    Attributes:
        accuracy: Of the network as it is, share in [0, 1].
        without_H: Accuracy without each head.
        only_H: Accuracy with each head as the block's only one.
        margin: Of the network as it is.
        margin_only_H: Margin with each head as the block's only one.
        margin_none: Margin without any of the block's heads.
    """

    accuracy: float
    without_H: Tensor
    only_H: Tensor
    margin: float
    margin_only_H: Tensor
    margin_none: float

    @property
    def additivity(self) -> float:
        """Return what the heads add alone, summed, over what they add together; 1 if additive."""
        alone = float((self.margin_only_H - self.margin_none).sum())
        return alone / (self.margin - self.margin_none)


def heads_alone(
    model: Model,
    inputs: Tensor,
    answer_B: Tensor,
    choices: Sequence[int],
    layer: int,
    edits: Sequence[Edit] = (),
) -> HeadsAlone:
    """Measure a network without each head of a block, with each alone, and without all of them.

    Args:
        model: The network.
        inputs: (B, T) token ids; the answer is read at the last.
        answer_B: (B,) ids of the right answers.
        choices: The ids between which the network chooses.
        layer: The block.
        edits: Made in every run too, for example patterns that are held.

    Raises:
        InputError: An answer is no choice, or there are fewer than two choices.
    """
    choice_C = torch.as_tensor(list(choices), device=answer_B.device)
    if len(set(choices)) < 2 or not torch.isin(answer_B, choice_C).all():
        raise InputError(f"answers must be among two choices or more, got {list(choices)}")
    site = model.sites(f"z.{layer}")[0]
    num = (site.unit_shape or (0,))[0]

    def off(heads: list[int]) -> list[Edit]:
        gone = [scale(site.name, 0.0, Where(heads=heads))] if heads else []
        return [*edits, *gone]

    variants = [
        off([]),
        off(list(range(num))),
        *(off([head]) for head in range(num)),
        *(off([other for other in range(num) if other != head]) for head in range(num)),
    ]

    def margin(logits_nPV: Tensor) -> Tensor:
        return _margins(logits_nPV[:, -1], answer_B, choice_C)[0]

    def right(logits_nPV: Tensor) -> Tensor:
        return _margins(logits_nPV[:, -1], answer_B, choice_C)[1]

    margins = model.sweep(inputs, variants, margin).mean(1)
    shares = model.sweep(inputs, variants, right).mean(1)
    without, only = slice(2, 2 + num), slice(2 + num, None)
    return HeadsAlone(
        float(shares[0]), shares[without], shares[only],
        float(margins[0]), margins[only], float(margins[1]),
    )  # fmt: skip


def _margins(logits_nV: Tensor, answer_B: Tensor, choice_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return the answer's logit less the mean of the others', and whether it is the largest."""
    answer_B, choice_C = answer_B.to(logits_nV.device), choice_C.to(logits_nV.device)
    answer_n = answer_B.repeat(len(logits_nV) // len(answer_B))
    chosen_nC = logits_nV[:, choice_C]
    own_n = logits_nV.gather(1, answer_n[:, None])[:, 0]
    rest_nC = chosen_nC.masked_fill(choice_C == answer_n[:, None], -torch.inf)
    others_n = (chosen_nC.sum(1) - own_n) / (len(choice_C) - 1)
    return own_n - others_n, (own_n > rest_nC.amax(1)).float()
