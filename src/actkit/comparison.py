"""`compare`: a family's protocol over methods and seeds, and the leaderboard that comes of it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import PicklingError
from statistics import fmean, stdev
from typing import Any

from actkit.catalog import FAMILIES
from actkit.core.as_json import as_json
from actkit.core.digest import digest
from actkit.core.engines.engine import as_done, check_engine
from actkit.core.engines.settings import Ray
from actkit.core.errors import ActkitError, DataError, InputError, MethodError
from actkit.core.provenance import stamp
from actkit.core.writing import write_text
from actkit.model import Model
from actkit.protocol import Comparison, Measure, Measurement

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Run:
    """One method with one seed: a value for each metric, or why there is none."""

    method: str
    seed: int
    values: Mapping[str, float]
    error: str = ""


@dataclass(frozen=True)
class Score:
    """The mean of a metric over seeds, and half the width of its 95 % confidence interval.

    The interval is Student's, so it supposes that seeds scatter about evenly; NaN for one seed.
    """

    mean: float
    margin: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Score":
        """Take one value for each seed."""
        if len(values) < 2:
            return cls(values[0] if values else math.nan, math.nan)
        from scipy.stats import t

        quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        return cls(fmean(values), quantile * stdev(values) / math.sqrt(len(values)))

    def __str__(self) -> str:
        """Return the mean with its margin."""
        spread = "" if math.isnan(self.margin) else f" ± {self.margin:.2g}"
        return f"{self.mean:.3g}{spread}"


@dataclass(frozen=True)
class Leaderboard:
    """What a comparison found.

    Attributes:
        title: Family and task.
        metrics: What was measured; the first decides the order.
        runs: Every run.
        about: Provenance.
    """

    title: str
    metrics: tuple[Measure, ...]
    runs: tuple[Run, ...]
    about: Mapping[str, Any]

    def __repr__(self) -> str:
        """Return the title and the table."""
        return f"{self.title}\n\n{self.table()}"

    def scores(self) -> dict[str, dict[str, Score]]:
        """Return the scores of each method by metric, the best method first."""
        names = dict.fromkeys(r.method for r in self.runs)
        found = {name: self._scores_of(name) for name in names}
        sign = -1 if self.metrics[0].better == "higher" else 1

        def place(name: str) -> tuple[bool, float]:
            mean = found[name][self.metrics[0].name].mean
            return (math.isnan(mean), sign * mean)

        return {name: found[name] for name in sorted(found, key=place)}

    def front(self) -> list[str]:
        """Return the methods on the Pareto front of the first two metrics, best first."""
        first, second = self.metrics[:2]
        points = {
            name: (_cost(first, s[first.name].mean), _cost(second, s[second.name].mean))
            for name, s in self.scores().items()
        }
        finite = {n: p for n, p in points.items() if not any(map(math.isnan, p))}
        return [
            n
            for n, p in finite.items()
            if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in finite.values())
        ]

    def table(self) -> str:
        """Return a table as Markdown, the Pareto front marked with a star."""
        head = ["method", *map(str, self.metrics), "seeds"]
        front, rows = self.front(), []
        for name, scores in self.scores().items():
            own = [r for r in self.runs if r.method == name]
            cells = [str(scores[m.name]) for m in self.metrics]
            failed = [r.error for r in own if r.error]
            seeds = f"{len(own) - len(failed)} of {len(own)}: {failed[0]}" if failed else len(own)
            rows.append([f"{name}{' *' * (name in front)}", *cells, str(seeds)])
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [head, ["-" * w for w in widths], *rows]
        return "\n".join(
            f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |"
            for line in lines
        )

    def plot(self, path: str | Path | None = None) -> Any:
        """Return the Pareto plot of the first two metrics, a plotly figure.

        Args:
            path: Also write it there, as a page that opens offline.

        Raises:
            DataError: The file cannot be written.
        """
        import plotly.graph_objects as go

        (first, second), scores, front = self.metrics[:2], self.scores(), self.front()
        figure = go.Figure()
        for name, s in scores.items():
            x, y = s[second.name], s[first.name]
            figure.add_scatter(
                x=[x.mean],
                y=[y.mean],
                name=name,
                text=[name],
                mode="markers+text",
                textposition="top center",
                error_x=_bar(x),
                error_y=_bar(y),
                marker={"size": 11, "symbol": "star" if name in front else "circle"},
            )
        best = [scores[n] for n in front]
        figure.add_scatter(
            x=[s[second.name].mean for s in best],
            y=[s[first.name].mean for s in best],
            mode="lines",
            line={"dash": "dot", "color": "#8a93a3"},
            name="Pareto front",
        )
        figure.update_layout(template="plotly_white", title=self.title, showlegend=False)
        for axis, metric in ((figure.update_xaxes, second), (figure.update_yaxes, first)):
            axis(title=_axis(metric), type="log" if metric.log else "linear")
        if path is not None:
            write_text(path, figure.to_html(include_plotlyjs=True))
        return figure

    def print(self) -> None:
        """Print the title, where the numbers come from and the table."""
        from rich.console import Console

        console = Console(soft_wrap=True, highlight=False, markup=False)
        console.print(f"{self.title}\n\n{self.table()}\n\n* on the Pareto front")

    def to_json(self, path: str | Path | None = None) -> str:
        """Return scores, runs and provenance as JSON, null where there is no number.

        Args:
            path: Also write it there.

        Raises:
            DataError: The file cannot be written.
        """
        scores = {n: {m: asdict(s) for m, s in own.items()} for n, own in self.scores().items()}
        facts: dict[str, Any] = {"title": self.title, "about": self.about, "front": self.front()}
        facts |= {"metrics": [asdict(m) for m in self.metrics], "scores": scores}
        facts |= {"runs": [asdict(r) for r in self.runs]}
        text = as_json(facts)
        if path is not None:
            write_text(path, text)
        return text

    def _scores_of(self, name: str) -> dict[str, Score]:
        own = [r.values for r in self.runs if r.method == name and not r.error]
        return {m.name: Score.of([values[m.name] for values in own]) for m in self.metrics}


@dataclass(frozen=True)
class _Job:
    """One run; it can be pickled if its parts can."""

    name: str
    method: Any
    seed: int
    measure: Measurement

    def __call__(self) -> Run:
        """Measure; what a method refuses is kept as its error, so that no other run is lost."""
        try:
            values = self.measure(self.method)
        except ActkitError as error:
            return Run(self.name, self.seed, {}, f"{type(error).__name__}: {error}")
        return Run(self.name, self.seed, {k: float(v) for k, v in values.items()})


def compare(
    family: str,
    model: Model | None = None,
    *,
    task: Any = None,
    methods: Any = None,
    seeds: int | Sequence[int] = 3,
    log: str | Path | None = None,
    engine: str | Ray = "local",
) -> Leaderboard:
    """Run a family's protocol: the same task, budget and metrics for every method.

    Args:
        family: "read", "steer", ...
        model: The network to compare on; None where the protocol plants its own data.
        task: One of the protocol's tasks, or an object that it takes for one; its first if None.
        methods: Names, or a mapping with your own beside them (`{"mine": fn, "cka": None}`); all
            of the task's if None.
        seeds: How many, or which.
        log: A file of JSON lines that keeps every finished run; called again with it, a comparison
            goes on where it stopped.
        engine: "local", or "ray": runs go to idle workers, and those of a worker that died are
            done again. Costs are then those of the workers' machines.

    Raises:
        MethodError: No such family, or one without a protocol.
        InputError: An unknown task or method; no seeds; no network where one is needed, or one
            where none takes part.
        DataError: The log is of another comparison.
    """
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise InputError(f"a comparison needs at least one seed, got {seeds!r}")
    protocol, task, chosen = planned(family, model is not None, task, methods, engine)
    about = stamp(model, family=family, task=str(task), **_data_hash(task, log))
    kept = _Log(log, about)
    rounds = {seed: protocol.round(task, model, seed) for seed in numbers}
    jobs = [_Job(n, m, seed, rounds[seed]) for seed in numbers for n, m in chosen.items()]
    todo = [job for job in jobs if (job.name, job.seed) not in kept.runs]
    for _, run in as_done(_Job.__call__, todo, engine, f"comparing {family}"):
        kept.add(run)
    runs = tuple(kept.runs[job.name, job.seed] for job in jobs)
    title = f"{family}: {task}{f' on {model.name}' if model else ''}"
    return Leaderboard(title, protocol.metrics, runs, about)


def planned(
    family: str,
    has_model: bool,
    task: Any = None,
    methods: Any = None,
    engine: str | Ray = "local",
) -> tuple[Comparison, Any, dict[str, Any]]:
    """Return protocol, task and methods of a comparison, before a network is opened for it.

    Raises:
        MethodError: As in `compare`.
        InputError: As in `compare`; a network is needed, or is none.
        EngineError: The engine is unknown, or Ray is not installed.
    """
    protocol = _protocol(family)
    task = protocol.tasks[0] if task is None else task
    chosen = protocol.chosen(task, methods)
    check_engine(engine)
    if protocol.on_model and not has_model:
        raise InputError(
            f"methods of {family} are compared on a network, got none: pass one, as in "
            f"ak.compare({family!r}, model) or `actkit compare {family} smollm2`"
        )
    if has_model and not protocol.on_model:
        raise InputError(f"methods of {family} are compared on planted data: leave the network out")
    return protocol, task, chosen


def _protocol(family: str) -> Comparison:
    if family not in FAMILIES:
        raise MethodError(f"no family {family!r}; families: {', '.join(FAMILIES)}")
    name = f"actkit.{family}.protocol"
    if find_spec(name) is None:
        raise MethodError(f"family {family} has no protocol yet")
    protocol: Comparison = import_module(name).PROTOCOL
    return protocol


def _data_hash(task: Any, log: str | Path | None) -> dict[str, Any]:
    """Return what tells a user's task from another one of its name; nothing for bundled ones."""
    if isinstance(task, str):
        return {}
    try:
        return {"data": digest(task)}
    except (PicklingError, AttributeError, TypeError) as error:
        if log is None:
            return {}
        raise InputError(
            f"a log needs a task that can be told from others, {task} holds what cannot be "
            f"pickled: {error}"
        ) from error


