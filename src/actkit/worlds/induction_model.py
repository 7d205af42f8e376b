"""An induction head with two logits and a readout: what it answers, and its exact gradient.

Shapes: B sequences, N pairs, T = 2 N + 1 positions, L labels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.worlds.labelled_items import IclBatch


@dataclass(frozen=True, slots=True, eq=False)
class InductionModel:
    """Softmaxes inside one another: previous token, match, answer.

    With positions 0 ... 2N, items at the even ones, the last of them asked:
    a_st = softmax over t <= s of `previous` [t = s - 1], m_s = sum of a_st over items t of the
    asked class, p_s = softmax of `match` m_s, g_l = sum of p_s over labels s that are l, and
    the answer is the softmax of `readout` g_l.

    Args:
        logits_3: (3,) `previous`, `match` and `readout`; float64 is advised.
        num_labels: L.

    Raises:
        InputError: There are not three finite logits, or a label is not below L.

    Example:
        >>> context = IclBatch(torch.empty(1, 5, 0), torch.tensor([[4, 7, 4]]),
        ...                    torch.tensor([[1, 0, 1]]))
        >>> blind = InductionModel(torch.tensor([0.0, 0.0, 1.0]), num_labels=2)
        >>> blind.accuracy(context), blind.at([50.0, 50.0, 1.0]).accuracy(context)
        (0.5, 1.0)
    """

    logits_3: Tensor
    num_labels: int

    def __post_init__(self) -> None:
        """Check the logits."""
        if self.logits_3.shape != (3,) or not self.logits_3.isfinite().all():
            raise InputError(f"need three finite logits, got {self.logits_3}")

    def at(self, logits: list[float] | Tensor) -> "InductionModel":
        """Return the model at other logits."""
        given_3 = torch.as_tensor(logits, dtype=self.logits_3.dtype)
        return InductionModel(given_3, self.num_labels)

    def probs(self, batch: IclBatch) -> Tensor:
        """Return the (B, L) probabilities of the answers."""
        _, match_BT = _first_layer(self.logits_3[0], batch)
        spread_BT = (self.logits_3[1] * match_BT).softmax(-1)
        g_BL = (spread_BT[:, None] @ self._labels(batch))[:, 0]
        prob_BL: Tensor = (self.logits_3[2] * g_BL).softmax(-1)
        return prob_BL

    def accuracy(self, batch: IclBatch) -> float:
        """Return the share of right answers; where answers tie, the chance to draw the right."""
        prob_BL = self.probs(batch)
        best_BL = prob_BL >= prob_BL.amax(1, keepdim=True) * (1 - 1e-6)
        hit_B = best_BL.gather(1, batch.answers[:, None])[:, 0]
        return float((hit_B / best_BL.sum(1)).double().mean())

    def loss(self, batch: IclBatch) -> Tensor:
        """Return the mean cross-entropy (nats)."""
        right_B1 = self.probs(batch).gather(1, batch.answers[:, None])
        loss: Tensor = -right_B1.log().mean()
        return loss

    def gradient(self, batch: IclBatch) -> Tensor:
        """Return the (3,) derivative of the loss, written out through the three softmaxes."""
        previous, match, readout = self.logits_3
        slope_BT, match_BT = _first_layer(previous, batch)
        word_BTL = self._labels(batch)
        spread_BT = (match * match_BT).softmax(-1)

        def through(d_BT: Tensor) -> Tensor:  # of g, for a change d of the softmax's logits
            d_spread_BT = spread_BT * (d_BT - (spread_BT * d_BT).sum(-1, keepdim=True))
            d_g_BL: Tensor = (d_spread_BT[:, None] @ word_BTL)[:, 0]
            return d_g_BL

        g_BL = (spread_BT[:, None] @ word_BTL)[:, 0]
        d_logit_3BL = torch.stack(
            [readout * through(match * slope_BT), readout * through(match_BT), g_BL]
        )
        miss_BL = (readout * g_BL).softmax(-1)
        miss_BL = miss_BL.scatter_add(1, batch.answers[:, None], -torch.ones_like(g_BL[:, :1]))
        slopes_3: Tensor = (d_logit_3BL * miss_BL).sum(-1).mean(-1)
        return slopes_3

    def descend(self, batch: IclBatch, num_steps: int, rate: float) -> tuple[Tensor, Tensor]:
        """Descend the gradient: (S, 3) logits and (S,) losses before each step."""
        logits, losses, here = [], [], self
        for _ in range(num_steps):
            logits.append(here.logits_3)
            losses.append(here.loss(batch))
            here = self.at(here.logits_3 - rate * here.gradient(batch))
        return torch.stack(logits), torch.stack(losses)

    def _labels(self, batch: IclBatch) -> Tensor:
        """Return what a position tells, (B, T, L): one-hot at labels, nothing at items."""
        label_BN = batch.label_BS[:, :-1]
        if batch.label_BS.max() >= self.num_labels:
            raise InputError(
                f"labels must be below {self.num_labels}, got {int(batch.label_BS.max())}"
            )
        word_BTL = self.logits_3.new_zeros(
            len(label_BN), 2 * label_BN.shape[1] + 1, self.num_labels
        )
        word_BTL[:, 1::2] = torch.nn.functional.one_hot(label_BN, self.num_labels).to(word_BTL)
        return word_BTL


def _first_layer(previous: Tensor, batch: IclBatch) -> tuple[Tensor, Tensor]:
    """Return each position's share of the asked class, (B, T), and before it the share's slope."""
    length = 2 * batch.class_BS.shape[1] - 1
    before_TT = previous.new_ones(length, length).tril(-1).triu(-1)
    hidden_TT = previous.new_ones(length, length).triu(1).bool()
    attention_TT = (previous * before_TT).masked_fill(hidden_TT, -torch.inf).softmax(-1)
    slope_TT = attention_TT * (before_TT - (attention_TT * before_TT).sum(-1, keepdim=True))
    asked_BT = previous.new_zeros(len(batch.class_BS), length)
    asked_BT[:, ::2] = (batch.class_BS == batch.class_BS[:, -1:]).to(asked_BT)
    return asked_BT @ slope_TT.mT, asked_BT @ attention_TT.mT
