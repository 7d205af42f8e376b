"""Unlearn by misdirecting the features that what is to be forgotten stands out by.

Shapes: N tokens, D width.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from actkit.catalog import method
from actkit.core.errors import InputError, NotFittedError, SiteError
from actkit.core.progress import track
from actkit.core.sweep.stream import batches
from actkit.model import Model
from actkit.steer._base import WeightSteerer
from actkit.steer._rows import as_batch
from actkit.steer.weights.srmu._misdirection import away, importance, misdirection_loss


@method(source="Chen et al. 2025, arXiv:2512.16297")
@dataclass
class SRMU(WeightSteerer):
    """Selective representation misdirection for unlearning, and RMU, its baseline.

    Copies of a few modules are trained, best the MLPs' down-projections at and below `site`; the
    network itself is never changed. `with srmu.applied(model):` puts the copies in their places
    for a while; `modules_` holds them for who wants to keep them there.

    The loss is `misdirection_loss` on what is to be forgotten plus `alpha` times the mean squared
    distance of retained states from what they were. A coordinate is as important as it is more
    active on the side to forget, followed over the batches. The target leads away from the forget
    mean, orthogonal to what is retained.

    Against the paper: map and direction follow its description and not its formulas, on states of
    the network before training; a sample's first token is left out.

    Args:
        site: Whose states are misdirected, for example `resid_post.7`.
        modules: Paths of the modules to train.
        scale: c, the target's length.
        alpha: Weight of the retain loss.
        rate: AdamW's learning rate.
        num_steps: Of AdamW, at most.
        batch_size: Samples of each side in a step.
        momentum: Share of the old activity that a step keeps.
        rank: Of the retain states' leading subspace, which the direction avoids.
        selective: False is RMU: all coordinates count in full, and the direction is random.
        seed: Of the batches and the random direction.

    Attributes:
        modules_: The trained copies by path.
        importance_: (D,), in [0, 1].
        target_: (D,).
        losses_: (forget, retain) of each step.

    Example:
        >>> import actkit as ak
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False)).requires_grad_(False)
        >>> _ = net[0].weight.copy_(torch.eye(2))
        >>> sides = {"forget": [torch.tensor([1.0, 0.0])], "retain": [torch.tensor([0.0, 1.0])]}
        >>> srmu = SRMU("0:out", ["0"], scale=2, alpha=1, rate=0.05, num_steps=200)
        >>> with srmu.fit(ak.open(net), sides).applied(ak.open(net)), torch.no_grad():
        ...     net(torch.ones(2)).round(decimals=1)
        tensor([-2.,  1.])
    """

    site: str
    modules: Sequence[str]
    scale: float = 6.5
    alpha: float = 1200.0
    rate: float = 5e-5
    num_steps: int = 150
    batch_size: int = 4
    momentum: float = 0.9
    rank: int = 1
    selective: bool = True
    seed: int = 0
    modules_: dict[str, nn.Module] = field(init=False, repr=False, default_factory=dict)
    importance_: Tensor = field(init=False, repr=False)
    target_: Tensor = field(init=False, repr=False)
    losses_: list[tuple[float, float]] = field(init=False, repr=False, default_factory=list)

    def fit(
        self,
        model: Model,
        data: Mapping[str, Sequence[Any]],
        until: Callable[[], bool] | None = None,
    ) -> Self:
        """Train copies of the modules.

        Args:
            model: The network; it stays as it is.
            data: Samples to "forget" and to "retain".
            until: Called after each step with the copies in place; True ends the training.

        Raises:
            InputError: A side is missing or empty, the sides do not differ, a module does not act
                on the site, or a loss is not finite.
            SiteError: A path is no module.
        """
        sides = _sides(data)
        gen = torch.Generator().manual_seed(self.seed)
        self.modules_, self.losses_ = {}, []
        copies = _copies(model, self.modules)
        power_2D = self._aim(model, sides, gen)
        params = [p for module in copies.values() for p in module.parameters()]
        optimizer = torch.optim.AdamW(params, self.rate)
        for _ in track(range(self.num_steps), "unlearning"):
            forget, retain = (_drawn(own, self.batch_size, gen) for own in sides)
            frozen_ND, kept_ND = self._states(model, forget), self._states(model, retain)
            if self.selective:
                power_2D = power_2D.lerp(_power(frozen_ND, kept_ND), 1 - self.momentum)
                self.importance_ = importance(*power_2D)
            with model.replaced(copies):
                f_ND, r_ND = (self._states(model, own, grad=True) for own in (forget, retain))
            lost = misdirection_loss(f_ND, frozen_ND, self.target_, self.importance_)
            moved = (r_ND - kept_ND).square().sum(-1).mean()
            self._step(optimizer, params, lost, moved)
            with model.replaced(copies):
                if until is not None and until():
                    break
        self.modules_ = copies
        return self

    @contextmanager
    def applied(self, model: Model) -> Iterator[None]:
        """Let the trained copies stand in for the modules.

        Raises:
            NotFittedError: `fit` was not called.
        """
        if not self.modules_:
            raise NotFittedError("SRMU must be fitted before it is applied")
        with model.replaced(self.modules_):
            yield

    def _aim(self, model: Model, sides: Sequence[list[Any]], gen: torch.Generator) -> Tensor:
        """Choose target and importance from all samples; return the sides' mean squares, (2, D)."""
        forget_ND, retain_ND = (
            torch.cat([self._states(model, part) for part in batches(own, 32)]) for own in sides
        )
        power_2D = _power(forget_ND, retain_ND)
        if self.selective:
            direction_D = away(forget_ND, retain_ND, self.rank)
            self.importance_ = importance(*power_2D)
        else:
            random_D = torch.randn(forget_ND.shape[1], generator=gen)
            direction_D = torch.nn.functional.normalize(random_D, dim=0).to(forget_ND)
            self.importance_ = torch.ones_like(direction_D)
        self.target_ = self.scale * direction_D
        return power_2D

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        params: list[nn.Parameter],
        lost: Tensor,
        moved: Tensor,
    ) -> None:
        """Update the copies alone; no gradient is left on the network's own weights."""
        self.losses_.append((lost.item(), moved.item()))
        loss = lost + self.alpha * moved
        if not loss.isfinite():
            raise InputError(f"a loss must be finite, got {self.losses_[-1]}: lower the rate")
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        if all(g is None for g in grads):
            raise InputError(f"the modules must act on {self.site}, got {list(self.modules)}")
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()

    def _states(self, model: Model, inputs: Sequence[Any], grad: bool = False) -> Tensor:
        """Return (N, D) states of all tokens but the first, which alone would hide the others."""
        rec = model.run(as_batch(inputs), record=self.site, grad=grad)
        acts_ND, rows = rec.flat(self.site)
        later_N = rows.position > 0
        return acts_ND[later_N].float() if later_N.any() else acts_ND.float()


