"""Is a circuit the whole story: faithfulness, completeness and minimality of a set of parts.

Shapes: B pairs, V variants, R random circuits.
"""

import random
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.maths.statistics import interval, resampled_means
from actkit.model import Model
from actkit.trace._ablations import Prompts, means, removal
from actkit.trace._base import Analysis
from actkit.trace._circuit import Circuit, Node, by_class, nodes
from actkit.trace._parts import Parts, as_parts
from actkit.trace._task import Task, Trial, as_trial

Score = Callable[[Sequence[Set[Node]]], Tensor]


@dataclass(frozen=True, eq=False)
class CircuitScores:
    """How well a circuit C stands for the network M; F is the metric's mean over pairs.

    Attributes:
        full: (B,) metric of the whole network.
        alone: (B,) metric of the circuit, all other parts knocked out.
        faithfulness: |F(M) - F(C)|, in units of the metric; 0 is best.
        interval: Of `faithfulness`, 95% by bootstrap over pairs.
        random: (R,) the same of random sets of as many parts.
        completeness: For each way to choose a subset K of the circuit ("class", "random",
            "greedy") the largest |F(C without K) - F(M without K)| found; 0 is best.
        minimality: For each part v the largest |F(C without K and v) - F(C without K)| found, K
            none or the rest of v's class; a part of score 0 does nothing there.
    """

    full: Tensor
    alone: Tensor
    faithfulness: float
    interval: tuple[float, float]
    random: Tensor
    completeness: dict[str, float]
    minimality: dict[Node, float]


@method(source="Wang et al. 2022, arXiv:2211.00593, section 4", interface=Analysis)
def circuit_scores(
    model: Model,
    task: Task | Trial,
    circuit: Circuit,
    parts: str | Parts = "heads",
    reference: Prompts | None = None,
    num_draws: int = 20,
    seed: int = 0,
) -> CircuitScores:
    """Hold a circuit against the network, against its own subsets, and against random circuits.

    A part is knocked out by its mean over the reference prompts at the same position; what is no
    part (for heads: MLPs and norms) stays. The paper chose by hand the subsets that show each
    part's need; here they are none, and the rest of the part's class.

    Args:
        model: The network.
        task: Pairs of prompts; the metric is that of the clean ones.
        circuit: Parts by their entries in the scores, (layer, head) for heads; or such parts by
            class. Without classes all parts are one.
        parts: What parts there are, as in `Ablate`.
        reference: Prompts to take means over, of the task's length; the corrupt ones if None.
        num_draws: How many random circuits, and how many random subsets.
        seed: Of both, and of the bootstrap.

    Raises:
        InputError: The circuit is empty or names parts that do not exist; prompts differ in
            length.

    Example:
        >>> import torch
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> m = Model(reader(layers=1, at=(0, 1)))
        >>> found = circuit_scores(m, first, [(0, 1), (0, 2)])
        >>> found.faithfulness, found.minimality
        (0.0, {(0, 1): 2.0, (0, 2): 0.0})
    """
    if num_draws < 1:
        raise InputError(f"need at least 1 draw, got {num_draws}")
    trial, parts = as_trial(model, task), as_parts(parts)
    every, own, classes = _nodes(trial, parts), nodes(circuit), by_class(circuit)
    if not own or not own <= every:
        raise InputError(
            f"a circuit needs a part, and only ones that exist: {len(every)} such as "
            f"{sorted(every)[:2]}, got {sorted(own)[:5]}; unknown: {sorted(own - every)[:5]}"
        )
    values = means(trial, [site.name for site in parts.sites(model)], reference)

    def score(removed: Sequence[Set[Node]]) -> Tensor:
        """Return the (V, B) metric with each set of parts knocked out."""
        edits = [removal(model, parts, some, values) for some in removed]
        return trial.sweep(edits, "clean").double()

    rng = random.Random(seed)
    others = [frozenset(rng.sample(sorted(every), len(own))) for _ in range(num_draws)]
    full, alone, *drawn = score([frozenset(), every - own, *(every - o for o in others)])
    gaps_R = (resampled_means(full, seed=seed) - resampled_means(alone, seed=seed)).abs()
    low, high = interval(gaps_R)
    return CircuitScores(
        full,
        alone,
        float((full.mean() - alone.mean()).abs()),
        (float(low), float(high)),
        (full.mean() - torch.stack(drawn).mean(-1)).abs(),
        _completeness(score, every, classes, num_draws, rng),
        _minimality(score, every, classes),
    )


def _completeness(
    score: Score, every: Set[Node], classes: Mapping[str, Set[Node]], num: int, rng: random.Random
) -> dict[str, float]:
    own = nodes(classes)

    def incomplete(subsets: Sequence[Set[Node]]) -> Tensor:
        """Return |F(C without K) - F(M without K)| of each subset K."""
        circuit = score([(every - own) | k for k in subsets]).mean(-1)
        return (circuit - score(subsets).mean(-1)).abs()

    subsets = [frozenset(v for v in sorted(own) if rng.random() < 0.5) for _ in range(num)]
    greedy, worst = frozenset[Node](), float(incomplete([frozenset()])[0])
    for _ in track(range(len(own)), "greedy subsets"):
        larger = [greedy | {v} for v in sorted(own - greedy)]
        found, index = incomplete(larger).max(0)
        if found <= worst:
            break
        greedy, worst = larger[int(index)], float(found)
    return {
        "class": float(incomplete(list(classes.values())).max()),
        "random": float(incomplete(subsets).max()),
        "greedy": worst,
    }


def _minimality(
    score: Score, every: Set[Node], classes: Mapping[str, Set[Node]]
) -> dict[Node, float]:
    own = nodes(classes)
    asked = [(v, k) for c in classes.values() for v in c for k in (frozenset[Node](), c - {v})]
    rest = every - own
    kept = score([rest | k for _, k in asked]).mean(-1)
    lost = (score([rest | k | {v} for v, k in asked]).mean(-1) - kept).abs().tolist()
    found: dict[Node, float] = {}
    for (v, _), value in sorted(zip(asked, lost, strict=True), key=lambda pair: pair[0][0]):
        found[v] = max(value, found.get(v, 0.0))
    return found


def _nodes(trial: Trial, parts: Parts) -> frozenset[Node]:
    shape = parts.shape(trial.model, trial.length if "position" in parts.axes else 0)
    index = torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape))
    return frozenset(tuple(row) for row in index.tolist())
