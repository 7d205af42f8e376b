"""What steering does: to the concept, to the next token, to the text, and to what it is not about.

Shapes: B rows, N questions, T tokens, V vocabulary.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from actkit import data
from actkit.core.compat import cache_keywords, output_cache
from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.chats import leading_ids
from actkit.core.run.recording import last_tokens
from actkit.core.sites.site_names import points_of
from actkit.maths import next_token
from actkit.maths.next_token import kl, log_prob_of
from actkit.model import Model
from actkit.steer._concept import Concept, first_token
from actkit.steer.tasks import as_task

OFF_TARGET_TEXTS, OFF_TARGET_TOKENS = 6, 33
"""How much prose the off-target loss is measured on: 6 x 32 predicted tokens."""
FACTS = 24
"""How many facts about capitals are asked."""
TIMED_PROMPTS, TIMED_TOKENS, TIMED_TURNS = 2, 8, 3
"""On how much writing the speed is measured, and how often."""
ROWS = 12
"""Texts in one batch."""


@dataclass(frozen=True)
class Effects:
    """What edits do on a task, on average.

    Attributes:
        concept: Rise of the concept's log-odds at the next token (nats).
        kl: KL divergence of the unedited next-token distribution from the edited one (nats).
        perplexity: Of written text under the unedited network, as a ratio to that of its own.
        distinct: Share of pairs of neighbouring tokens in a written text that are different.
        repetition: Share of written tokens that are among the four before.
        text_loss: Rise of the loss on prose, decoded token by token (nats a token).
        fact_loss: Rise of the loss on capitals of countries (nats an answer).
        tokens_per_second: While writing, as a ratio to the unedited network's: the fastest of
            three turns each, taken in turns after both have written once. It is of this machine
            and this moment, so `to_dict`, which files are made of, leaves it out.
    """

    concept: float
    kl: float
    perplexity: float
    distinct: float
    repetition: float
    text_loss: float
    fact_loss: float
    tokens_per_second: float

    def to_dict(self) -> dict[str, float]:
        """Return the numbers by name, without the speed."""
        numbers = asdict(self)
        del numbers["tokens_per_second"]
        return numbers


def effects(
    model: Model,
    edits: Sequence[Edit],
    task: str | Concept,
    max_new_tokens: int = 24,
    prefix: str = "",
) -> Effects:
    """Measure what edits do to a language model.

    Args:
        model: The network.
        edits: What steers; none, to measure what `prefix` does.
        task: A bundled task's name, or a task of your own.
        max_new_tokens: How many tokens to write after each prompt.
        prefix: Put before each prompt, but not where the text is judged.
    """
    task = as_task(task)
    told = [_told(prompt, prefix) for prompt in task.prompts]
    prose = _prose(model)
    facts = [fact for fact in data.capitals() if fact.kind == "city"][:FACTS]
    asked = [fact.clean for fact in facts]
    work: dict[str, Callable[[], Any]] = {
        "next": lambda: (next_logits(model, task.prompts), next_logits(model, told, edits)),
        "plain": lambda: _written(model, task.prompts, (), max_new_tokens),
        "texts": lambda: _written(model, told, edits, max_new_tokens),
        "speed": lambda: _speed(model, told, edits, max_new_tokens),
        "text loss": lambda: forced_loss(model, prose, edits) - forced_loss(model, prose),
        "fact loss": lambda: (
            _fact_loss(model, [_told(a, prefix) for a in asked], facts, edits)
            - _fact_loss(model, asked, facts, ())
        ),
    }
    found = {name: measure() for name, measure in track(work.items(), "measuring side effects")}
    (base, moved), texts = found["next"], found["texts"]
    ratio = perplexity(model, task.prompts, texts) / perplexity(model, task.prompts, found["plain"])
    written = _ids(model, texts)
    return Effects(
        concept=float((task.log_odds(model, moved) - task.log_odds(model, base)).mean()),
        kl=float(divergence(base, moved).mean()),
        perplexity=float(ratio),
        distinct=_mean([distinct(ids) for ids in written]),
        repetition=_mean([repetition(ids) for ids in written]),
        text_loss=found["text loss"],
        fact_loss=found["fact loss"],
        tokens_per_second=found["speed"],
    )


def next_logits(
    model: Model, prompts: Sequence[Any], edits: Sequence[Edit] = (), batch_size: int = 64
) -> Tensor:
    """Return the (N, V) logits of the token after each prompt.

    Edits with a strength for each row need all prompts in one batch.
    """
    found = []
    for start in range(0, len(prompts), batch_size):
        batch = model.encode(list(prompts[start : start + batch_size]))
        taken = inspect.signature(model.module.forward).parameters
        if "logits_to_keep" in taken and batch.padding in ("", "left"):
            batch = replace(batch, kwargs={**batch.kwargs, "logits_to_keep": 1})
        rec = model.run(batch, edits=edits, logits=True)
        if rec.logits.dim() != 3:
            raise InputError(f"this needs a language model's logits, {model!r} gave none")
        whole = rec.logits.shape[1] == rec.rows.valid.shape[1]
        last = last_tokens(rec.logits, rec.rows) if whole else rec.logits[:, -1]
        found.append(last.float())
    return torch.cat(found)


def divergence(base_NV: Tensor, moved_NV: Tensor) -> Tensor:
    """Return KL(base || moved) of next-token distributions, (N,) in nats."""
    base, moved = base_NV.log_softmax(-1), moved_NV.log_softmax(-1)
    return kl(base, moved).clamp_min(0)


def perplexity(model: Model, prompts: Sequence[Any], texts: Sequence[str]) -> float:
    """Return the perplexity of all written texts after their prompts, unedited.

    Texts of which nothing is left (the first token ended them) do not count.
    """
    both = zip(prompts, _ids(model, texts), strict=True)
    told = [
        ([*model.encode(p).kwargs["input_ids"][0].tolist(), *own], len(own))
        for p, own in both
        if own
    ]
    told.sort(key=lambda pair: len(pair[0]))  # rows of about one length need little padding
    losses: list[Tensor] = []
    for start in range(0, len(told), ROWS):
        some = told[start : start + ROWS]
        rec = model.run([ids for ids, _ in some], logits=True)
        for (ids, num), logits_TV, valid_T in zip(some, rec.logits, rec.rows.valid, strict=True):
            own_V = logits_TV[valid_T.to(logits_TV.device)][-num - 1 : -1]
            losses.append(_losses(own_V, torch.tensor(ids[-num:], device=own_V.device)))
    return next_token.perplexity(torch.cat(losses)) if losses else float("nan")


def distinct(ids: Sequence[int]) -> float:
    """Return the share of a text's pairs of neighbouring tokens that are different; 1 if none."""
    pairs = list(pairwise(ids))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def repetition(ids: Sequence[int], window: int = 4) -> float:
    """Return the share of tokens that are among the `window` before them."""
    return _mean([token in ids[max(i - window, 0) : i] for i, token in enumerate(ids)])


