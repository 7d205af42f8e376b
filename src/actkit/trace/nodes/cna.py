"""Comparative neuron analysis: which neurons lose their say when a head is silenced.

Shapes: B prompts, T tokens, D width, F neurons of a layer, S sources (neurons or heads) of a
layer, K width of a source, V vocabulary, L layers, n rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from actkit.anatomy.linear_map import bias_of, weight_of
from actkit.catalog import method
from actkit.core.edits.edit import Edit, scale
from actkit.core.edits.where import Where, indices
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import Recording
from actkit.core.run.token_labels import token_label
from actkit.core.sites.site_names import layer_of, points_of
from actkit.model import Model
from actkit.trace._base import Localizer
from actkit.trace._parts import PARTS, Parts
from actkit.trace._task import Trial

AROUND = {"mlp_hidden": ("resid_mid", "mlp_out"), "z": ("resid_pre", "attn_out")}
"""The stream that sources are added to, and what they add to it together."""


@method(source="Yu and Ananiadou 2024, arXiv:2409.14144, section 3")
@dataclass
class CNA(Localizer):
    """Score each neuron by how much of its importance it owes to a head.

    With x the stream that a layer's MLP adds to at the last token, m_k a neuron's activation and
    v_k its value vector, its importance is I_k = log p(w | x + m_k v_k) - log p(w | x), p read by
    the final norm and the output head, and a score is the change I_k(bare) - I_k(head zeroed),
    mean over clean prompts. As in the paper, where the task's metric is "log probability"; with
    another one that takes its place.

    Args:
        head: Layer and head of the one that is zeroed; None for the importance itself.
        parts: "neurons"; "heads" for the same of what each head adds.
        layers: Which ones to score, the others are NaN; all if None. A layer costs as much as
            the output head on F tokens for each prompt.
        batch: Rows that are read by the output head at once.

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> CNA(None, "heads")(Model(reader(at=(1, 1))), first).values  # the logit of 3 by 1
        tensor([[0., 0., 0.],
                [0., 1., 0.]])
    """

    unit: ClassVar[str] = "of the metric"
    kinds: ClassVar[tuple[str, ...]] = ("heads",)
    head: tuple[int, int] | None
    parts: str | Parts = "neurons"
    layers: Sequence[int] | None = None
    batch: int = 256

    def _score(self, trial: Trial, parts: Parts) -> Tensor:
        if parts not in (PARTS["neurons"], PARTS["heads"]) or trial.task.at != "last":
            raise InputError(
                f"importance is of 'neurons' or 'heads' at the last token, got {parts} at "
                f"{trial.task.at}"
            )
        names = [site.name for site in parts.sites(trial.model)]
        asked = slice(None) if self.layers is None else list(self.layers)
        chosen = indices(asked, len(names), "layers", torch.device("cpu")).tolist()
        found_LS = torch.full(parts.shape(trial.model, 0), torch.nan, dtype=torch.float64)
        runs = [_record(trial, names)]
        if self.head is not None:
            layer, head = self.head
            zeroed = scale(f"z.{layer}", 0.0, Where(heads=head))
            runs.append(_record(trial, names, [zeroed]))
        _check_readout(trial)
        for layer in track(chosen, "reading importance"):
            own = [self._importance(trial, run, names[layer]) for run in runs]
            found_LS[layer] = own[0] - own[1] if len(own) > 1 else own[0]
        return found_LS

    def _importance(self, trial: Trial, run: Recording, name: str) -> Tensor:
        """Return the (S,) importance of a layer's sources, mean over prompts."""
        before, after = (f"{p}.{layer_of(name)}" for p in AROUND[points_of(name)[0]])
        x_BD, written_BSD = run[before][:, -1], _written(trial.model, run, name, after)
        bare_B = _measured(trial, x_BD)
        changes_SB = []
        for part_CBD in torch.split(written_BSD.transpose(0, 1), max(1, self.batch // len(trial))):
            with_nD = (x_BD + part_CBD).flatten(0, 1)
            changes_SB.append(_measured(trial, with_nD).view(-1, len(trial)) - bare_B)
        return torch.cat(changes_SB).double().mean(-1).cpu()


@torch.no_grad()
def neuron_words(
    model: Model, layer: int, unit: int, num: int = 10, side: str = "value"
) -> list[str]:
    """Return the tokens that a neuron's value or query vector stands for, most first.

    The vector goes through the final norm and the output head, as a state of the stream would.

    Args:
        model: A language model with a tokenizer.
        layer: The neuron's layer.
        unit: Its index there.
        num: How many tokens.
        side: "value": what it writes, its column of the down projection; "query": what it
            answers to, its row of the gate's projection, or of the up projection without a gate.

    Raises:
        InputError: The side is neither, or the projection is no plain linear map.
    """
    if side not in ("value", "query"):
        raise InputError(f"side must be 'value' or 'query', got {side!r}")
    if side == "value":
        weight_FD = weight_of(_module(model, f"mlp_hidden.{layer}")).mT
    else:
        gates = [s for s in model.sites(f"mlp_gate.{layer}", refused=True) if not s.refused]
        site = (gates or model.sites(f"mlp_pre.{layer}"))[0]
        start = (site.place.layout.span or (0, 0))[0]
        weight_FD = weight_of(model.module.get_submodule(site.place.path))[start:]
    best = _logits(model, weight_FD[unit][None])[0].topk(num).indices
    return [token_label(model.tokenizer, i) for i in best.tolist()]


def _record(trial: Trial, names: Sequence[str], edits: Sequence[Edit] = ()) -> Recording:
    points = AROUND[points_of(names[0])[0]]
    return trial.record("clean", [*names, *(f"{p}.*" for p in points)], edits)


def _written(model: Model, run: Recording, name: str, after: str) -> Tensor:
    """Return what each source of a layer adds to the stream at the last token, (B, S, D).

    Raises:
        InputError: It is not all of what the layer adds there, as with a norm behind the map.
    """
    module = _module(model, name)
    weight_DI, acts = weight_of(module), run[name][:, -1]
    acts_BSK = acts if acts.dim() > 2 else acts[..., None]
    weight_DSK = weight_DI.reshape(-1, *acts_BSK.shape[1:])
    written_BSD = torch.einsum("bsk,dsk->bsd", acts_BSK, weight_DSK)
    bias_D = bias_of(module)
    together_BD = written_BSD.sum(1) + (0 if bias_D is None else bias_D)
    if not torch.allclose(together_BD, run[after][:, -1], rtol=1e-3, atol=1e-3):
        raise InputError(f"importance needs sources that add up to {after}, those of {name} do not")
    return written_BSD


def _check_readout(trial: Trial) -> None:
    """Refuse networks whose logits are more than the final norm and the output head."""
    last = trial.model.sites("resid_post.*")[-1].name
    read_BV = _logits(trial.model, trial.record("clean", last)[last][:, -1])
    if not torch.allclose(read_BV, trial.clean_logits[:, -1], rtol=1e-3, atol=1e-3):
        raise InputError(
            "importance is read by the final norm and the output head, and this "
            "network's logits are not what they return"
        )


def _measured(trial: Trial, x_nD: Tensor) -> Tensor:
    """Return the (n,) metric of states of the stream at the last token."""
    return trial.metric(_logits(trial.model, x_nD)[:, None])


@torch.no_grad()
def _logits(model: Model, x_nD: Tensor) -> Tensor:
    """Return the (n, V) logits of states of the stream: final norm, then output head."""
    head = getattr(model.module, "get_output_embeddings", lambda: None)()
    if head is None:
        raise InputError(f"importance is read by an output head, which {model!r} lacks")
    logits_nV: Tensor = head(_module(model, "final_norm")(x_nD))
    return logits_nV


def _module(model: Model, site: str) -> Any:
    return model.module.get_submodule(model.sites(site)[0].place.path)
