"""Find the heads that write an answer into the stream, and where they read it.

Shapes: B prompts, T tokens, L layers, H heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, scale
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._attribution import Attribution, columns, readout
from actkit.trace._base import Localizer
from actkit.trace._parts import PARTS, Parts
from actkit.trace._task import Task, Trial, as_trial


@method(source="Dutta et al. 2024, arXiv:2402.18312, section 5")
@dataclass
class AnswerHeads(Localizer):
    """Score each head by what it writes straight to the answer's logit.

    The score is z W_O read by the unembedding's row of the answer, less that of the wrong answer
    (without one, less the mean of all rows), at the last token of the clean prompts, with the scale
    of the final norm frozen. As in the paper; of several answers of a pair the first is read.

    Args:
        parts: "heads", or "mlps" for the same of MLPs.

    Example:
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> AnswerHeads()(Model(reader(at=(1, 2))), first).values
        tensor([[0., 0., 0.],
                [0., 0., 1.]])
    """

    unit: ClassVar[str] = "logits"
    kinds: ClassVar[tuple[str, ...]] = ("heads",)
    parts: str | Parts = "heads"

    def _score(self, trial: Trial, parts: Parts) -> Tensor:
        if parts not in (PARTS["heads"], PARTS["mlps"]):
            raise InputError(f"parts must be 'heads' or 'mlps', got {str(parts)!r}")
        found = direct(trial)
        return (found.heads_BLH if parts == PARTS["heads"] else found.mlps_BL).mean(0)


def direct(trial: Trial) -> Attribution:
    """Return what every part writes straight to the answers of a trial's clean prompts.

    Raises:
        InputError: The task has no answers, or asks at another position than the last.
    """
    if trial.plus is None or trial.task.at not in ("last", -1):
        raise InputError(
            "direct attribution needs answers at the last position, got answers "
            f"{trial.task.answers!r} at {trial.task.at!r}"
        )
    read = readout(trial.model, trial.clean)
    return read.attribute(trial.plus[:, 0], "mean" if trial.minus is None else trial.minus[:, 0])


@dataclass(frozen=True)
class Writer:
    """A head that writes the answer.

    Attributes:
        layer: Of the head.
        head: Its index.
        attribution: What it adds to the answer's logit, the mean over prompts.
        attention: Its mean attention from the last token to each source.
    """

    layer: int
    head: int
    attribution: float
    attention: Mapping[str, float]


def writers(
    model: Model,
    task: Task | Trial,
    sources: Mapping[str, Tensor] | None = None,
    share: float = 0.1,
    attended: float = 0.1,
) -> list[Writer]:
    """Return the heads that write the answer and attend to where it stands, strongest first.

    Args:
        model: The network.
        task: Prompts with answers.
        sources: (B, T) bool masks of the tokens of the clean prompts that hold the answer, by
            name: "question", "examples", "own reasoning"; if None, wherever its token stands.
        share: Least attribution, as a share of the largest head's.
        attended: Least attention to all sources together.

    Raises:
        InputError: A mask does not fit the prompts, or no source holds a token.
    """
    trial = as_trial(model, task)
    heads_LH = direct(trial).heads_BLH.mean(0)
    tokens_BT = torch.as_tensor(trial.clean.tokens)
    if sources is None:
        sources = {"answer": tokens_BT == torch.as_tensor(trial.plus)[:, :1]}
    for name, mask_BT in sources.items():
        if mask_BT.shape != tokens_BT.shape or not mask_BT.any():
            raise InputError(
                f"a source must mark tokens of shape {tuple(tokens_BT.shape)}, {name!r} marks "
                f"{int(mask_BT.sum())} of shape {tuple(mask_BT.shape)}"
            )
    sites = model.sites("attn_probs.*")
    rec = model.run(trial.clean, record=[site.name for site in sites])
    row_B, last_B = columns(rec.rows, -1)
    probs_BLHT = torch.stack([rec[site.name][row_B, :, last_B] for site in sites], 1)
    mass = {
        name: (probs_BLHT * mask_BT[:, None, None].to(probs_BLHT.device)).sum(-1).mean(0)
        for name, mask_BT in sources.items()
    }
    enough_LH = (heads_LH >= share * heads_LH.max()) & (heads_LH > 0)
    enough_LH &= torch.stack([*mass.values()]).sum(0) >= attended
    order = heads_LH.masked_fill(~enough_LH, 0).flatten().argsort(descending=True, stable=True)
    places = [divmod(int(i), heads_LH.shape[1]) for i in order[: int(enough_LH.sum())]]
    return [
        Writer(n, h, float(heads_LH[n, h]), {name: float(own[n, h]) for name, own in mass.items()})
        for n, h in places
    ]


def knock_out(
    heads: Sequence[tuple[int, int]], layer: int, side: Literal["above", "below"]
) -> list[Edit]:
    """Return edits that silence those of some heads that lie from a layer on, or below it.

    Args:
        heads: Pairs (layer, head).
        layer: Where to divide.
        side: "above" (the layer's own heads too) or "below".

    Example:
        >>> [e.site for e in knock_out([(3, 1), (9, 0)], layer=5, side="above")]
        ['z.9']
    """
    if side not in ("above", "below"):
        raise InputError(f"a side must be 'above' or 'below', got {side!r}")
    chosen = [(n, h) for n, h in heads if (n >= layer) == (side == "above")]
    return [scale(f"z.{n}", 0.0, Where(heads=h)) for n, h in chosen]