@torch.no_grad()
def forced_loss(model: Model, ids_BT: Tensor, edits: Sequence[Edit] = ()) -> float:
    """Return the mean loss of given tokens, decoded one by one as if the network wrote them.

    So edits act as they do while writing: the first token is the prompt, and each that follows
    it is the last one when it is written. Where what all edits do at a token depends on that
    token alone, one pass over the text does the same in a fraction of the time.
    """
    ids_BT = ids_BT.to(next(model.module.parameters()).device)
    at_once = [_at_once(edit) for edit in edits]
    if None not in at_once:
        whole = [edit for edit in at_once if edit is not None]
        logits = model.run({"input_ids": ids_BT}, edits=whole, logits=True).logits
        return float(_losses(logits[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()).mean())
    losses, cache = [], None
    with model.edited(edits):
        for step in range(ids_BT.shape[1] - 1):
            past = cache_keywords(model.module, cache)
            out = model.module(input_ids=ids_BT[:, step : step + 1], use_cache=True, **past)
            cache = output_cache(out)
            losses.append(_losses(out.logits[:, -1], ids_BT[:, step + 1]))
    return float(torch.cat(losses).mean())


WRITTEN: Mapping[str, str | slice] = {
    "all": "all",
    "last": "all",
    "generated": slice(1, None),
    "prompt": slice(0, 1),
}
"""Which tokens of a text are meant where its first is the prompt and the others are written."""


def _at_once(edit: Edit) -> Edit | None:
    """Return the edit for one pass over a text that is written token by token, None if none is."""
    tokens, attends = edit.where.tokens, {"attn_scores", "attn_probs"} & {*points_of(edit.site)}
    plain = all(x.dim() < 2 for x in edit.operation.tensors().values())
    if attends or not (plain and edit.operation.tokenwise) or edit.where.steps is not None:
        return None
    if not isinstance(tokens, str) or tokens not in WRITTEN:
        return None
    return replace(edit, where=replace(edit.where, tokens=WRITTEN[tokens]))


def random_like(edits: Sequence[Edit], seed: int) -> list[Edit]:
    """Return the edits with every added vector replaced by a random one of its length.

    Raises:
        InputError: An edit adds nothing, so there is no direction to draw.
    """
    gen = torch.Generator().manual_seed(seed)
    drawn = []
    for edit in edits:
        vector = edit.operation.tensors().get("vector")
        if vector is None:
            raise InputError(f"only added vectors can be drawn anew, got {edit.operation.name}")
        noise = torch.randn(vector.shape, generator=gen).to(vector)
        length = vector.norm(dim=-1, keepdim=True)
        own = {**vars(edit.operation), "vector": noise / noise.norm(dim=-1, keepdim=True) * length}
        drawn.append(Edit(edit.site, type(edit.operation)(**own), edit.where))
    return drawn


def _told(prompt: Any, prefix: str) -> Any:
    """Return the prompt after what is asked of it: a system message, or a sentence in front."""
    if not prefix:
        return prompt
    if isinstance(prompt, str):
        return f"{prefix} {prompt}"
    return [{"role": "system", "content": prefix}, *prompt]


def _written(
    model: Model, prompts: Sequence[Any], edits: Sequence[Edit], max_new_tokens: int
) -> list[str]:
    """Return what follows each prompt."""
    return model.generate(
        list(prompts), edits=edits, max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens
    )


def _speed(
    model: Model, prompts: Sequence[Any], edits: Sequence[Edit], max_new_tokens: int
) -> float:
    """Return tokens per second with edits, as a ratio to those without.

    Both sides have written before, so that nothing is compiled, imported or first touched here;
    they take turns, and the fastest turn is the one that was disturbed least.
    """
    some, num = list(prompts)[:TIMED_PROMPTS], min(max_new_tokens, TIMED_TOKENS)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(TIMED_TURNS):
        for edited, own in seconds.items():
            start = time.perf_counter()
            _written(model, some, edits if edited else (), num)
            own.append(time.perf_counter() - start)
    return min(seconds[False]) / min(seconds[True])


def _ids(model: Model, texts: Sequence[str]) -> list[list[int]]:
    return [model.tokenizer(t, add_special_tokens=False)["input_ids"] if t else [] for t in texts]


def _prose(model: Model) -> Tensor:
    text = data.text(num_samples=40)
    start = leading_ids(model.tokenizer)
    blocks = data.chunks(text, model.tokenizer, OFF_TARGET_TOKENS - len(start))
    return torch.tensor([[*start, *next(blocks)] for _ in range(OFF_TARGET_TEXTS)])


def _fact_loss(
    model: Model, prompts: Sequence[str], facts: Sequence[Any], edits: Sequence[Edit]
) -> float:
    answers = [first_token(model, fact.answer) for fact in facts]
    logits_NV = next_logits(model, prompts, edits)
    return float(_losses(logits_NV, torch.tensor(answers, device=logits_NV.device)).mean())


def _losses(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    log_p = logits_NV.float().log_softmax(-1)
    return -log_prob_of(log_p, tokens_N)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
