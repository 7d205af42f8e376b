"""Follow what spectra say along a sequence, and tell at each step whether it goes wrong.

Shapes: S sequences, W steps, F descriptors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.guard._base import Detector


class _Net(nn.Module):
    def __init__(self, cell: type[nn.GRU] | type[nn.LSTM], num_inputs: int, width: int) -> None:
        super().__init__()
        self.cell = cell(num_inputs, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, steps_SWF: Tensor, lengths_S: Tensor) -> Tensor:
        packed = pack_padded_sequence(steps_SWF, lengths_S, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.cell(packed)[0], batch_first=True)
        logits_SW: Tensor = self.head(states)[..., 0]
        return logits_SW


@method(source="Ettori 2026, arXiv:2602.22345, EigenTrack")
@dataclass(eq=False)
class EigenTrack(Detector):
    """Score every step of a sequence of spectral descriptors by a small recurrent network.

    A step's probability depends on it and on earlier steps alone, so it can be given while a
    text is being written. As in the paper; descriptors are standardised by the training steps'
    mean and deviation. A sequence's label is that of all its steps unless each has its own.

    Args:
        cell: Kind of recurrence, "gru" or "lstm".
        width: Units of the recurrence (>= 1).
        epochs: Passes over all sequences, each one step of Adam (>= 1).
        rate: Adam's learning rate.
        seed: Of the initial weights.

    Raises:
        InputError: A setting is out of range.

    Example:
        >>> up, down = torch.tensor([[0.0], [0.0], [1.0]]), torch.tensor([[1.0], [0.0], [0.0]])
        >>> detector = EigenTrack(width=4, epochs=100).fit([up, down], [1, 0])
        >>> [round(float(steps_W[-1])) for steps_W in detector.score([up, down])]
        [1, 0]
    """

    cell: Literal["gru", "lstm"] = "gru"
    width: int = 32
    epochs: int = 150
    rate: float = 1e-2
    seed: int = 0
    _net: _Net | None = field(default=None, init=False, repr=False)
    _mean_F: Tensor = field(init=False, repr=False)
    _std_F: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.cell not in ("gru", "lstm") or min(self.width, self.epochs) < 1 or self.rate <= 0:
            raise InputError(
                "cell must be 'gru' or 'lstm', width and epochs at least 1 and rate above 0, got "
                f"{self.cell!r}, {self.width}, {self.epochs}, {self.rate}"
            )

    def fit(self, sequences: Sequence[Tensor], labels: Sequence[float | Tensor]) -> Self:
        """Learn from (W, F) sequences, whose lengths may differ, by binary cross-entropy.

        Args:
            sequences: Descriptors, for example of `mp_descriptors`.
            labels: For each sequence 0 or 1 (goes wrong), or a (W,) tensor of them.

        Raises:
            InputError: Shapes, lengths or labels do not fit, or a value is not finite.
        """
        steps = _checked(sequences)
        if len(labels) != len(steps):
            raise InputError(f"need one label a sequence, got {len(labels)} for {len(steps)}")
        targets = [_target(label, x) for label, x in zip(labels, steps, strict=True)]
        every = torch.cat(steps)
        self._mean_F, self._std_F = every.mean(0), every.std(0, correction=0)
        self._std_F = self._std_F.where(self._std_F > 0, 1)  # a constant descriptor says nothing
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._net = _Net(
                {"gru": nn.GRU, "lstm": nn.LSTM}[self.cell], every.shape[1], self.width
            )
        inputs, lengths_S = self._batch(steps)
        target_SW = pad_sequence(targets, batch_first=True)
        valid_SW = torch.arange(target_SW.shape[1]) < lengths_S[:, None]
        optimizer = torch.optim.Adam(self._net.parameters(), self.rate)
        for _ in track(range(self.epochs), "fitting"):
            logits_SW = self._net(inputs, lengths_S)
            loss = nn.functional.binary_cross_entropy_with_logits(
                logits_SW[valid_SW], target_SW[valid_SW]
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return self

    def score(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        """Return for each (W, F) sequence its (W,) probabilities to go wrong, step by step.

        Raises:
            InputError: It was not fitted, or shapes do not fit.
        """
        if self._net is None:
            raise InputError("fit must come before score, got a detector without weights")
        steps = _checked(sequences)
        if steps[0].shape[1] != len(self._mean_F):
            raise InputError(f"fitted on {len(self._mean_F)} descriptors, got {steps[0].shape[1]}")
        with torch.no_grad():
            probs_SW = self._net(*self._batch(steps)).sigmoid()
        return [p_W[: len(x)] for p_W, x in zip(probs_SW, steps, strict=True)]

    def _batch(self, steps: list[Tensor]) -> tuple[Tensor, Tensor]:
        scaled = [(x - self._mean_F) / self._std_F for x in steps]
        return pad_sequence(scaled, batch_first=True), torch.tensor([len(x) for x in steps])


def _checked(sequences: Sequence[Tensor]) -> list[Tensor]:
    shapes = [tuple(x.shape) for x in sequences]
    if not shapes or any(len(s) != 2 or not s[0] or s[1] != shapes[0][-1] for s in shapes):
        raise InputError(f"need (W, F) sequences that share F, W at least 1, got {shapes[:5]}")
    if num_bad := sum(int((~x.isfinite()).sum()) for x in sequences):
        raise InputError(f"descriptors must be finite, got {num_bad} that are not")
    return [x.detach().cpu().float() for x in sequences]


def _target(label: float | Tensor, steps_WF: Tensor) -> Tensor:
    target_W = torch.as_tensor(label, dtype=torch.float32)
    if (
        target_W.shape not in ((), steps_WF.shape[:1])
        or not ((target_W == 0) | (target_W == 1)).all()
    ):
        raise InputError(
            f"a label must be 0 or 1, or {len(steps_WF)} of them, got shape "
            f"{tuple(target_W.shape)} from {float(target_W.min())} to {float(target_W.max())}"
        )
    return target_W.expand(len(steps_WF))
