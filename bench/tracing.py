"""Sweeps, edge attribution and circuit discovery on SmolLM2, against loops and peers.

The peers' requirements exclude each other, so each patches in a process of its own
(bench/_peer_patch.py), right before and after actkit does the same in this one.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

import actkit as ak
from actkit.catalog import get
from actkit.trace import Task, Trial
from actkit.trace._parts import as_parts
from bench._measure import Row, paired, row
from bench.peers import ROOT, _weights

PEERS = {"tl": "TransformerLens 4.3", "nnsight": "nnsight 0.8",
         "nnsight-batched": "nnsight 0.8, 15 invokes in a trace"}  # fmt: skip
BOUNDS = {"resid": ">= 15", "heads": ">= 10"}
STEP = 9
PAIRS = {"three other names": "abc", "second name swapped": "swap"}


def run() -> list[Row]:
    """Return the rows of sweeps, of edges and of circuits."""
    model = ak.open("smollm2")
    rows = []
    for parts in BOUNDS:
        trials = {words: ak.trace.tasks.ioi(1, corrupt=corrupt).on(model)  # type: ignore[arg-type]
                  for words, corrupt in PAIRS.items()}  # fmt: skip
        rows += [_loop(trial, parts, words) for words, trial in trials.items()]
        rows += _peers(trials, parts)
    return [*rows, _edges(model), _acdc(model)]


def _loop(trial: Trial, parts: str, words: str) -> Row:
    """Hold a full sweep against a loop of whole runs; of the loop every ninth one is timed."""
    every = list(as_parts(parts).each(trial.model, trial.length))
    other = trial.source("clean", [s.name for s in as_parts(parts).sites(trial.model)])

    def ours() -> Any:
        return get("patch")(parts)(trial.model, trial)

    def loop() -> None:
        for part in every[::STEP]:
            edit = ak.swap(part.site, other, part.where)
            logits = trial.record("corrupt", (), [edit], logits=True).logits
            trial.metric(torch.as_tensor(logits)[:, -1:])

    ratios = [len(every) / len(every[::STEP]) / r for r in paired(ours, loop, 3)]
    limit = f"{_less_work(trial, parts):.1f} x less arithmetic"
    name = f"{_named(parts, words)}: a loop of {len(every)} runs over the sweep"
    return row(name, ratios, "", limit, f"{_seconds(ours):.2f} s")


def _peers(trials: Mapping[str, Trial], parts: str) -> list[Row]:
    """Hold the sweeps against the peers; their time is that of the first pair for all."""
    found = []
    first = next(iter(trials.values()))

    def ours(trial: Trial) -> Any:
        return get("patch")(parts)(trial.model, trial)

    scores = ours(first).values * first.gap + first.corrupt_values.mean()
    for peer, name in PEERS.items():
        if not (ROOT / _environment(peer) / "bin" / "python").exists():
            continue
        own = {words: [_seconds(partial(ours, trial))] for words, trial in trials.items()}
        seconds, values = _peer(peer, first, parts)
        gap = float((values - scores).abs().max())
        for words, trial in trials.items():
            own[words] += [_seconds(partial(ours, trial)) for _ in range(2)]
            detail = f"{seconds:.1f} s against {statistics.median(own[words]):.2f} s"
            if trial is first:
                detail += f", values within {gap:.1e}"
            bound = BOUNDS[parts] if peer != "nnsight-batched" else ""
            limit = f"{_less_work(trial, parts):.1f} x less arithmetic"
            found.append(row(f"{_named(parts, words)}: {name} over actkit",
                             [seconds / s for s in own[words]], bound, limit, detail))  # fmt: skip
    return found


def _named(parts: str, words: str) -> str:
    return f"patching {parts}, IOI pair with {words}"


def _less_work(trial: Trial, parts: str) -> float:
    """Return how many blocks and tokens a loop computes for each that the sweep does."""
    asked, blocks = as_parts(parts), len(trial.model.sites("resid_pre.*"))
    every = list(asked.each(trial.model, trial.length))
    changed = [(p.layer, trial.first if p.position is None else p.position) for p in every]
    shared = sum((blocks - b) * (trial.length - t) for b, t in changed if t >= trial.first)
    return len(every) * blocks * trial.length / shared


def _peer(peer: str, trial: Trial, parts: str) -> tuple[float, torch.Tensor]:
    ids = [int(torch.as_tensor(side)[0, 0]) for side in (trial.plus, trial.minus)]
    job = {"parts": parts, "ids": ids}
    job |= {side: torch.as_tensor(trial.batch(side).tokens).tolist()
            for side in ("clean", "corrupt")}  # fmt: skip
    python, script = ROOT / _environment(peer) / "bin" / "python", ROOT / "bench" / "_peer_patch.py"
    command = [str(python), str(script), peer, str(_weights()), json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{peer} failed: {done.stderr.strip().splitlines()[-1:]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return answer["seconds"], torch.tensor(answer["values"])


def _environment(peer: str) -> str:
    return f".venv-{peer.partition('-')[0]}"


def _edges(model: Any) -> Row:
    """Hold EAP on all edges of 20 pairs against a forward and a backward of the same batch."""
    trial = ak.trace.tasks.ioi(20).on(model)
    trial.check()  # both sides are run, as each of the two jobs finds them
    eap, batch = get("eap")(), trial.clean

    def forward_backward() -> None:
        values = model.run(batch, record="resid_pre.0", logits=True, grad=True)
        trial.metric(values.logits[:, -1:]).sum().backward()  # type: ignore[no-untyped-call]
        model.module.zero_grad(set_to_none=True)

    scores = eap(model, trial)
    edges = int((~scores.values.isnan()).sum())
    ratios = paired(lambda: eap(model, trial), forward_backward, 5)
    return row("EAP, 20 IOI pairs, over one forward and backward", ratios, "<= 3", "1.33",
               f"{edges} edges, two forwards, a backward, accumulation included")  # fmt: skip


def _acdc(model: Any) -> Row:
    """Time ACDC on heads and MLPs for IOI."""
    task: Task = ak.trace.tasks.ioi(1, corrupt="swap")
    started = time.perf_counter()
    scores = get("acdc")(split_qkv=False)(model, task)
    minutes = (time.perf_counter() - started) / 60
    kept = scores.facts.get("num_edges", "")
    return row("ACDC, heads and MLPs, IOI (minutes)", [minutes], "<= 15", "-",
               f"{int((~scores.values.isnan()).sum())} edges, {kept} kept")  # fmt: skip


def _seconds(job: Any) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started
