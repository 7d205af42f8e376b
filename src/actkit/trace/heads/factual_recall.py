"""Follow a fact: heads move the topic, MLPs turn it into the answer, the last layer holds back.

Shapes: B prompts, L layers, H heads, D width, J basis vectors, N outputs, C parts of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, scale
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._attribution import Attribution, lens, readout
from actkit.trace._base import Analysis

Words = Sequence[str] | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class FactualRecall:
    """What the parts add at the last token of prompts on facts, straight to the logits.

    Attributes:
        topic: To the logit of the subject, over the vocabulary's mean.
        answer: To the logit of the answer, over the vocabulary's mean.
        gain_BLH: As `mlp_gain` gives it, of each head's output by the MLP of its layer.
        gain_BL: The same of the sum of a layer's heads.
    """

    topic: Attribution
    answer: Attribution
    gain_BLH: Tensor
    gain_BL: Tensor

    def movers(self, num: int = 3) -> list[tuple[int, int]]:
        """Return the heads (layer, head) that add most to the subject's logit, by their mean."""
        mean_LH = self.topic.heads_BLH.mean(0)
        order = mean_LH.flatten().argsort(descending=True, stable=True)[:num]
        return [divmod(int(i), mean_LH.shape[1]) for i in order]


@method(source="Lv et al. 2024, arXiv:2403.19521", interface=Analysis)
def factual_recall(
    model: Model, prompts: Sequence[str] | Tensor, subjects: Words, answers: Words
) -> FactualRecall:
    """Say which heads bring the topic to the last token, and which MLPs turn it into the answer.

    As in the paper: contributions are read by the unembedding with the final norm frozen. Logits
    count over the mean of the vocabulary, which no softmax sees, and what an MLP amplifies or
    erases is measured along the heads' own outputs.

    Args:
        model: A decoder whose parts add up to its stream.
        prompts: Texts or token ids, one fact each.
        subjects: What each prompt is about, " France": of several tokens the first counts.
        answers: The right next words, " Paris".

    Raises:
        InputError: Numbers differ, or the parts do not add up to the logits.

    Example:
        >>> from actkit.worlds import reader
        >>> m = Model(reader(at=(1, 2)))  # one head copies the first token
        >>> found = factual_recall(m, torch.tensor([[3, 1, 2]]), [3], [3])
        >>> found.movers(1), found.topic.heads_BLH[0, 1, 2]  # logit 1, mean 1 / 6
        ([(1, 2)], tensor(0.8333))
    """
    topic_B, answer_B = first_tokens(model, subjects), first_tokens(model, answers)
    read = readout(model, prompts)
    parts = read.parts
    return FactualRecall(
        read.attribute(topic_B, against="mean"),
        read.attribute(answer_B, against="mean"),
        mlp_gain(parts.mlps_BLD[:, :, None], parts.heads_BLHD),
        mlp_gain(parts.mlps_BLD, parts.heads_BLHD.sum(2)),
    )


def first_tokens(model: Model, words: Words) -> Tensor:
    """Return the (B,) ids of the first token of each word; ids stay."""
    if isinstance(words, Tensor):
        return words
    ids = [w if isinstance(w, int) else _encoded(model, w)[0] for w in words]
    return torch.tensor(ids)


def _encoded(model: Model, word: str) -> list[int]:
    ids: list[int] = []
    if model.tokenizer is not None:
        ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids:
        raise InputError(f"a word needs a tokenizer that knows it, got {word!r}")
    return ids


