"""What takes the place of parts that are knocked out.

Shapes: T tokens.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit, set
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.run.recording import Recording
from actkit.model import Model
from actkit.trace._circuit import Node
from actkit.trace._parts import Parts
from actkit.trace._task import Trial

Prompts = Sequence[str] | Tensor
AXES = {"position": "tokens", "head": "heads", "unit": "units"}


def reference_run(trial: Trial, names: Sequence[str], reference: Prompts | None) -> Recording:
    """Record sites on reference prompts, by default the task's corrupt ones.

    Raises:
        InputError: The prompts are not all of the length of the task's.
    """
    given = reference if reference is None or isinstance(reference, Tensor) else list(reference)
    batch = trial.corrupt if given is None else trial.model.encode(given)
    rec = trial.model.run(batch, names)
    lengths = sorted({int(n) for n in rec.rows.valid.sum(-1)})
    if lengths != [trial.length]:
        raise InputError(
            f"reference prompts must have {trial.length} tokens as the task's, got {lengths}"
        )
    return rec


def means(
    trial: Trial, names: Sequence[str], reference: Prompts | None = None
) -> dict[str, Tensor]:
    """Return each site's mean over the reference prompts at each position, (1, T, ...)."""
    rec = reference_run(trial, names, reference)
    return {name: rec[name].mean(0, keepdim=True) for name in names}


def removal(
    model: Model, parts: Parts, nodes: Iterable[Node], values: dict[str, Tensor]
) -> list[Edit]:
    """Return edits that put values in place of parts, given by their entries in the scores.

    Entries that differ on the last axis alone share an edit.
    """
    names, alike = [site.name for site in parts.sites(model)], defaultdict(list)
    for layer, *rest in sorted(nodes):
        alike[layer, *rest[:-1]].append(rest[-1:])
    edits = []
    for (layer, *shared), own in alike.items():
        index: list[Any] = [*shared, [i for (i,) in own]] if parts.axes else []
        where = Where(**{AXES[a]: i for a, i in zip(parts.axes, index, strict=True)})
        edits.append(set(names[layer], values[names[layer]], where))
    return edits


def drawn(rec: Recording, names: Sequence[str], num: int, seed: int) -> dict[str, Tensor]:
    """Return each site's values on `num` rows drawn from a recording, the same at all sites."""
    gen = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(rec.rows), (num,), generator=gen)
    return {name: rec[name][rows] for name in names}
