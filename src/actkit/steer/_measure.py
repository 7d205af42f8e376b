"""What steering does: to the concept, to the next token, to the text, and to what it is not about.

Shapes: B rows, N questions, T tokens, V vocabulary.
"""

import inspect
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from actkit import data
from actkit.core.compat import cache_keywords, output_cache
from actkit.core.edit import Edit
from actkit.core.errors import InputError
from actkit.core.model import Model
from actkit.core.recording import last_tokens
from actkit.steer._task import Task, as_task, first_token

OFF_TARGET_TEXTS, OFF_TARGET_TOKENS = 6, 33
"""How much prose the off-target loss is measured on: 6 x 32 predicted tokens."""
FACTS = 24
"""How many facts about capitals are asked."""


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
        tokens_per_second: While writing, as a ratio to the unedited network's.
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
        """Return the numbers by name."""
        return asdict(self)


def effects(
    model: Model,
    edits: Sequence[Edit],
    task: str | Task,
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
    base, moved = next_logits(model, task.prompts), next_logits(model, told, edits)
    plain, plain_seconds = _written(model, task.prompts, (), max_new_tokens)
    texts, seconds = _written(model, told, edits, max_new_tokens)
    ratio = perplexity(model, task.prompts, texts) / perplexity(model, task.prompts, plain)
    prose, written = _prose(model), _ids(model, texts)
    facts = [fact for fact in data.capitals() if fact.kind == "city"][:FACTS]
    asked = [fact.clean for fact in facts]
    return Effects(
        concept=float((task.log_odds(model, moved) - task.log_odds(model, base)).mean()),
        kl=float(divergence(base, moved).mean()),
        perplexity=float(ratio),
        distinct=_mean([distinct(ids) for ids in written]),
        repetition=_mean([repetition(ids) for ids in written]),
        text_loss=forced_loss(model, prose, edits) - forced_loss(model, prose),
        fact_loss=_fact_loss(model, [_told(a, prefix) for a in asked], facts, edits)
        - _fact_loss(model, asked, facts, ()),
        tokens_per_second=plain_seconds / seconds,
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
        if rec.logits is None or rec.logits.dim() != 3:
            raise InputError(f"this needs a language model's logits, {model!r} gave none")
        whole = rec.logits.shape[1] == rec.rows.valid.shape[1]
        last = last_tokens(rec.logits, rec.rows) if whole else rec.logits[:, -1]
        found.append(last.float())
    return torch.cat(found)


def divergence(base_NV: Tensor, moved_NV: Tensor) -> Tensor:
    """Return KL(base || moved) of next-token distributions, (N,) in nats."""
    base, moved = base_NV.log_softmax(-1), moved_NV.log_softmax(-1)
    return (base.exp() * (base - moved)).sum(-1).clamp_min(0)


def perplexity(model: Model, prompts: Sequence[Any], texts: Sequence[str]) -> float:
    """Return the perplexity of all written texts after their prompts, unedited.

    Texts of which nothing is left (the first token ended them) do not count.
    """
    losses: list[Tensor] = []
    for prompt, own in zip(prompts, _ids(model, texts), strict=True):
        if own:
            ids = [*model.encode(prompt).kwargs["input_ids"][0].tolist(), *own]
            logits = model.run([ids], logits=True).logits
            if logits is not None:
                losses.append(
                    _losses(logits[0, -len(own) - 1 : -1], torch.tensor(own, device=logits.device))
                )
    return float(torch.cat(losses).mean().exp()) if losses else float("nan")


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

    So edits act as they do while writing: on every token that follows the first.
    """
    ids_BT = ids_BT.to(next(model.module.parameters()).device)
    losses, cache = [], None
    with model.edited(edits):
        for step in range(ids_BT.shape[1] - 1):
            past = cache_keywords(model.module, cache)
            out = model.module(input_ids=ids_BT[:, step : step + 1], use_cache=True, **past)
            cache = output_cache(out)
            losses.append(_losses(out.logits[:, -1], ids_BT[:, step + 1]))
    return float(torch.cat(losses).mean())


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
) -> tuple[list[str], float]:
    """Return what follows each prompt, and how many seconds that took."""
    start = time.perf_counter()
    texts = model.generate(
        list(prompts), edits=edits, max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens
    )
    return texts, time.perf_counter() - start


def _ids(model: Model, texts: Sequence[str]) -> list[list[int]]:
    return [model.tokenizer(t, add_special_tokens=False)["input_ids"] if t else [] for t in texts]


def _prose(model: Model) -> Tensor:
    text = data.text(num_samples=40)
    blocks = data.chunks(text, model.tokenizer, OFF_TARGET_TOKENS)
    return torch.tensor([next(blocks) for _ in range(OFF_TARGET_TEXTS)])


def _fact_loss(
    model: Model, prompts: Sequence[str], facts: Sequence[Any], edits: Sequence[Edit]
) -> float:
    answers = [first_token(model, fact.answer) for fact in facts]
    logits_NV = next_logits(model, prompts, edits)
    return float(_losses(logits_NV, torch.tensor(answers, device=logits_NV.device)).mean())


def _losses(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    log_p = logits_NV.float().log_softmax(-1)
    return -log_p.gather(-1, tokens_N.to(log_p.device)[:, None])[:, 0]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
