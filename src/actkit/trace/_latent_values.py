"""Latent tokens in place of the values in a chain of thought.

Shapes: B traces, T tokens, D width, C digits times base.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from actkit.core.edits.edit import Edit
from actkit.core.edits.edit import set as put
from actkit.core.edits.where import Where
from actkit.core.errors import InputError, NotFittedError
from actkit.core.progress import track
from actkit.model import Model


@dataclass
class LatentValues:
    """Say and read values without their tokens, through two linear maps.

    A value is the one-hot vector of its digits. Where the trace has its token, the token's
    embedding is replaced by a linear projection of this vector; a linear readout of the last
    norm, one token before, predicts it digit by digit. The paper trains the network along; here
    it stays as it is and only the two maps are fitted.

    Args:
        base: Of the digits.
        digits: How many; values are numbers below base ** digits.
        rate: Adam's learning rate.
        num_steps: Of Adam, on all traces.
        seed: Of the first maps.

    Attributes:
        project_CD: Fitted; from digits to embeddings.
        readout_DC: Fitted; from the last norm to digits.
    """

    base: int = 10
    digits: int = 1
    rate: float = 0.03
    num_steps: int = 100
    seed: int = 0
    project_CD: Tensor | None = field(default=None, init=False, repr=False)
    readout_DC: Tensor | None = field(default=None, init=False, repr=False)

    def fit(self, model: Model, traces_BT: Tensor, at: Mapping[str, int], number: Tensor) -> None:
        """Fit both maps on right traces.

        Args:
            model: A decoder.
            traces_BT: The traces.
            at: The position of each variable's value, in order.
            number: (vocabulary,) the number that each token means.
        """
        width = model.sites("embeddings")[0].unit_shape
        if width is None:
            raise InputError("latent values need a network whose embeddings have a width")
        device = next(model.module.parameters()).device
        generator, size = torch.Generator().manual_seed(self.seed), self.base * self.digits
        self.project_CD, self.readout_DC = (
            (torch.randn(shape, generator=generator).to(device) * 0.1).requires_grad_()
            for shape in ((size, width[-1]), (width[-1], size))
        )
        optimizer = torch.optim.Adam([self.project_CD, self.readout_DC], self.rate)
        values = {p: self._digits(number[traces_BT[:, p]]).to(device) for p in at.values()}
        for _ in track(range(self.num_steps), "fitting latent values"):
            edits = [self._said(place, digits) for place, digits in values.items()]
            rec = model.run(traces_BT, record="final_norm", edits=edits, grad=True)
            loss = sum(
                cross_entropy(self._read(rec["final_norm"][:, p - 1]).flatten(0, 1), v.flatten())
                for p, v in values.items()
            )
            optimizer.zero_grad()
            torch.as_tensor(loss).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.project_CD.requires_grad_(False)
        self.readout_DC.requires_grad_(False)

    def write(self, model: Model, traces_BT: Tensor, at: Mapping[str, int]) -> Tensor:
        """Return the number of each value, (B, values), read one after another.

        Each is put back as a latent token before the next one is read; the value tokens of the
        traces are never seen, all others are given.
        """
        edits: list[Edit] = []
        found = []
        for place in at.values():
            rec = model.run(traces_BT[:, :place], record="final_norm", edits=edits)
            digits = self._read(rec["final_norm"][:, -1]).argmax(-1)
            edits.append(self._said(place, digits))
            found.append((digits * self._powers(digits.device)).sum(-1))
        return torch.stack(found, 1).to(traces_BT.device)

    def _digits(self, number_B: Tensor) -> Tensor:
        """Return (B, digits), the lowest first."""
        if number_B.min() < 0 or number_B.max() >= self.base**self.digits:
            raise InputError(
                f"values must be from 0 to {self.base**self.digits - 1}, "
                f"got {int(number_B.min())} to {int(number_B.max())}"
            )
        return number_B[:, None] // self._powers(number_B.device) % self.base

    def _powers(self, device: torch.device) -> Tensor:
        return self.base ** torch.arange(self.digits, device=device)

    def _said(self, place: int, digits: Tensor) -> Edit:
        if self.project_CD is None:
            raise NotFittedError("LatentValues must be fitted before it is used")
        vector_BC = one_hot(digits, self.base).flatten(1).to(self.project_CD.dtype)
        return put("embeddings", vector_BC @ self.project_CD, Where(tokens=place))

    def _read(self, x_BD: Tensor) -> Tensor:
        """Return the logits of each digit, (B, digits, base)."""
        if self.readout_DC is None:
            raise NotFittedError("LatentValues must be fitted before it is used")
        return (x_BD @ self.readout_DC).reshape(-1, self.digits, self.base)