class _Log:
    """Runs by method and seed, kept in a file if one is given."""

    def __init__(self, path: str | Path | None, about: Mapping[str, Any]) -> None:
        self.runs: dict[tuple[str, int], Run] = {}
        self._path = None if path is None else Path(path)
        if self._path is None:
            return
        if not self._path.exists():
            self._append({"about": about})
            return
        try:
            head, *lines = map(json.loads, self._path.read_text(encoding="utf-8").splitlines())
            found = head["about"]
            runs = [Run(**line) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"a log must hold runs as JSON lines, {path}: {error}") from error
        if found != json.loads(json.dumps(about)):
            raise DataError(f"a log is of one comparison, {path} is of {found}, got {about}")
        self.runs = {(run.method, run.seed): run for run in runs}

    def add(self, run: Run) -> None:
        """Keep one finished run."""
        self.runs[run.method, run.seed] = run
        self._append(asdict(run))

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _cost(metric: Measure, value: float) -> float:
    return -value if metric.better == "higher" else value


def _bar(score: Score) -> dict[str, Any] | None:
    faint = {"thickness": 1, "width": 3, "color": "rgba(110, 120, 140, 0.45)"}
    return None if math.isnan(score.margin) else {"array": [score.margin], **faint}


def _axis(metric: Measure) -> str:
    return f"{metric}, {metric.better} is better"
