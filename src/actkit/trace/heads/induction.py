"""Induction heads: score heads for looking up what followed last time, and ablate them.

Shapes: B rows, T tokens, N tokens that occur, L layers, H heads, G key-value heads of R heads each,
K head width, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.anatomy.norm import attention_norm
from actkit.catalog import method
from actkit.core.edits.edit import Edit, scale, swap
from actkit.core.edits.where import Where
from actkit.core.run.recording import Recording
from actkit.model import Model
from actkit.trace._attribution import final_norm, head_inputs, head_outputs, unembedding
from actkit.trace._base import Analysis
from actkit.trace._in_context import losses_of, prefix_scores, repeated

Heads = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Induction:
    """What the heads do on random tokens that come twice.

    Attributes:
        tokens_BT: The tokens.
        prefix_LH: Prefix matching: mean attention from a token of the second copy to what
            followed it in the first, in [0, 1].
        copying_LH: Share of the tokens of which what the head writes, when it attends to one,
            raises its own logit into the top percent of all these tokens' logits.
        eigen_LH: Eigenvalue positivity of the map from attended token to logits, in [-1, 1].
        losses_BT: As `token_losses` gives them.
    """

    tokens_BT: Tensor
    prefix_LH: Tensor
    copying_LH: Tensor
    eigen_LH: Tensor
    losses_BT: Tensor

    @property
    def first_nll(self) -> float:
        """Return the mean loss of the first copy (nats)."""
        return float(self.losses_BT[:, : -self._length].mean())

    @property
    def repeat_nll(self) -> float:
        """Return the mean loss of the second copy (nats)."""
        return float(self.losses_BT[:, -self._length :].mean())

    def top(self, num: int = 10) -> list[tuple[int, int]]:
        """Return the heads (layer, head) that match prefixes best."""
        order = self.prefix_LH.flatten().argsort(descending=True, stable=True)[:num]
        return [divmod(int(i), self.prefix_LH.shape[1]) for i in order]

    @property
    def _length(self) -> int:
        return self.tokens_BT.shape[1] // 2


@method(source="Olsson et al. 2022, arXiv:2209.11895", interface=Analysis)
def induction(
    model: Model, num: int = 4, length: int = 40, start: int | None = None, seed: int = 0
) -> Induction:
    """Score every head for prefix matching and copying on random tokens that come twice.

    As in the paper, with two readings of copying, both by the direct path from the attended
    token's embedding through the norm before attention, W_V W_O, the final norm's gain and the
    unembedding. Queries of a group share their W_V; nothing is repeated.

    Args:
        model: A decoder.
        num: How many sequences.
        length: Tokens of one copy, all different.
        start: Id of the token that stands first; the tokenizer's own if None, none without one.
        seed: Of the tokens.

    Raises:
        InputError: There are not that many tokens, or no plain maps from embeddings to logits.

    Example:
        >>> from actkit.worlds import clear, toy
        >>> found = induction(Model(clear(toy(9, positions=6))), num=1, length=3)
        >>> float(found.prefix_LH[1, 1]), (1 / 4 + 1 / 5 + 1 / 6) / 3  # it attends to all alike
        (0.2055..., 0.2055...)
    """
    tokens_BT = repeated(model, num, length, start, seed)
    record = [f"{point}.*" for point in ("attn_probs", "resid_pre", "attn_in")]
    rec = model.run(tokens_BT, record=record, logits=True)
    prefix_LH = prefix_scores(model, rec)
    copying_LH, eigen_LH = _copying(model, rec, torch.unique(tokens_BT))
    return Induction(tokens_BT, prefix_LH, copying_LH, eigen_LH, losses_of(rec, tokens_BT))


def _copying(model: Model, rec: Recording, tokens_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the copying share and the eigenvalue positivity of each head, both (L, H)."""
    module: Any = model.module
    embed_VD = module.get_input_embeddings().weight.detach().float()
    unembed_VD = unembedding(model).weight.detach().float()
    last = final_norm(model)
    whole_DD = last.read((unembed_VD.mT @ embed_VD).mT).mT  # U^T E: sums over the vocabulary
    embed_ND, unembed_ND = embed_VD[tokens_N], last.read(unembed_VD[tokens_N])
    shares, positivity = [], []
    for site in model.sites("z.*"):
        layer = site.depth
        norm = attention_norm(model, rec, layer)
        v_DGK, _ = head_inputs(model, model.sites(f"v.{layer}")[0])
        o_HKD, _ = head_outputs(model, site)
        o_GRKD = o_HKD.view(v_DGK.shape[1], -1, *o_HKD.shape[1:])
        logits_GRNN = torch.einsum(
            "ngk,grkm->grnm",
            torch.einsum("nd,dgk->ngk", norm.linear(embed_ND), v_DGK),
            o_GRKD @ unembed_ND.mT,
        )
        own_GRN1 = logits_GRNN.diagonal(dim1=-2, dim2=-1)[..., None]
        rank_GRN = (logits_GRNN > own_GRN1).sum(-1)
        shares.append((rank_GRN < max(1, len(tokens_N) // 100)).float().mean(-1).flatten())
        maps_GRKK = torch.einsum("grkd,dgm->grkm", o_GRKD @ norm.linear(whole_DD), v_DGK)
        positivity.append(eigen_positivity(maps_GRKK).flatten())
    return torch.stack(shares), torch.stack(positivity)


def eigen_positivity(maps: Tensor) -> Tensor:
    """Return sum(lambda) / sum|lambda| of (..., K, K) maps; 0 where all eigenvalues are zero.

    Example:
        >>> eigen_positivity(torch.diag(torch.tensor([3.0, -1.0])))
        tensor(0.5000)
    """
    values = torch.linalg.eigvals(maps)
    size = values.abs().sum(-1).clamp_min(torch.finfo(maps.dtype).tiny)
    positivity: Tensor = values.real.sum(-1) / size
    return positivity


def ablation(heads: Heads, patterns: Recording | None = None) -> list[Edit]:
    """Return edits that set what heads read to zero.

    Args:
        heads: Pairs (layer, head).
        patterns: A bare run of the same tokens that recorded `attn_probs.*`: every layer then
            attends as it did there, so that no later head is led astray (pattern-preserving).
    """
    kept = [] if patterns is None else [swap(site, patterns) for site in patterns]
    by_layer = {n: [h for m, h in heads if m == n] for n, _ in heads}
    return kept + [scale(f"z.{n}", 0.0, Where(heads=own)) for n, own in by_layer.items()]
