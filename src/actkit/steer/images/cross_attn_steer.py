"""Turn cross-attention outputs of a diffusion network from one concept to its opposite.

Shapes: B batch, T image tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.controller import Controller, StrengthOperation
from actkit.core.edits.edit import Edit
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.context import ForwardContext
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples

Means = dict[tuple[str, int], Tensor]
"""(D,) by site and step."""


@dataclass(frozen=True, eq=False)
class TurnCrossAttention(StrengthOperation):
    """Move tokens that lie against a unit vector along it, and keep their lengths.

    Example:
        >>> removed = TurnCrossAttention(torch.tensor([1.0, 0.0]), strength=-1.0)
        >>> removed(torch.tensor([[[3.0, 4.0], [-3.0, 4.0]]]))
        tensor([[[ 0.,  5.],
                 [-3.,  4.]]])
    """

    identifier: ClassVar[str] = "cross_attn_steer.turn"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.cross_attn_steer:Turn",)
    vector: Tensor
    threshold: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return x + s against v, as long as before, where against > threshold |x|."""
        dose, v_D = self.dose(x), self.vector
        against_BT1 = -torch.as_tensor(dose, device=x.device).sign() * (x * v_D).sum(
            -1, keepdim=True
        )
        new = x + dose * against_BT1 * v_D
        length_BT1, least = x.norm(dim=-1, keepdim=True), torch.finfo(x.dtype).tiny
        new = new * (length_BT1 / new.norm(dim=-1, keepdim=True).clamp_min(least))
        return torch.where(against_BT1 > self.threshold * length_BT1, new, x)


@method(source="MedSteer 2026, arXiv:2603.07066")
@dataclass
class CrossAttnSteer(ContrastSteerer):
    """Counterfactual samples of the same seed, by projections in every cross-attention layer.

    For each layer and each step v is the unit vector from the mean output under the negative
    prompt to that under the positive one, over tokens and seeds. While the positive prompt is
    sampled again from its own noise, every token o becomes o - b relu(<o, v>) v, rescaled to its
    length: strength -1 removes the concept (b = 1), -2 turns it round. Positive strengths do the
    same against -v, which brings the concept into samples of the negative prompt. Tokens whose
    cosine is not above the threshold keep every bit.

    Differs from the paper: the opposite direction and a threshold other than zero are ours.

    Args:
        sample: Samples from a prompt and a seed through the network, with the same number of
            calls each time: `lambda prompt, seed: pipe(prompt, generator=...)`.
        sites: Outputs of the cross-attention layers; the default is diffusers' name of them.
        num_seeds: How many samples of each prompt to read (seeds 0, 1, ...).
        threshold: Cosine above which a token is turned, in [0, 1).
        rows: Rows of the network's batch that carry the prompt, to be read and turned: in a
            pipeline with classifier-free guidance the second half, `slice(n, None)`.

    Attributes:
        vectors_: Unit vectors (D,) by site and step; the last one acts in any later step, too.

    Raises:
        InputError: A setting is out of its range, the two sides take different numbers of steps,
            or their outputs do not differ.

    Example:
        >>> import actkit as ak
        >>> net = torch.nn.Sequential(torch.nn.Identity())
        >>> m = ak.open(net)  # its "sampler" calls it once, with the prompt
        >>> steer = CrossAttnSteer(lambda prompt, seed: net(prompt), sites="0:out")
        >>> steer = steer.fit(m, [(torch.tensor([[[2.0, 1.0]]]), torch.tensor([[[0.0, 1.0]]]))])
        >>> m.run(torch.tensor([[[3.0, 4.0]]]), edits=steer.edits(-2.0)).output
        tensor([[[-3.,  4.]]])
    """

    grid: ClassVar[tuple[float, ...]] = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
    sample: Callable[[Any, int], Any]
    sites: str = "*.attn2:out"
    num_seeds: int = 8
    threshold: float = 0.0
    rows: slice | None = None
    vectors_: Means = field(init=False, repr=False, default_factory=dict)

    def _contrast(self, model: Model, examples: Examples) -> None:
        if self.num_seeds < 1 or not 0 <= self.threshold < 1:
            raise InputError(
                "num_seeds must be at least 1 and the threshold in [0, 1), "
                f"got {self.num_seeds} and {self.threshold}"
            )
        plus = self._means(model, examples.positive)
        minus = self._means(model, examples.negative)
        if plus.keys() != minus.keys():
            raise InputError(
                "both sides must call the network equally often, got "
                f"{_num_steps(plus)} and {_num_steps(minus)} steps"
            )
        found = {at: plus_D - minus[at] for at, plus_D in plus.items()}
        for (site, step), v_D in found.items():
            if not v_D.norm() > 0 or not v_D.isfinite().all():
                raise InputError(
                    f"the two sides must differ by a finite vector, got length {v_D.norm():g} "
                    f"at {site} in step {step}"
                )
        self.vectors_ = {at: (v_D / v_D.norm()).float() for at, v_D in found.items()}

    def _means(self, model: Model, prompts: Sequence[Any]) -> Means:
        """Return the mean output at each site and step, over tokens, rows, prompts and seeds."""
        means: Means = {}
        share = 1 / (len(prompts) * self.num_seeds)
        edits = [
            Edit(s.name, _Watch(s.name, means, share, key=f"watch {s.name}"), Where(rows=self.rows))
            for s in model.sites(self.sites)
        ]
        runs = [(prompt, seed) for prompt in prompts for seed in range(self.num_seeds)]
        for prompt, seed in track(runs, "sampling"):
            with torch.no_grad(), model.edited(edits):
                self.sample(prompt, seed)
        return means

    def _act(self, strength: Strength) -> list[Edit]:
        last = _num_steps(self.vectors_) - 1
        return [
            Edit(
                site,
                TurnCrossAttention(v_D, self.threshold, strength=strength),
                Where(rows=self.rows, steps=step if step < last else slice(step, None)),
            )
            for (site, step), v_D in self.vectors_.items()
        ]


def _num_steps(vectors: Means) -> int:
    return 1 + max(step for _, step in vectors)


@dataclass(frozen=True, eq=False)
class _Watch(Controller):
    """Add a share of the mean of what it sees to the site's and step's own."""

    site: str
    means: Means
    share: float

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Return x, unchanged."""
        at = self.site, context.step
        self.means[at] = self.means.get(at, 0) + self.share * x.double().flatten(0, 1).mean(0)
        return x
