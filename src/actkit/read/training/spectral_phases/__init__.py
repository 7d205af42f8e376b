"""Split a training into phases by how many dimensions the representations use.

Shapes: C checkpoints, N texts, D width.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.run.recording import Recording
from actkit.core.sweep.stream import batches
from actkit.maths.statistics import spearman
from actkit.model import Model
from actkit.opening.checkpoints import Checkpoints
from actkit.read._base import TrainingStatistic
from actkit.read._eigenvalues import decay, eigenvalues
from actkit.read._sums import exp_entropy
from actkit.read.training.spectral_phases._phases import Phase, phases_of


@dataclass(frozen=True, slots=True)
class SpectralPhases:
    """RankMe and alpha over training, the phases, and what was measured beside them.

    Attributes:
        steps: The C training steps.
        rankme_C: (C,) RankMe of the centred representations.
        alpha_C: (C,) exponents of the spectrum's decay.
        phases: In the order of training.
        beside: For each measure its (C,) values.
        num_rows: N.
        min_rows: 4 D; with fewer rows RankMe comes out too low and alpha too high.
    """

    steps: tuple[int, ...]
    rankme_C: Tensor
    alpha_C: Tensor
    phases: tuple[Phase, ...]
    beside: dict[str, Tensor]
    num_rows: int
    min_rows: int

    @property
    def enough_rows(self) -> bool:
        """Say whether there were at least `min_rows`."""
        return self.num_rows >= self.min_rows


@method(source="Li et al. 2025, arXiv:2509.23024", interface=TrainingStatistic)
def spectral_phases(
    checkpoints: Checkpoints,
    data: Any,
    site: str,
    *,
    pool: Literal["last", "mean"] = "last",
    window: tuple[int, int] = (10, 100),
    min_change: float = 0.02,
    measures: Mapping[str, Callable[[Model], float]] | None = None,
) -> SpectralPhases:
    """Follow RankMe and alpha-ReQ over checkpoints and name the phases of training.

    As in the paper a row is a text's last token (or the mean of its tokens) at one site, rows
    are centred, and the phases are warm-up, entropy-seeking and compression-seeking. The paper
    finds them by eye; here RankMe turns where it comes back from an extreme by `min_change`.

    Args:
        checkpoints: At least 2 of them.
        data: A list of samples that every checkpoint reads, at least 4 D for a good estimate.
        site: One site, in the paper the last layer.
        pool: Which row stands for a text: its last token or the mean of its tokens.
        window: Of the eigenvalues that alpha is fitted on, first and last, counted from 1.
        min_change: Relative change of RankMe that counts as a move (> 0).
        measures: What else to ask each network, such as an accuracy or `bigram_agreement`.

    Raises:
        InputError: There are too few checkpoints or eigenvalues, a value is not finite, `pool` is
            of another kind, or widths differ.

    Example:
        >>> def stretched(*sizes):
        ...     layer = torch.nn.Linear(3, 3, bias=False)
        ...     layer.weight.data = torch.tensor(sizes).diag()
        ...     return torch.nn.Sequential(layer)
        >>> nets = [stretched(1.0, 1.0, 1.0), stretched(1.0, 0.1, 0.1), stretched(1.0, 1.0, 0.9)]
        >>> corners = torch.cat([torch.eye(3), -torch.eye(3)])
        >>> found = spectral_phases(Checkpoints(nets), [corners], "0:out", window=(1, 3))
        >>> [phase.name for phase in found.phases], round(float(found.rankme_C[0]), 3)
        (['warm-up', 'entropy-seeking'], 3.0)
    """
    if pool not in ("last", "mean"):
        raise InputError(f"pool must be 'last' or 'mean', got {pool!r}")

    def read(model: Model) -> tuple[int, int, list[float]]:
        groups = [model.run(group, record=site) for group in batches(data, 8)]
        eigen = eigenvalues(torch.cat([_pooled(rec, site, pool) for rec in groups]), None)
        rank = exp_entropy(eigen.values_D[: eigen.num_rows].sqrt(), floor=1e-7)
        rest = [measure(model) for measure in (measures or {}).values()]
        return eigen.num_rows, eigen.min_rows, [rank, decay(eigen.values_D, window).alpha, *rest]

    found = checkpoints.over(read)
    steps = tuple(found)
    num_rows, min_rows, _ = found[steps[0]]
    if any(least != min_rows for _, least, _ in found.values()):
        widths = [least // 4 for _, least, _ in found.values()]
        raise InputError(f"checkpoints of one training share their width, got {widths} at {site}")
    rankme_C, alpha_C, *rest = torch.tensor([values for *_, values in found.values()]).double().T
    phases = phases_of(steps, rankme_C, alpha_C, min_change)
    beside = dict(zip(measures or {}, rest, strict=True))
    return SpectralPhases(steps, rankme_C, alpha_C, phases, beside, num_rows, min_rows)


def _pooled(rec: Recording, site: str, pool: str) -> Tensor:
    """Return one row a sample, (B, D): its last valid row, or the mean of its valid rows."""
    acts_ND, rows = rec.flat(site)
    _, count_B = torch.unique_consecutive(rows.sample, return_counts=True)
    if pool == "last":
        return acts_ND[count_B.cumsum(0) - 1]
    parts = torch.split(acts_ND, count_B.tolist())
    return torch.stack([part_ND.mean(0) for part_ND in parts])


def bigram_agreement(model: Model, texts: Sequence[str], corpus: Sequence[str]) -> float:
    """Return how a language model's probabilities of the next token rank as a bigram model's do.

    The paper's measure of memorised n-grams for n = 2: Spearman's correlation, over all tokens
    of the texts, of their probability under the model and under the corpus's bigram counts.

    Args:
        model: A language model with a tokenizer.
        texts: Where the probabilities are compared.
        corpus: Where bigrams are counted; a pair that it lacks has probability 0.

    Raises:
        InputError: The texts have no two tokens in a row.
    """
    pairs: Counter[tuple[int, int]] = Counter()
    firsts: Counter[int] = Counter()
    for text in corpus:
        tokens = torch.as_tensor(model.encode(text).tokens)[0].tolist()
        pairs.update(pairwise(tokens))
        firsts.update(tokens[:-1])
    own: list[float] = []
    counted: list[float] = []
    for text in texts:
        rec = model.run(text, logits=True)
        token_T = rec.rows.token[0]
        probs_TV = rec.logits[0, :-1].double().softmax(-1)
        own += probs_TV.gather(1, token_T[1:, None].to(probs_TV.device))[:, 0].tolist()
        counted += [pairs[p] / max(firsts[p[0]], 1) for p in pairwise(token_T.tolist())]
    if len(own) < 2:
        raise InputError(f"need texts of at least 2 tokens, got {len(own)} pairs of tokens")
    return spearman(own, counted)