def mlp_gain(mlps: Tensor, heads: Tensor) -> Tensor:
    """Return <m, o> / <o, o>: which share of o an MLP adds along it; below 0 it erases.

    Example:
        >>> mlp_gain(torch.tensor([-1.0, 7.0]), torch.tensor([2.0, 0.0]))
        tensor(-0.5000)
    """
    return (mlps * heads).sum(-1) / heads.square().sum(-1).clamp_min(1e-12)


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Outputs of an MLP as a sum of vectors that can be named.

    Attributes:
        coefficients_J: Of each vector, one for all outputs.
        residual_ND: What is left.
        r2: Share of the outputs' squares that the sum explains.
    """

    coefficients_J: Tensor
    residual_ND: Tensor
    r2: float


def mlp_decompose(outputs_ND: Tensor, basis: Tensor, ridge: float = 1e-4) -> Decomposition:
    """Write outputs as m = sum_j c_j b_j + residual, by ridge regression over a set of prompts.

    Args:
        outputs_ND: What an MLP wrote, one row a prompt.
        basis: (J, D) vectors, or (N, J, D) ones that differ by prompt: outputs of the layer's
            heads, rows of the unembedding for topic and answer, a task's mean.
        ridge: Penalty, as a share of the basis vectors' mean square.

    Raises:
        InputError: Shapes do not fit, numbers are not finite, or outputs are all zero.

    Example:
        >>> outputs = torch.tensor([[3.0, 4.0, 0.0], [3.0, 4.0, 1.0]])
        >>> mlp_decompose(outputs, torch.eye(3)[:2], ridge=0.0).coefficients_J
        tensor([3., 4.])
    """
    basis_NJD = basis.expand(len(outputs_ND), -1, -1) if basis.dim() == 2 else basis
    if outputs_ND.dim() != 2 or basis_NJD.shape[::2] != outputs_ND.shape:
        raise InputError(
            f"a basis must be (J, D) or (N, J, D) for outputs (N, D), got {tuple(basis.shape)} "
            f"and {tuple(outputs_ND.shape)}"
        )
    if not (outputs_ND.isfinite().all() and basis.isfinite().all() and outputs_ND.any()):
        raise InputError("outputs and basis must be finite, and outputs not all zero")
    b_NJD, m_ND = basis_NJD.double(), outputs_ND.double()
    gram_JJ = torch.einsum("njd,nkd->jk", b_NJD, b_NJD)
    penalty = ridge * gram_JJ.diagonal().mean() * torch.eye(len(gram_JJ)).to(gram_JJ)
    c_J = torch.linalg.lstsq(gram_JJ + penalty, torch.einsum("njd,nd->j", b_NJD, m_ND)[:, None])
    coefficients_J = c_J.solution[:, 0]
    residual_ND = m_ND - torch.einsum("j,njd->nd", coefficients_J, b_NJD)
    r2 = 1 - float(residual_ND.square().sum() / m_ND.square().sum())
    return Decomposition(coefficients_J.float(), residual_ND.to(outputs_ND), r2)


@dataclass(frozen=True, eq=False)
class Suppression:
    """What the last layer does to answers.

    Attributes:
        change_B: Log-probability of the answer at the end less that before the last layer.
        parts: Names of the last layer's parts: "z.29.0", ..., "mlp_out.29".
        contributions_BC: What each adds to the answer's logit, over the vocabulary's mean.
    """

    change_B: Tensor
    parts: Sequence[str]
    contributions_BC: Tensor

    @property
    def suppressors(self) -> list[str]:
        """Return the parts that take off, on average."""
        low_C = self.contributions_BC.mean(0) < 0
        return [part for part, low in zip(self.parts, low_C.tolist(), strict=True) if low]

    def edits(self, strength: float) -> list[Edit]:
        """Return edits that scale the suppressors by 1 - strength, which lies in [0, 1]."""
        if not 0 <= strength <= 1:
            raise InputError(f"a strength must be in [0, 1], got {strength}")
        return [_scaled(part, 1 - strength) for part in self.suppressors]


def final_layer_suppression(
    model: Model, prompts: Sequence[str] | Tensor, answers: Words
) -> Suppression:
    """Measure how the last layer holds back right answers, and give edits against it.

    As in the paper, by the parts' direct contributions.

    Args:
        model: A decoder whose parts add up to its stream.
        prompts: Texts or token ids.
        answers: The right next words.
    """
    answer_B = first_tokens(model, answers)
    read = readout(model, prompts)
    found, parts = read.attribute(answer_B, against="mean"), read.parts
    last = found.mlps_BL.shape[1] - 1
    before_BD = parts.stream - parts.mlps_BLD[:, -1] - parts.heads_BLHD[:, -1].sum(1)
    before_BD = before_BD - parts.biases_LD[-1]
    log_p_2BV = torch.stack([lens(model, x_BD) for x_BD in (before_BD, parts.stream)])
    before_B, after_B = log_p_2BV[:, torch.arange(len(answer_B), device=answer_B.device), answer_B]
    names = [f"z.{last}.{h}" for h in range(found.heads_BLH.shape[2])] + [f"mlp_out.{last}"]
    given_BC = torch.cat([found.heads_BLH[:, -1], found.mlps_BL[:, -1:]], 1)
    return Suppression(after_B - before_B, names, given_BC)


def _scaled(part: str, factor: float) -> Edit:
    point, layer, *head = part.split(".")
    return scale(f"{point}.{layer}", factor, Where(heads=int(head[0])) if head else None)
