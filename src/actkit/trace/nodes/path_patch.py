"""Path patching: what a part sends along direct paths, with all other heads held still.

Shapes: B pairs, V variants, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, swap
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import Recording
from actkit.core.sites.site_names import points_of
from actkit.model import Model
from actkit.trace._base import Localizer
from actkit.trace._parts import Part, Parts
from actkit.trace._task import Task, Trial, as_trial

SENDERS = ("z", "attn_out", "mlp_out", "mlp_hidden")
RECEIVERS = ("q", "k", "v")
Receivers = Literal["logits"] | Sequence[Part]


@method(source="Wang et al. 2022, arXiv:2211.00593, section 3")
@dataclass
class PathPatch(Localizer):
    """Score each part by what it alone sends to the logits, or to inputs of later heads.

    In the clean run the part takes its value of the corrupt run, all later heads keep their clean
    values and MLPs are recomputed; what then reaches the receivers is put into a second clean
    run, in which all that follows is recomputed. A score is the share of the gap that is lost,
    (m_patched - m_clean) / (m_corrupt - m_clean), the mean over pairs taken before the ratio.
    As in the paper, which gives the change of the metric itself: see `path_patch`.

    Args:
        parts: The senders: "heads", "attns", "mlps", "attn", "mlp", "neurons", or `Parts` of the
            points z, attn_out, mlp_out and mlp_hidden.
        receivers: "logits", or parts of the points q, k and v, all of them together; keys and
            values count their own heads.
        batch: Rows that run at once, as in `m.sweep`.

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> PathPatch()(Model(reader(at=(1, 1))), first).top(1)
        [('layer 1, head 1', 1.0)]
    """

    unit: ClassVar[str] = "share of the gap"
    kinds: ClassVar[tuple[str, ...]] = ("heads", "mlp")
    parts: str | Parts = "heads"
    receivers: Receivers = "logits"
    batch: int | str = "auto"

    def _score(self, trial: Trial, parts: Parts) -> Tensor:
        length = trial.length if "position" in parts.axes else 0
        senders = [[part] for part in parts.each(trial.model, length)]
        return trial.recovery(_patched(trial, senders, self.receivers, self.batch), "clean")


def path_patch(
    model: Model, task: Task | Trial, senders: Sequence[Part], receivers: Receivers = "logits"
) -> Tensor:
    """Return how much of the metric is lost along the paths from some parts to others.

    Args:
        model: The network.
        task: Pairs of prompts, or the trial that `task.on(model)` gave.
        senders: Parts that take their corrupt values, all together; none gives zero.
        receivers: As in `PathPatch`.

    Returns:
        (B,) metric of the clean run less that of the patched one, in units of the metric.

    Example:
        >>> import torch
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> path_patch(Model(reader(at=(1, 1))), first, [Part("z.1", head=1)])
        tensor([2.])
    """
    trial = as_trial(model, task)
    return trial.clean_values - _patched(trial, [senders], receivers, "auto")[0]


def _patched(
    trial: Trial, groups: Sequence[Sequence[Part]], receivers: Receivers, batch: int | str
) -> Tensor:
    """Return the (V, B) metric of the clean run with each group's paths patched."""
    _check("a sender", {s.site for group in groups for s in group}, SENDERS)
    heads = [site.name for site in trial.model.sites("z.*")]
    clean = trial.record("clean", heads)
    sites = sorted({s.site for group in groups for s in group})
    corrupt = trial.source("corrupt", sites) if sites else clean
    sent = [_sent(group, clean, corrupt) for group in groups]
    if isinstance(receivers, str):
        if receivers != "logits":
            raise InputError(f"receivers must be 'logits' or parts, got {receivers!r}")
        return trial.sweep(sent, "clean", batch)
    _check("a receiver", {r.site for r in receivers}, RECEIVERS)
    last = max((r.layer for r in receivers), default=0)
    received: list[list[Edit]] = []
    for group, edits in zip(track(groups, "path patching"), sent, strict=True):
        if not any(s.layer < last for s in group):  # nothing can reach a receiver
            received.append([])
            continue
        inputs = trial.record("clean", sorted({r.site for r in receivers}), edits)
        received.append([swap(r.site, inputs, r.where) for r in receivers])
    return trial.sweep(received, "clean", batch)


def _sent(group: Sequence[Part], clean: Recording, corrupt: Recording) -> list[Edit]:
    """Return the edits of the first run: later heads as they were, then the senders."""
    first = min((s.layer for s in group), default=0)
    frozen = [swap(z, clean) for z in clean if group and Part(z).layer > first]
    return frozen + [swap(s.site, corrupt, s.where) for s in group]


def _check(what: str, sites: set[str], points: tuple[str, ...]) -> None:
    for site in sorted(sites):
        if not points_of(site) or not {*points_of(site)} <= {*points}:
            raise InputError(
                f"{what} must be a part of one block at {', '.join(points)}, got {site!r}"
            )
