"""Few-shot prompts with true and with false labels, and what each layer would answer.

Shapes: B prompts, T tokens, C labels, L layers, H heads, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError, SiteError
from actkit.core.run.inputs import Batch
from actkit.core.run.recording import last_tokens
from actkit.model import Model


@dataclass(frozen=True, slots=True, eq=False)
class Demonstrations:
    """The same prompts twice: demonstrations with true labels, and with false ones.

    Attributes:
        true: B texts, or (B, T) token ids, that end where a label must follow.
        false: As many, different from the true ones in label tokens only.
        answers: (B,) the right label of each last example, an index into `labels`.
        labels: The labels: words of one token each, with their space in front, or token ids.
    """

    true: Sequence[str] | Tensor
    false: Sequence[str] | Tensor
    answers: Tensor
    labels: Sequence[str | int]

    def __post_init__(self) -> None:
        """Refuse sides of different lengths and answers that are no labels."""
        sizes = len(self.true), len(self.false), len(self.answers)
        if len(set(sizes)) > 1 or not sizes[0] or len(self.labels) < 2:
            raise InputError(f"need as many true and false prompts and answers, got {sizes}, "
                             f"and two labels, got {len(self.labels)}")  # fmt: skip
        if self.answers.is_floating_point() or not (
            0 <= int(self.answers.min()) <= int(self.answers.max()) < len(self.labels)
        ):
            raise InputError(
                f"answers must be indices of {len(self.labels)} labels, got {self.answers.tolist()}"
            )

    def encoded(self, model: Model) -> tuple[Batch, Batch, Tensor, Tensor]:
        """Return true and false prompts as tokens, (C,) label ids, and (B, T) marks.

        A mark is +1 at false labels of the answer's class, -1 at labels that are the answer, in
        the false prompts; 0 elsewhere.
        """
        true, false = (model.encode(_rows(side)) for side in (self.true, self.false))
        a, b = (torch.as_tensor(side.tokens) for side in (true, false))
        id_C = torch.tensor([_label_id(model, label) for label in self.labels], device=a.device)
        if a.shape != b.shape:
            raise InputError(
                "true and false prompts must have as many tokens, "
                f"got shapes {tuple(a.shape)} and {tuple(b.shape)}"
            )
        differ = a != b
        if not torch.isin(torch.cat([a[differ], b[differ]]), id_C).all():
            raise InputError("true and false prompts must differ in label tokens only")
        answer_B1 = id_C[self.answers][:, None]
        marks_BT = (differ & (a == answer_B1)).float() - (b == answer_B1).float()
        return true, false, id_C, marks_BT


def lens(model: Model, resid_BTD: Tensor, rows: Any) -> Tensor:
    """Return the (B, V) logits of the last tokens of a residual stream, by the network's own end.

    A soft cap on logits, which changes no order, is left out.

    Raises:
        SiteError: The network has no final norm or no output head.
    """
    norm = model.module.get_submodule(model.sites("final_norm")[0].place.path)
    head = getattr(model.module, "get_output_embeddings", lambda: None)()
    if head is None:
        raise SiteError(f"a logit lens needs an output head, {model!r} has none")
    with torch.no_grad():
        logits_BV: Tensor = head(norm(last_tokens(resid_BTD, rows)[:, None]))[:, 0]
    return logits_BV


def layer_logits(
    model: Model, inputs: Any, edits: Sequence[Edit] = (), layers: slice = slice(None)
) -> Tensor:
    """Return (L, B, V) logits at the last token, as if each of the layers were the last one."""
    names = [site.name for site in model.sites("resid_post.*")][layers]
    rec = model.run(inputs, record=names, edits=edits)
    return torch.stack([lens(model, rec[name], rec.rows_of(name)) for name in names])


def accuracies(logits_LBV: Tensor, label_C: Tensor, answer_B: Tensor, calibrate: bool) -> Tensor:
    """Return the (L,) share of prompts whose answer has the largest logit among the labels.

    Args:
        logits_LBV: Logits of each layer.
        label_C: Ids of the labels.
        answer_B: Indices into them.
        calibrate: Take each label's log-probability less its mean over the prompts.
    """
    log_p_LBC = logits_LBV[..., label_C].log_softmax(-1)
    if calibrate:
        log_p_LBC = log_p_LBC - log_p_LBC.mean(1, keepdim=True)
    return (log_p_LBC.argmax(-1) == answer_B.to(log_p_LBC.device)).float().mean(-1)


def _rows(given: Sequence[str] | Tensor) -> Any:
    return given if isinstance(given, Tensor) else list(given)


def _label_id(model: Model, label: str | int) -> int:
    if isinstance(label, int):
        return label
    if model.tokenizer is None:
        raise InputError(f"words need a tokenizer and this network has none, got {label!r}")
    ids = model.tokenizer(label, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(f"a label must be one token, got {label!r} of {len(ids)}")
    return int(ids[0])
