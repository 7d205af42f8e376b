"""Facts as prompts: where the subject ends, what a network says of it, and what an edit changes.

Shapes: B prompts, T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.run.inputs import Batch
from actkit.maths.next_token import kl
from actkit.model import Model


@dataclass(frozen=True)
class Fact:
    """What a network shall say from now on.

    Attributes:
        prompt: With "{}" in the subject's place: "The capital of {} is".
        subject: "France".
        target: The new next word, one token, with its space in front: " Rome".
        old: What the network says now: " Paris".
    """

    prompt: str
    subject: str
    target: str
    old: str

    def __post_init__(self) -> None:
        """Refuse prompts that do not say where the subject stands."""
        if self.prompt.count("{}") != 1 or not self.subject.strip():
            raise InputError(
                f"a prompt needs one '{{}}' and a subject, got {self.prompt!r}, {self.subject!r}"
            )

    def __str__(self) -> str:
        """Return the prompt with its subject."""
        return self.prompt.format(self.subject)


@dataclass(frozen=True)
class Checked:
    """What an edit does.

    Attributes:
        probability: Of the new word after the fact's own prompt.
        efficacy: Whether the new word is ahead of the old one there, 0 or 1.
        paraphrase: Share of other wordings after which it is; NaN if there are none.
        neighbourhood: Share of prompts of other subjects after which their own word stays ahead
            of the new one; NaN if there are none.
        kl: Divergence of the edited network's next token from the bare one's after unrelated
            prompts, sum p log(p / p_edited), their mean (nats); NaN if there are none.
    """

    probability: float
    efficacy: float
    paraphrase: float
    neighbourhood: float
    kl: float


def checked(
    model: Model,
    edit: AbstractContextManager[None],
    fact: Fact,
    paraphrases: Sequence[str] = (),
    neighbours: Mapping[str, str] | None = None,
    unrelated: Sequence[str] = (),
) -> Checked:
    """Return what an edit does to the fact, to other wordings, other subjects and the rest.

    Args:
        model: The network, not edited.
        edit: Within it the network is edited: `edit.applied(model)`, `model.replaced(...)`.
        fact: What was to change.
        paraphrases: Other prompts that ask for the same.
        neighbours: For each prompt of another subject the word that should follow.
        unrelated: Prompts whose continuation should stay as it is.
    """
    neighbours = neighbours or {}
    new, old = (token_id(model, word) for word in (fact.target, fact.old))
    own = [token_id(model, word) for word in neighbours.values()]
    before_BV = _log_probs(model, unrelated)
    with edit:
        said_V = _log_probs(model, [str(fact)])[0]
        wordings_BV = _log_probs(model, paraphrases)
        others_BV = _log_probs(model, list(neighbours))
        after_BV = _log_probs(model, unrelated)
    ahead_B = wordings_BV[:, new] > wordings_BV[:, old]
    kept_B = others_BV[torch.arange(len(own), device=others_BV.device), own] > others_BV[:, new]
    kl_B = kl(before_BV, after_BV)
    means = (x.double().mean().item() for x in (ahead_B, kept_B, kl_B))
    return Checked(said_V[new].exp().item(), float(said_V[new] > said_V[old]), *means)


def token_id(model: Model, word: str) -> int:
    """Return the one token of a word."""
    ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(f"a word must be one token, with its space in front, got {word!r}: {ids}")
    return int(ids[0])


def subject_ends(model: Model, texts: Sequence[str], heads: Sequence[str]) -> tuple[Batch, Tensor]:
    """Encode texts, and return where the beginning of each ends, as a (B, T) bool mask.

    Raises:
        InputError: A token holds the end of a beginning and what follows it.
    """
    batch, until = model.encode(list(texts)), model.encode(list(heads))
    mask_BT = torch.zeros_like(torch.as_tensor(batch.valid))
    for row in range(len(texts)):
        ids, head = (_ids(side, row) for side in (batch, until))
        if not torch.equal(ids[: len(head)], head):
            raise InputError(f"a subject must end where a token ends, got {texts[row]!r}")
        mask_BT[row, mask_BT.shape[1] - len(ids) + len(head) - 1] = True
    return batch, mask_BT


def prefixes(texts: Sequence[str], num: int, seed: int) -> list[str]:
    """Return beginnings to put before a prompt: 2 to 10 words from the corpus, then a stop."""
    rng, longest = Random(seed), 10
    rows = [row for row in (text.split() for text in texts) if len(row) >= longest]
    if num and not rows:
        raise InputError(
            f"prefixes are cut from texts of {longest} words, got {len(texts)} shorter"
        )
    cuts = []
    for _ in range(num):
        row, size = rng.choice(rows), rng.randint(2, longest)
        start = rng.randint(0, len(row) - size)
        cuts.append(f"{' '.join(row[start : start + size])}. ")
    return cuts


def _log_probs(model: Model, prompts: Sequence[str]) -> Tensor:
    """Return the (B, V) log-probabilities of the next token."""
    if not prompts:
        return torch.empty(0, 1 + max(model.tokenizer.get_vocab().values()))
    logits_BTV = model.run(list(prompts), logits=True).logits
    return logits_BTV[:, -1].float().log_softmax(-1).cpu()


def _ids(batch: Batch, row: int) -> Tensor:
    """Return the (n,) ids of a row without its padding."""
    return torch.as_tensor(batch.tokens)[row][torch.as_tensor(batch.valid)[row]]
