"""Edit one fact by a rank-one change of an MLP's down projection.

The map is read as a memory that returns a value for a key; a new pair is put in so that the
values of all other keys change as little as possible.

Shapes: H units inside the MLP, D width, N tokens, B prompts, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from actkit.anatomy.linear_map import weight_of
from actkit.anatomy.rank_one import RankOne, rank_one
from actkit.catalog import method
from actkit.core.edits.edit import add
from actkit.core.edits.where import Where
from actkit.core.errors import InputError, NotFittedError
from actkit.core.progress import track
from actkit.core.run.inputs import Batch
from actkit.maths.next_token import kl
from actkit.model import Model
from actkit.trace._base import WeightEditor
from actkit.trace.interventions.rome._facts import Fact, prefixes, subject_ends, token_id


@method(source="Meng et al. 2022, arXiv:2202.05262, section 3")
@dataclass
class Rome(WeightEditor):
    """Find the rank-one edit that makes a network say something else of one subject.

    The key k* is the mean of what the map reads at the subject's last token, bare and behind
    prefixes. The value v* is W k* plus a change that Adam finds: it makes the target likely behind
    the prefixes and keeps what is said of the subject ("{subject} is a"). With C the uncentred
    second moment of the map's inputs over a corpus and u = C^-1 k*,
    W' = W + (v* - W k*) u^T / (u^T k*). As in the paper, but that prefixes are cut from the
    corpus, not sampled from the network.

    Args:
        layer: Whose MLP is edited.
        ridge: Added to C's diagonal, as a share of its mean.
        num_prefixes: How many, of 2 to 10 words.
        steps: Of Adam.
        learning_rate: Of Adam.
        kl_weight: Of keeping what is said of the subject.
        decay: Times |change| / |v0|^2, v0 what the map returns for the bare prompt.
        bound: Longest change, in lengths of v0.
        skip: First tokens of each text to leave out of C; in many networks they are outliers.
        seed: Of the prefixes.

    Attributes:
        moment_HH_: C without the ridge, float64.
        prefixes_: The prefixes.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> rome = Rome(layer=2, num_prefixes=2, steps=1).fit(m, ak.data.text(num_samples=2))
        >>> edit = rome.edit(m, Fact("The capital of {} is", "France", " Rome", " Paris"))
        >>> edit.path, tuple(edit.left_D.shape), round(float(edit.right_H @ edit.key_H), 4)
        ('model.layers.2.mlp.down_proj', (576,), 1.0)
    """

    layer: int
    ridge: float = 0.01
    num_prefixes: int = 50
    steps: int = 25
    learning_rate: float = 0.5
    kl_weight: float = 0.0625
    decay: float = 0.5
    bound: float = 4.0
    skip: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if min(self.ridge, self.num_prefixes) < 0 or self.steps < 1 or not self.bound > 0:
            raise InputError(
                f"ridge and num_prefixes must be at least 0, steps 1 and bound above 0, got "
                f"{self.ridge}, {self.num_prefixes}, {self.steps} and {self.bound:g}"
            )

    def fit(self, model: Model, texts: Sequence[str]) -> Self:
        """Estimate C over a corpus, and cut prefixes from it.

        Raises:
            InputError: The corpus has no tokens to count, or no text of ten words.
        """
        site = model.sites(f"mlp_hidden.{self.layer}")[0].name
        num, total_HH = 0, torch.zeros(())
        for text in track(texts, "reading keys"):
            keys_NH, rows = model.run(text, record=site).flat(site)
            keys_NH = keys_NH[rows.position >= self.skip].double()
            num, total_HH = num + len(keys_NH), total_HH.to(keys_NH) + keys_NH.mT @ keys_NH
        if not num or not total_HH.isfinite().all():
            raise InputError(f"the second moment needs finite keys, got {num} tokens")
        self.moment_HH_ = total_HH / num
        self.prefixes_ = prefixes(texts, self.num_prefixes, self.seed)
        return self

    def edit(self, model: Model, fact: Fact) -> RankOne:
        """Return the edit that makes the network say a fact; the network stays as it is.

        Raises:
            NotFittedError: Before `fit`.
            InputError: The target is no single token, the subject ends inside a token, or what
                the layer writes there never reaches the next word.
        """
        if not hasattr(self, "moment_HH_"):
            raise NotFittedError("Rome needs fit(model, texts) before edit")
        site = model.sites(f"mlp_hidden.{self.layer}")[0]
        before, _, after = fact.prompt.partition("{}")
        begins = ["", *self.prefixes_]
        heads = [f"{p}{before}{fact.subject}" for p in begins] + [fact.subject]
        texts = [f"{head}{after}" for head in heads[:-1]] + [f"{fact.subject} is a"]
        batch, ends_BT = prompts = subject_ends(model, texts, heads)
        out = f"{site.place.path}:out"
        rec = model.run(batch, record=[site.name, out])
        key_H = rec[site.name][ends_BT][:-1].double().mean(0)
        target, v0_D = token_id(model, fact.target), rec[out][ends_BT][0]
        change_D, losses = self._search(model, out, prompts, v0_D, target)
        weight_DH = weight_of(model.module.get_submodule(site.place.path)).double()
        value_D = weight_DH @ key_H + change_D.double()
        left_D, right_H = rank_one(weight_DH, key_H, value_D, self.moment_HH_, self.ridge)
        return RankOne(site.place.path, left_D, right_H, key_H, losses)

    def _search(
        self, model: Model, out: str, prompts: tuple[Batch, Tensor], v0_D: Tensor, target: int
    ) -> tuple[Tensor, list[float]]:
        """Return the (D,) change of the map's output that makes the target likely, and losses."""
        batch, ends_BT = prompts
        delta_D = torch.zeros_like(v0_D, requires_grad=True)
        optimiser = torch.optim.Adam([delta_D], self.learning_rate)
        longest, before_V = self.bound * v0_D.norm(), None
        losses: list[float] = []
        for _ in track(range(self.steps), "searching the value"):
            edit = add(out, delta_D, where=Where(tokens=ends_BT))
            logits = model.run(batch, edits=[edit], logits=True, grad=True).logits
            log_p_BV = logits[:, -1].float().log_softmax(-1)
            before_V = log_p_BV[-1].detach() if before_V is None else before_V
            drift = kl(log_p_BV[-1], before_V)
            decay = self.decay * delta_D.norm() / v0_D.norm() ** 2
            loss = -log_p_BV[:-1, target].mean() + self.kl_weight * drift + decay
            (delta_D.grad,) = torch.autograd.grad(loss, delta_D)
            if not losses and not delta_D.grad.any():
                raise InputError(
                    f"what layer {self.layer} writes at the subject must reach the next word, "
                    "its gradient is zero: choose an earlier layer"
                )
            optimiser.step()
            losses.append(loss.item())
            with torch.no_grad():
                delta_D *= (longest / delta_D.norm()).clamp_max(1)
        return delta_D.detach(), losses
