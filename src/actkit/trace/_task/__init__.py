"""Tasks: pairs of prompts, clean and corrupt, and one number that says how the network answers.

Shapes: B pairs, T tokens, P asked positions, V vocabulary, A answers, n rows of a batch (B again
and again, where several versions run together).
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from actkit.anatomy.answers import Answers, again, pooled, token_ids
from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.core.run.inputs import Batch
from actkit.core.run.recording import Recording
from actkit.core.run.runner import Names
from actkit.core.run.token_labels import token_labels
from actkit.core.sweep.sweep import positions
from actkit.maths.next_token import kl
from actkit.model import Model
from actkit.trace._task._sides import aligned, check_align, check_lengths, lengths, moved_tokens

Fn = Callable[[Tensor], Tensor]


class TaskWarning(UserWarning):
    """The network does not do a task, so that maps of it mean little."""


@dataclass(frozen=True)
class Task:
    """Pairs of prompts that differ in what the answer depends on.

    Attributes:
        clean: B texts, or (B, T) token ids.
        corrupt: As many, each of as many tokens as its clean one, unless `align` is given.
        answers: For each pair the right next word, or several; each is one token, written with
            its space in front, or a token's id. Not needed where `metric` is a function.
        wrong: The words that the corrupt prompt favours, or a wrong answer to compare with.
        metric: "logit difference": log-odds of the answers over the wrong ones, for one word
            each their difference in logits; "probability" and "log probability" of the answers,
            "probability difference"; "KL" of the clean run's next-token distribution to the one
            met (nats); or a function from logits (n, P, V) to (n,), n a multiple of B.
        at: Which positions the metric sees: "last", an index or a slice, as in `m.sweep`.
        name: Of the task.
        align: For each pair and each token of `corrupt` the position of the clean token that it
            corresponds to, -1 for none; what is patched from one run into the other follows it.
    """

    clean: Sequence[str] | Tensor
    corrupt: Sequence[str] | Tensor
    answers: Answers | None = None
    wrong: Answers | None = None
    metric: str | Fn = "logit difference"
    at: Any = "last"
    name: str = "task"
    align: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        """Refuse sides of different lengths and metrics without what they need."""
        numbers = {"clean": len(self.clean), "corrupt": len(self.corrupt)}
        numbers |= {
            k: len(v) for k in ("answers", "wrong", "align") if (v := getattr(self, k)) is not None
        }
        if len(set(numbers.values())) > 1 or not len(self.clean):
            raise InputError(f"a task needs as many of each and at least one, got {numbers}")
        if callable(self.metric):
            return
        if self.metric not in NEEDS:
            raise InputError(f"metric must be one of {', '.join(NEEDS)}, got {self.metric!r}")
        if lacking := [n for n in NEEDS[self.metric] if getattr(self, n) is None]:
            raise InputError(f"the metric {self.metric!r} needs {' and '.join(lacking)}")

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.clean)

    def __str__(self) -> str:
        """Return the name."""
        return self.name

    def __repr__(self) -> str:
        """Return the name, the number of pairs and the metric."""
        metric = self.metric if isinstance(self.metric, str) else "a function"
        return f"Task({self.name!r}, {len(self)} pairs, metric={metric!r}, at={self.at!r})"

    def __getitem__(self, index: slice | Sequence[int]) -> "Task":
        """Return the task of some of its pairs."""
        chosen = range(len(self))[index] if isinstance(index, slice) else list(index)

        def pick(values: Any) -> Any:
            return (
                values[torch.as_tensor(list(chosen))]
                if isinstance(values, Tensor)
                else (None if values is None else [values[i] for i in chosen])
            )

        names = ("clean", "corrupt", "answers", "wrong", "align")
        return replace(self, **{n: pick(getattr(self, n)) for n in names})

    def on(self, model: Model) -> "Trial":
        """Encode the pairs for a network, run both sides once, and check what can be checked.

        Raises:
            InputError: A pair differs in length, an answer is not one token, or `align` names
                tokens that are not there.
        """
        clean, corrupt = model.encode(_rows(self.clean)), model.encode(_rows(self.corrupt))
        sizes = lengths(clean), lengths(corrupt)
        if self.align is None:
            check_lengths(model, clean, corrupt, sizes)
        else:
            check_align(self.align, sizes)
        sides = [token_ids(model, given, clean.tokens) for given in (self.answers, self.wrong)]
        return Trial(self, model, clean, corrupt, *sides)


def as_trial(model: Model, task: "Task | Trial") -> "Trial":
    """Return a task on a network; a trial of it as it is.

    Every function that takes a network and a task goes through here: a trial carries the tokens
    and the answers of its own network, which mean something else in another one.

    Raises:
        InputError: The trial is of another network, or the task does not fit this one.
    """
    if not isinstance(task, Trial):
        return task.on(model)
    if task.model is not model:
        raise InputError(f"the trial is of {task.model!r}, not of {model!r}")
    return task


NEEDS = {
    "logit difference": ("answers", "wrong"),
    "probability": ("answers",),
    "log probability": ("answers",),
    "probability difference": ("answers", "wrong"),
    "KL": (),
}
"""The metrics that have a name, and what each needs to be given."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A task on one network: its pairs as tokens, and what the bare network answers.

    Attributes:
        task: The task.
        model: The network.
        clean: The clean prompts as a batch.
        corrupt: The corrupt prompts as a batch.
        plus: (B, A) ids of the answers, -1 where a row has fewer; None if none are given.
        minus: (B, A) ids of the wrong ones.
    """

    task: Task
    model: Model
    clean: Batch
    corrupt: Batch
    plus: Tensor | None = field(repr=False, default=None)
    minus: Tensor | None = field(repr=False, default=None)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.task)

    def __repr__(self) -> str:
        """Return the task and the network; `report` says what it does."""
        return f"Trial({self.task!r}, {self.model!r})"

    def metric(self, logits_nPV: Tensor) -> Tensor:
        """Return the task's number for each row, (n,); it can be differentiated.

        Raises:
            InputError: A function of the user's returned another shape.
        """
        if callable(self.task.metric):
            value = self.task.metric(logits_nPV)
            if not isinstance(value, Tensor) or value.shape != logits_nPV.shape[:1]:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(
                    f"a metric must return a tensor of shape ({len(logits_nPV)},) for logits of "
                    f"shape {tuple(logits_nPV.shape)}, got {got}"
                )
            return value
        logits_nV = logits_nPV[:, -1].float()
        if self.task.metric == "KL":
            target = again(self.clean_logits[:, -1].float().log_softmax(-1), len(logits_nV))
            return kl(target, logits_nV.log_softmax(-1))
        base = logits_nV if self.task.metric == "logit difference" else logits_nV.log_softmax(-1)
        right = pooled(base, self.plus)
        if self.task.metric == "logit difference":
            return right - pooled(base, self.minus)
        if self.task.metric == "probability difference":
            return right.exp() - pooled(base, self.minus).exp()
        return right.exp() if self.task.metric == "probability" else right

    @cached_property
    def clean_logits(self) -> Tensor:
        """Return the bare network's logits of the clean prompts, (B, P, V)."""
        return self._logits(self.clean)

    @cached_property
    def corrupt_logits(self) -> Tensor:
        """Return the bare network's logits of the corrupt prompts, (B, P, V)."""
        return self._logits(self.corrupt)

    @cached_property
    def clean_values(self) -> Tensor:
        """Return the metric of each clean prompt, (B,)."""
        return self.metric(self.clean_logits)

    @cached_property
    def corrupt_values(self) -> Tensor:
        """Return the metric of each corrupt prompt, (B,)."""
        return self.metric(self.corrupt_logits)

    @property
    def gap(self) -> float:
        """Return the mean metric of the clean prompts less that of the corrupt ones."""
        return float(self.clean_values.mean() - self.corrupt_values.mean())

    @cached_property
    def right(self) -> Tensor:
        """Return which clean prompts the network answers rightly, (B,) bool.

        That is, an answer has a larger logit than every wrong one, or where none are given the
        largest of all; for metrics without answers the clean value must differ from the corrupt.
        """
        if self.plus is None:
            return self.clean_values != self.corrupt_values
        logits_BV = self.clean_logits[:, -1].float()
        ids = self.plus.clamp_min(0)
        best = logits_BV.gather(1, ids).masked_fill(self.plus < 0, -torch.inf).amax(-1)
        if self.minus is None:
            return best == logits_BV.amax(-1)
        rest = logits_BV.gather(1, self.minus.clamp_min(0)).masked_fill(self.minus < 0, -torch.inf)
        return best > rest.amax(-1)

    @property
    def able(self) -> bool:
        """Say whether the network does the task: more than half right, and the sides differ."""
        return bool(self.right.float().mean() > 0.5 and self.gap != 0)

    @property
    def report(self) -> str:
        """Return in words what the bare network does, and which prompts it gets wrong."""
        lines = [
            f"{self.task.name} on {self.model.name}: {int(self.right.sum())} of {len(self)} clean "
            f"prompts right, {self.task.metric if isinstance(self.task.metric, str) else 'metric'} "
            f"{float(self.clean_values.mean()):.3g} clean, "
            f"{float(self.corrupt_values.mean()):.3g} corrupt"
        ]
        if not self.able:
            lines.append("the network does not do this task: maps of it mean little")
        wrong = (~self.right).nonzero()[:, 0].tolist()
        lines += [f"wrong: {i} {self.prompt(i)!r}" for i in wrong[:10]]
        return "\n".join(lines + ([f"and {len(wrong) - 10} more"] if len(wrong) > 10 else []))

    def check(self) -> None:
        """Warn if the network does not do the task."""
        if not self.able:
            warnings.warn(self.report, TaskWarning, stacklevel=3)

    def prompt(self, row: int) -> str:
        """Return a clean prompt as it can be printed."""
        given = self.task.clean[row]
        return given if isinstance(given, str) else str(torch.as_tensor(given).tolist())

    @cached_property
    def words(self) -> list[str]:
        """Return the tokens of the first clean prompt, as labels."""
        tokens, tokenizer = self.clean.tokens, self.model.tokenizer
        if tokens is None:
            raise InputError("a task needs prompts of tokens")
        ids = tokens[0][self.valid("clean")[0]].tolist()
        return token_labels(tokenizer, ids)

    @property
    def length(self) -> int:
        """Return the number of tokens of every prompt.

        Raises:
            InputError: Prompts differ in length, so that positions mean different things.
        """
        counts = sorted(set(self.valid("corrupt").sum(-1).tolist()))
        if len(counts) > 1:
            raise InputError(
                f"positions are told apart only among prompts of one length, got {counts} tokens; "
                "choose pairs of one template, or parts without positions such as 'heads'"
            )
        return int(counts[0])

    def valid(self, side: str) -> Tensor:
        """Return which tokens of a side are no padding, (B, T) bool."""
        batch = self.batch(side)
        if batch.valid is not None:
            return batch.valid
        return torch.ones_like(torch.as_tensor(batch.tokens), dtype=torch.bool)

    @cached_property
    def first(self) -> int:
        """Return the first position at which a pair differs, counted from the first valid token."""
        if self.task.align is not None:
            return 0
        a, b = torch.as_tensor(self.clean.tokens), torch.as_tensor(self.corrupt.tokens)
        valid = self.valid("clean")
        differ = (a != b) & valid
        if not differ.any():
            return int(valid.sum(-1).min()) - 1
        positions = (valid.long().cumsum(-1) - 1)[differ]
        return int(positions.min())

    def asked(self, side: str) -> Tensor:
        """Return the (B, P) columns of a side whose logits the metric sees."""
        return positions(self.valid(side), self.task.at)

    def batch(self, side: str) -> Batch:
        """Return the batch of a side, "clean" or "corrupt"."""
        if side not in ("clean", "corrupt"):
            raise InputError(f"a side must be 'clean' or 'corrupt', got {side!r}")
        return self.clean if side == "clean" else self.corrupt

    def record(
        self,
        side: str,
        record: Names,
        edits: Sequence[Edit] = (),
        logits: bool = False,
        grad: bool = False,
    ) -> Recording:
        """Run one side, as `m.run` does."""
        return self.model.run(self.batch(side), record, edits, logits, grad)

    def source(self, side: str, record: Names) -> Recording:
        """Record one side to patch into the other: aligned with the other's tokens."""
        rec = self.record(side, record)
        if self.task.align is None:
            return rec
        other = "clean" if side == "corrupt" else "corrupt"
        own = self.record(other, list(rec))
        moves = moved_tokens(self.task.align, to_clean=side == "corrupt")
        return aligned(rec, own, moves, self.valid(side), self.valid(other))

    def sweep(
        self, variants: Sequence[Sequence[Edit]], onto: str = "corrupt", batch: int | str = "auto"
    ) -> Tensor:
        """Return the metric of edited runs of one side, (V, B)."""
        return self.model.sweep(self.batch(onto), variants, self.metric, self.task.at, batch)

    def recovery(self, values: Tensor, onto: str = "corrupt") -> Tensor:
        """Return (..., B) values as shares of the gap: 0 as the side itself, 1 as the other one.

        The mean over pairs is taken before the ratio.

        Raises:
            InputError: Both sides have the same metric, so that there is no gap to share.
        """
        if self.gap == 0:
            raise InputError(
                f"shares need a gap, but clean and corrupt give the same: {self.report}"
            )
        mean = values.mean(-1)
        own, other = self.corrupt_values.mean(), self.clean_values.mean()
        if onto == "clean":
            own, other = other, own
        return (mean - own) / (other - own)

    def _logits(self, batch: Batch) -> Tensor:
        kept: list[Tensor] = []

        def keep(logits_nPV: Tensor) -> Tensor:
            kept.append(logits_nPV)
            return logits_nPV.new_zeros(len(logits_nPV))

        self.model.sweep(batch, [[]], keep, self.task.at)
        return kept[0]


def _rows(given: Sequence[str] | Tensor) -> Any:
    return given if isinstance(given, Tensor) else list(given)
