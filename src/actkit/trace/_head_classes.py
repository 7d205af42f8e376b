"""Classes of attention heads in prompts that name a subject twice and an indirect object once.

Shapes: B pairs, L layers, H heads, G key-value heads, T tokens, D width, K head width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from actkit.anatomy.plain_writes import check_plain_writes
from actkit.core.edits.edit import set
from actkit.core.errors import InputError
from actkit.trace._task import Trial

NEXT, END = "after the subject", "end"
PATTERNS = {
    "previous token": (NEXT, "subject"),
    "duplicate token": ("subject again", "subject"),
    "induction": ("subject again", NEXT),
    "S-inhibition": (END, "subject again"),
    "name mover": (END, "indirect object"),
}
"""For each class, which token attends to which."""


def head_classes(
    trial: Trial, attention: float = 0.3, copying: float = 0.5
) -> dict[str, list[tuple[int, int]]]:
    """Sort heads into the classes of the circuit for indirect objects, (layer, head) of each.

    A head belongs to a class if it pays at least the share `attention` as the class does; name
    movers besides write the name they attend to, "negative name mover" write it with the other
    sign. Backup movers, which move names only once the movers are gone, are not told apart.

    Args:
        trial: The answers are the indirect objects, the wrong ones the subjects.
        attention: Smallest mean share of attention, 0 to 1.
        copying: Smallest copy score of movers, 0 to 1.

    Raises:
        InputError: A prompt does not name the subject twice, then end, or lacks the object.
    """
    paid = attention_paid(trial)
    chosen = {name: share_LH >= attention for name, share_LH in paid.items()}
    movers = chosen.pop("name mover")
    heads = [tuple(i) for i in movers.nonzero().tolist()]
    plus, minus = copy_scores(trial, heads)
    found = {name: _heads(mask_LH) for name, mask_LH in chosen.items()}
    found["name mover"] = [h for h, c in zip(heads, plus.tolist(), strict=True) if c >= copying]
    found["negative name mover"] = [
        h for h, c in zip(heads, minus.tolist(), strict=True) if c >= copying
    ]
    return found


def attention_paid(trial: Trial) -> dict[str, Tensor]:
    """Return each head's mean attention of each of the `PATTERNS`, (L, H)."""
    at, names = _positions(trial), [site.name for site in trial.model.sites("attn_probs.*")]
    rec = trial.record("clean", names)
    rows = torch.arange(len(trial), device=rec.rows.valid.device)
    return {
        name: torch.stack([rec[n][rows, :, at[query], at[key]].mean(0).float() for n in names])
        for name, (query, key) in PATTERNS.items()
    }


def copy_scores(
    trial: Trial, heads: Sequence[tuple[int, int]], num_best: int = 5
) -> tuple[Tensor, Tensor]:
    """Return how often what a head makes of a name has that name among its best next words.

    The stream after the first block at the indirect object goes through the head's value and
    output maps, is unembedded after the last norm, and the name's rank is taken.

    Args:
        trial: As in `head_classes`.
        heads: (layer, head) of the heads that are asked.
        num_best: Among how many words the name must be.

    Returns:
        (n,) shares of the prompts for n heads, and the same with the head's sign turned.

    Raises:
        InputError: A norm stands between attention and stream.
    """
    model, at = trial.model, _positions(trial)["indirect object"]
    rows = torch.arange(len(trial), device=at.device)
    if trial.plus is None or not heads:
        return at.new_zeros(len(heads)).float(), at.new_zeros(len(heads)).float()
    stream = trial.record("clean", "resid_post.0")["resid_post.0"]
    written = []
    for layer, head in heads:
        check_plain_writes(model, "attn_out", layer)
        v = trial.record("clean", f"v.{layer}", [set(f"resid_pre.{layer}", stream)])[f"v.{layer}"]
        z = model.sites(f"z.{layer}")[0]
        num_heads, width = z.unit_shape or (1, 1)
        z_BHK = v.new_zeros(len(trial), num_heads, width)
        z_BHK[:, head] = v[rows, at, head * v.shape[2] // num_heads]
        project = model.module.get_submodule(z.place.path)
        with torch.no_grad():
            written.append(project(z_BHK.flatten(1)) - project(torch.zeros_like(z_BHK).flatten(1)))
    both = torch.cat([torch.cat(written), -torch.cat(written)])
    last = model.sites("resid_post.*")[-1].name
    ids = torch.zeros(len(both), 1, dtype=torch.long, device=both.device)
    logits = model.run(ids, edits=[set(last, both[:, None])], logits=True).logits
    best = torch.as_tensor(logits)[:, -1].topk(num_best).indices.view(2, len(heads), len(trial), -1)
    share = (best == trial.plus[:, 0].view(1, 1, -1, 1)).any(-1).float().mean(-1)
    return share[0], share[1]


def _heads(mask_LH: Tensor) -> list[tuple[int, int]]:
    return [(int(layer), int(head)) for layer, head in mask_LH.nonzero()]


def _positions(trial: Trial) -> dict[str, Tensor]:
    """Return the column of each role of the clean prompts, (B,)."""
    if trial.plus is None or trial.minus is None:
        raise InputError("classes of heads need answers (indirect objects) and wrong ones")
    tokens, valid = torch.as_tensor(trial.clean.tokens), trial.valid("clean")
    subject, named = ((tokens == ids[:, :1]) & valid for ids in (trial.minus, trial.plus))
    for row, (twice, once) in enumerate(zip(subject.sum(-1), named.sum(-1), strict=True)):
        if (int(twice), int(once)) != (2, 1):
            raise InputError(
                "a prompt must hold the wrong answer twice and the right one once, prompt "
                f"{row} holds them {int(twice)} and {int(once)} times: {trial.prompt(row)!r}"
            )
    first = subject.long().argmax(-1)
    again = tokens.shape[1] - 1 - subject.long().flip(-1).argmax(-1)
    end = torch.full_like(first, tokens.shape[1] - 1)
    return {"subject": first, "subject again": again, NEXT: first + 1, END: end,
            "indirect object": named.long().argmax(-1)}  # fmt: skip
