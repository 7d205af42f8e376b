"""Which layers are void for a token: they make its state hardly any longer.

Shapes: N rows, L layers, S = L + 1 sites, A alphas.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, Self, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import Rows
from actkit.core.sweep.stream import batches
from actkit.read._base import JointReading
from actkit.read._sums import added, mergeable, same_width
from actkit.read.streaming._joint import lengths, one_stream, usable_rows

if TYPE_CHECKING:
    from actkit.model import Model

STREAM = ("resid_pre.0", "resid_post.*")
"""The sites that are read together: what enters the first block, and what each block returns."""


def active_layers(norms_NS: Tensor, alpha: float) -> Tensor:
    """Return which layers are active for each token, (N, L) bool; the others are voids.

    Args:
        norms_NS: (N, L + 1) lengths of a token's state, before the first layer and after each.
        alpha: Share of the range of a token's increases so far that a layer must reach.

    Example:
        >>> active_layers(torch.tensor([[0.0, 1.0, 6.0, 7.0, 11.5, 17.5]]), 0.8)
        tensor([[ True,  True, False,  True,  True]])
    """
    increase_NL = norms_NS.diff(dim=1)
    range_NL = increase_NL.cummax(1).values - increase_NL.cummin(1).values
    earlier_NL = pad(range_NL[:, :-1], (1, 0))  # the first layer has none before it
    return increase_NL >= alpha * earlier_NL


@dataclass(frozen=True, slots=True)
class VoidsResult:
    """Shares in [0, 1] of tokens and layers, for each alpha; NaN where no row was usable.

    Attributes:
        alphas: The thresholds that were asked.
        active_AL: (A, L) float64 share of the tokens for which each layer is active.
        active_A: (A,) share of all tokens' layers that are active.
        num_rows: Tokens that were used.
        num_nonfinite: Tokens that were left out since they hold NaN or infinity.
    """

    alphas: tuple[float, ...]
    active_AL: Tensor
    active_A: Tensor
    num_rows: int
    num_nonfinite: int

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report, of the first alpha."""
        mostly_void_L = self.active_AL[0] < 0.5
        return {
            "alpha": self.alphas[0],
            "share_active": float(self.active_A[0]),
            "num_mostly_void": int(mostly_void_L.sum()),
            "num_layers": len(mostly_void_L),
            "num_rows": self.num_rows,
            "num_nonfinite": self.num_nonfinite,
        }


@dataclass(frozen=True, slots=True)
class _VoidsState:
    num_rows: int
    counts_AL: Tensor  # int64
    num_nonfinite: int

    def __add__(self, other: "_VoidsState") -> "_VoidsState":
        same_width(self.counts_AL.shape[1], other.counts_AL.shape[1], "number of layers")
        return _VoidsState(
            self.num_rows + other.num_rows,
            self.counts_AL + other.counts_AL,
            self.num_nonfinite + other.num_nonfinite,
        )


@method(source="Shemiranifar 2025, arXiv:2505.14467, section 3")
@final
@dataclass(eq=False)
class Voids(JointReading):
    """Read for how many tokens each layer is active, by L2 adaptive computation.

    A layer is a void for a token if it adds less to the length of the token's state than `alpha`
    times the range (largest less smallest) of what the layers before it added. As in the paper;
    the first token of a text, whose state is massive in many language models, is left out.

    Args:
        alpha: The threshold (>= 0), or several to read at once.
        skip_first: Leave out the first token of every text.

    Raises:
        InputError: An alpha is negative or not finite, or there is none.

    Example:
        >>> acts = [torch.tensor([[x]]) for x in (0.0, 1.0, 6.0, 7.0, 11.5, 17.5)]
        >>> reading = Voids(alpha=(0.8, 0.0))
        >>> reading.update(acts, Rows.of(torch.ones(1, 1, dtype=torch.bool)).flat())
        >>> reading.result().active_A
        tensor([0.8000, 1.0000], dtype=torch.float64)
    """

    alpha: float | tuple[float, ...] = 0.8
    skip_first: bool = True
    _state: _VoidsState | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the thresholds."""
        if not self._alphas or not all(isfinite(a) and a >= 0 for a in self._alphas):
            raise InputError(f"alpha must be finite and at least 0, got {self.alpha}")

    @property
    def _alphas(self) -> tuple[float, ...]:
        return self.alpha if isinstance(self.alpha, tuple) else (self.alpha,)

    def update(self, acts: Sequence[Tensor], rows: Rows) -> None:
        """Take the (N, D) stream before the first layer and after each, and the (N,) rows.

        Raises:
            InputError: There are fewer than two sites, or their shapes or rows do not fit.
        """
        one_stream(acts, rows, least=2)
        norms_NS = torch.stack([lengths(x) for x in acts], 1)
        keep_N, num_nonfinite = usable_rows(rows, norms_NS.isfinite().all(1), self.skip_first)
        norms_NS = norms_NS[keep_N]
        counts_AL = torch.stack([active_layers(norms_NS, a).sum(0) for a in self._alphas])
        self._state = added(self._state, _VoidsState(len(norms_NS), counts_AL, num_nonfinite))

    def merge(self, other: Self) -> Self:
        """Take in another reading's rows; return self."""
        mergeable(self, other)
        self._state = added(self._state, other._state)
        return self

    def result(self) -> VoidsResult:
        """Return the shares over all rows so far."""
        none_AL = torch.zeros(len(self._alphas), 0, dtype=torch.long)
        state = self._state or _VoidsState(0, none_AL, 0)
        active_AL = state.counts_AL.double() / (state.num_rows or nan)
        return VoidsResult(
            self._alphas, active_AL, active_AL.mean(1), state.num_rows, state.num_nonfinite
        )


def voids_by_phase(
    model: "Model",
    prompts: Any,
    alpha: float | tuple[float, ...] = 0.8,
    max_new_tokens: int = 20,
    sites: Sequence[str] = STREAM,
) -> dict[str, VoidsResult]:
    """Read the voids of the prompts' tokens and of the tokens that the model writes after them.

    Each prompt is continued greedily and then read again with its answer, which gives the states
    that the cached generation had. The last token written is not read: nothing was computed of it.

    Args:
        model: A language model with a tokenizer.
        prompts: Prompts as in `Model.observe`.
        alpha: As in `Voids`.
        max_new_tokens: How many tokens to write at most (>= 2).
        sites: The sites to read together.

    Returns:
        The result for "prompt" and for "generated".

    Raises:
        InputError: The network does not write text, or too few tokens are asked.
    """
    generate: Any = getattr(model.module, "generate", None)
    if generate is None or model.tokenizer is None or max_new_tokens < 2:
        raise InputError(
            "phases need a language model with a tokenizer and at least 2 new tokens, got "
            f"{model!r} and {max_new_tokens}"
        )
    phases = {"prompt": Voids(alpha), "generated": Voids(alpha)}
    for prompt in track(batches(prompts, 1), "finding voids"):
        batch = model.encode(prompt)
        with torch.no_grad():
            written = generate(**batch.kwargs, do_sample=False, max_new_tokens=max_new_tokens)
        rec = model.run({"input_ids": written[:, :-1]}, record=sites)
        acts, rows = [rec.flat(site)[0] for site in rec], rec.rows.flat()
        given_N = rows.position < batch.kwargs["input_ids"].shape[1]
        phases["prompt"].update(acts, replace(rows, valid=given_N))
        phases["generated"].update(acts, replace(rows, valid=~given_N))
    return {phase: reading.result() for phase, reading in phases.items()}
