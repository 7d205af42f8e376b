"""Causal tracing: spoil the subject with noise, restore one clean state, and see what comes back.

Shapes: B prompts, T tokens, D width, V variants.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, add, swap
from actkit.core.edits.where import indices
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import Recording
from actkit.trace._base import Localizer
from actkit.trace._parts import Part, Parts, as_parts
from actkit.trace._task import Trial

STATES = ("resid_pre", "resid_post")
"""What can be severed; MLP and attention below a state do not matter once it is restored."""


@method(source="Meng et al. 2022, arXiv:2202.05262, section 2")
@dataclass
class CausalTrace(Localizer):
    """Score each state by how much of the answer comes back when it alone is restored.

    The corrupted run has noise of `noise` standard deviations of the subjects' embeddings on
    every token of the subject. A score is the average indirect effect
    AIE = mean(m(corrupted, part restored) - m(corrupted)) over prompts and draws; m is the task's
    metric, "probability" in the paper. Only clean prompts are run; a task's corrupt ones serve to
    see that the network can tell them apart. As in the paper; all prompts share the draws, so
    that a prompt scores alike in any company.

    Args:
        subject: Positions of the subject's tokens: one, several, a slice, or a (B, T) bool mask.
        parts: What is restored: `Parts("resid_post", ("position",))`, "mlp" or "attn".
        window: How many neighbouring layers are restored together; 10 for "mlp" and "attn".
        sever: "mlp" or "attn": keep what these add to the same token above a restored state as
            it is in the corrupted run, so that the state acts by other ways only.
        noise: Standard deviation of the noise, in those of the subjects' embeddings.
        draws: How many draws of noise.
        seed: Of the noise.
        batch: Rows that run at once, as in `m.sweep`.

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> CausalTrace(subject=0)(Model(reader(at=(1, 1))), first).values > 0
        tensor([[ True, False],
                [False,  True]])
    """

    unit: ClassVar[str] = "of the metric"
    subject: int | slice | Sequence[int] | Tensor
    parts: str | Parts = field(default_factory=lambda: Parts("resid_post", ("position",)))
    window: int = 1
    sever: Literal["mlp", "attn"] | None = None
    noise: float = 3.0
    draws: int = 10
    seed: int = 0
    batch: int | str = "auto"

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.window < 1 or self.draws < 1 or not self.noise > 0:
            raise InputError(
                f"window and draws must be at least 1 and noise above 0, got {self.window}, "
                f"{self.draws} and {self.noise}"
            )
        if self.sever not in (None, "mlp", "attn"):
            raise InputError(f"sever must be 'mlp', 'attn' or None, got {self.sever!r}")
        point = as_parts(self.parts).point
        if self.sever and (point not in STATES or self.window > 1):
            raise InputError(
                f"only single states of {' and '.join(STATES)} can be severed, got {point} in "
                f"windows of {self.window}"
            )

    def _score(self, trial: Trial, parts: Parts) -> Tensor:
        clean = trial.record("clean", [site.name for site in parts.sites(trial.model)])
        each = list(parts.each(trial.model, trial.length))
        start = int(self._mask(trial).any(0).long().argmax())
        # before the subject nothing is spoilt, so there is nothing to restore
        late = [i for i, p in enumerate(each) if p.position is None or p.position >= start]
        effects_V = torch.zeros(len(each), dtype=torch.float64)
        for noisy in track(self._noises(trial), "tracing"):
            spoilt = self._spoilt(trial, noisy)
            variants = [[noisy]] + [
                [noisy, *self._restored(each[i], clean), *self._severed(each[i], spoilt)]
                for i in late
            ]
            values_VB = trial.sweep(variants, "clean", self.batch).double()
            effects_V[late] += (values_VB[1:] - values_VB[0]).mean(-1).cpu() / self.draws
        return effects_V

    def _told(self, trial: Trial) -> dict[str, Any]:
        spoilt_VB = trial.sweep([[n] for n in self._noises(trial)], "clean", self.batch)
        means = {"clean": trial.clean_values.mean().item(), "corrupted": spoilt_VB.mean().item()}
        return {**super()._told(trial), "facts": means}

    def _noises(self, trial: Trial) -> list[Edit]:
        """Return the edit that spoils the subjects, for each draw."""
        mask_BT = self._mask(trial)
        embedded_BTD = trial.record("clean", "embeddings")["embeddings"]
        sigma = embedded_BTD[mask_BT].float().std()
        gen = torch.Generator().manual_seed(self.seed)
        shape = (self.draws, *embedded_BTD.shape[1:])
        draws = torch.randn(shape, generator=gen).to(embedded_BTD) * self.noise * sigma
        return [add("embeddings", noise_TD * mask_BT[..., None]) for noise_TD in draws]

    def _mask(self, trial: Trial) -> Tensor:
        """Return the (B, T) bool mask of the subjects' tokens."""
        device = torch.as_tensor(trial.clean.tokens).device
        mask_BT = torch.zeros(len(trial), trial.length, dtype=torch.bool, device=device)
        if isinstance(self.subject, Tensor) and self.subject.dim() > 1:
            if self.subject.shape != mask_BT.shape:
                raise InputError(
                    f"a mask of subjects must have shape {tuple(mask_BT.shape)}, "
                    f"got {tuple(self.subject.shape)}"
                )
            mask_BT |= self.subject.to(device)
        else:
            mask_BT[:, indices(self.subject, trial.length, "positions", device)] = True
        if not mask_BT.any(-1).all():
            raise InputError(f"every prompt needs a token of its subject, got {self.subject}")
        return mask_BT

    def _restored(self, part: Part, clean: Recording) -> list[Edit]:
        """Return the edits that restore a part, and its neighbours in the layers of the window."""
        names = list(clean)
        middle, half = names.index(part.site), self.window // 2
        beside = names[max(0, middle - half) : middle - half + self.window]
        return [swap(name, clean, replace(part, site=name).where) for name in beside]

    def _spoilt(self, trial: Trial, noisy: Edit) -> Recording | None:
        return trial.record("clean", f"{self.sever}_out.*", [noisy]) if self.sever else None

    def _severed(self, part: Part, spoilt: Recording | None) -> list[Edit]:
        """Return the edits that keep the later parts of a token as they are without the state."""
        if spoilt is None:
            return []
        return [swap(name, spoilt, part.where) for name in list(spoilt)[part.layer :]]