def _sides(data: Mapping[str, Sequence[Any]]) -> tuple[list[Any], list[Any]]:
    if not isinstance(data, Mapping) or not {"forget", "retain"} <= set(data):
        raise InputError(
            f"data must map 'forget' and 'retain' to samples, got {type(data).__name__}"
        )
    forget, retain = list(data["forget"]), list(data["retain"])
    if not forget or not retain:
        raise InputError(
            f"no side may be empty, got {len(forget)} to forget and {len(retain)} to retain"
        )
    return forget, retain


def _power(forget_ND: Tensor, retain_ND: Tensor) -> Tensor:
    """Return the mean squares of both sides' coordinates, (2, D)."""
    return torch.stack([forget_ND.square().mean(0), retain_ND.square().mean(0)])


def _drawn(samples: list[Any], size: int, gen: torch.Generator) -> list[Any]:
    order = torch.randperm(len(samples), generator=gen)[:size]
    return [samples[i] for i in order.tolist()]


def _copies(model: Model, paths: Sequence[str]) -> dict[str, nn.Module]:
    """Return copies of modules, ready to be trained."""
    try:
        own = {path: model.module.get_submodule(path) for path in paths}
    except AttributeError as error:
        raise SiteError(
            f"modules to train must be in the network, got {list(paths)}: {error}"
        ) from error
    if not own:
        raise InputError("need at least one module to train, got none")
    return {path: copy.deepcopy(module).requires_grad_(True) for path, module in own.items()}
