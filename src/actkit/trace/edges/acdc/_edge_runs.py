"""Exact runs of which some edges carry what the corrupt prompts have.

Each receiver reads the stream less what its removed senders brought in: the sum over them of what
they write in this run less what they write on the corrupt prompts. All versions run in one batch,
and only from the first block and the first position at which anything can differ.

Shapes: V versions, R receivers, S senders, B pairs, T tokens from the first that differs, P asked
positions, D width, H heads, K head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit
from actkit.core.edits.operation import Operation
from actkit.core.errors import InputError
from actkit.core.sites.site_names import layer_of
from actkit.core.sweep.base_run import BaseRun, shares
from actkit.core.sweep.sweep import repeated
from actkit.trace._graph import Graph, Port
from actkit.trace._task import Trial

MOST_ROWS = 64
"""Rows in a batch beyond which larger batches gain nothing."""
MOST = 128_000_000
"""Numbers that the senders' outputs in one batch may take."""


class EdgeRuns:
    """Runs of a task's clean prompts on a graph of which some edges are removed.

    Args:
        graph: The graph.
        trial: The task on the same network.
    """

    def __init__(self, graph: Graph, trial: Trial) -> None:
        """Run the clean and the corrupt prompts."""
        if graph.model is not trial.model:
            raise InputError(f"the graph is of {graph.model!r}, the trial of {trial.model!r}")
        self.graph, self.trial, self._base_run = graph, trial, _base_run(trial)
        self.position = _first_column(trial) if self._base_run else 0
        clean = trial.record("clean", graph.sites)
        corrupt = trial.source("corrupt", graph.sites)
        own = (slice(None), slice(self.position, None))
        self.corrupt = {site: corrupt[site][own] for site in graph.sites}
        self.change_SBTD = (graph.outputs(clean) - graph.outputs(corrupt))[:, :, self.position :]

    @property
    def at_once(self) -> int:
        """Return how many versions a batch should have at most."""
        most = min(MOST_ROWS // len(self.trial), MOST // self.change_SBTD.numel())
        return max(1, most)

    def logits(self, kept_VRS: Tensor) -> Tensor:
        """Return the logits of each version at the task's positions, (V * B, P, vocabulary).

        Args:
            kept_VRS: Which edges stay in each version; of edges that do not exist nothing is read.
        """
        fits = kept_VRS.dim() == 3 and len(kept_VRS)
        if not fits or kept_VRS.shape[1:] != self.graph.exists_RS.shape:
            raise InputError(
                f"kept edges must be of shape (V, {len(self.graph.receivers)}, "
                f"{len(self.graph.senders)}), got {tuple(kept_VRS.shape)}"
            )
        run = _Run(self, kept_VRS)
        copies = len(kept_VRS)
        if self._base_run is None:
            return _whole(self.trial, run.edits(), copies)
        return self._base_run.resume(run.edits(), [run.layer] * copies, self.position)

    def metric(self, kept_VRS: Tensor) -> Tensor:
        """Return the task's number of each version and pair, (V, B)."""
        return self.trial.metric(self.logits(kept_VRS)).view(len(kept_VRS), -1)

    def faithfulness(self, kept_VRS: Tensor) -> Tensor:
        """Return the share of the task's gap that each version keeps, (V,): 1 for all edges."""
        return self.trial.recovery(self.metric(kept_VRS))


@dataclass(frozen=True, eq=False)
class _Visit(Operation):
    """Hands the values at a site to a function, which may return others."""

    wide: ClassVar[bool] = False
    fn: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the function returns."""
        return self.fn(x)

    @property
    def may_rest(self) -> bool:
        """Say that the values may stay."""
        return True


class _Run:
    """One batch of versions while it runs."""

    def __init__(self, runs: EdgeRuns, kept_VRS: Tensor) -> None:
        graph, self._runs = runs.graph, runs
        kept_VRS = kept_VRS & graph.exists_RS
        removed_VRS = graph.exists_RS & ~kept_VRS
        self._active = removed_VRS.any(-1).any(0).tolist()
        self._ports = [p for p in graph.ports if any(self._active[r] for r in p.receivers)]
        self.layer = (self._ports or graph.ports[-1:])[0].layer
        touched_S, reading_S = _reached(graph, removed_VRS.any(0), kept_VRS.any(0))
        wanted_S = removed_VRS.any(1).any(0)
        # what reads corrupt values alone writes them, so that it changes nothing
        self._new = (touched_S & reading_S & wanted_S).nonzero()[:, 0].tolist()
        self._removed_VRS = removed_VRS.to(runs.change_SBTD)
        self._old_VRS = (removed_VRS & ~touched_S).to(runs.change_SBTD)
        shape = (len(kept_VRS), len(self._new), runs.change_SBTD[0].numel())
        self._change_VSN = runs.change_SBTD.new_empty(shape)
        self._stream = torch.empty(0)
        self._read: tuple[Any, Tensor] = (None, torch.empty(0))

    def edits(self) -> list[Edit]:
        """Return the edits that make the network compute the versions."""
        streams = dict.fromkeys(p.stream for p in self._ports if p.stream != p.site)
        edits = [Edit(site, _Visit(self._watch)) for site in streams]
        edits += [Edit(p.site, _Visit(partial(self._receive, p))) for p in self._ports]
        for site in self._runs.graph.sites:
            if site != "resid_pre.0" and layer_of(site) >= self.layer:
                edits.append(Edit(site, _Visit(partial(self._send, site))))
        return edits

    def _watch(self, x: Tensor) -> Tensor:
        self._stream = x
        return x

    def _by_version(self, x: Tensor) -> Tensor:
        """Return (V * B, T, ...) values as (V, B, T, ...)."""
        return x.reshape(len(self._change_VSN), -1, *x.shape[1:])

    def _send(self, site: str, x: Tensor) -> Tensor:
        """Keep what the senders at a site change, of those that are needed."""
        senders = self._runs.graph.senders_at(site)
        own = [(i, s - senders[0]) for i, s in enumerate(self._new) if s in senders]
        if own:
            change = self._by_version(x) - self._runs.corrupt[site]
            written = self._runs.graph.written(site, change.flatten(0, 1))
            for index, sender in own:
                self._change_VSN[:, index] = written[sender].reshape(len(self._change_VSN), -1)
        return x

    def _receive(self, port: Port, x: Tensor) -> Tensor:
        """Return the values at a port as its receivers make them of what they read."""
        active = [r for r in port.receivers if self._active[r]]
        if port.site == port.stream:
            self._stream = x
        normed_nVBTD = self._normed(port, active)
        if port.weight_DHK is None:
            return normed_nVBTD[0].flatten(0, 1)
        new = x.clone()
        for receiver, normed in zip(active, normed_nVBTD, strict=True):
            heads = port.heads(receiver)
            new[:, :, heads] = port.mapped(normed.flatten(0, 1), heads)
        return new

    def _normed(self, port: Port, active: list[int]) -> Tensor:
        """Return what receivers read, (n, V, B, T, D); the ports of one block may share it."""
        key = (port.stream, tuple(active))
        if self._read[0] != key:
            stream_VBTD = self._by_version(self._stream)
            self._read = (key, port.norm(stream_VBTD - self._brought(port, active)))
        return self._read[1]

    def _brought(self, port: Port, active: list[int]) -> Tensor:
        """Return sum_s removed_s (a_s - a_s^corrupt) for each receiver, (n, V, B, T, D)."""
        change_SBTD, count = self._runs.change_SBTD, port.senders
        old_nVS = self._old_VRS[:, active, :count].transpose(0, 1)
        brought_nVN = old_nVS @ change_SBTD[:count].flatten(1)
        new = [s for s in self._new if s < count]
        if new:
            chosen_VnS = self._removed_VRS[:, active][..., new]
            brought_nVN += (chosen_VnS @ self._change_VSN[:, : len(new)]).transpose(0, 1)
        return brought_nVN.view(*brought_nVN.shape[:2], *change_SBTD.shape[1:])


def _reached(graph: Graph, removed_RS: Tensor, kept_RS: Tensor) -> tuple[Tensor, Tensor]:
    """Return which senders a removed edge can reach, and which read by any kept edge."""
    touched_S = torch.zeros(len(graph.senders), dtype=torch.bool)
    reading_S = torch.zeros_like(touched_S)
    for port in graph.ports:
        own = port.receivers
        changed = removed_RS[own].any(-1) | (kept_RS[own] & touched_S).any(-1)
        touched_S |= (graph.feeds_RS[own] & changed[:, None]).any(0)
        reading_S |= (graph.feeds_RS[own] & kept_RS[own].any(-1, keepdim=True)).any(0)
    return touched_S, reading_S


def _base_run(trial: Trial) -> BaseRun | None:
    """Return what runs can start from in the middle, None if they cannot in this network."""
    if not shares(trial.model, trial.clean):
        return None
    base_run = BaseRun(trial.model, trial.clean, trial.asked("clean"))
    return base_run if base_run.whole else None


def _whole(trial: Trial, edits: list[Edit], copies: int) -> Tensor:
    """Return the logits of whole runs, (copies * B, P, vocabulary)."""
    kept: list[Tensor] = []

    def keep(logits_nPV: Tensor) -> Tensor:
        kept.append(logits_nPV)
        return logits_nPV.new_zeros(len(logits_nPV))

    trial.model.sweep(repeated(trial.clean, copies), [edits], keep, trial.task.at)
    return kept[0]


def _first_column(trial: Trial) -> int:
    """Return the first column of the padded batch in which a pair differs."""
    if trial.task.align is not None:
        return 0
    a, b = torch.as_tensor(trial.clean.tokens), torch.as_tensor(trial.corrupt.tokens)
    differ = ((a != b) & trial.valid("clean")).any(0)
    return int(differ.long().argmax())
