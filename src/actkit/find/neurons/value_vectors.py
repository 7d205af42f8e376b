"""Read off what MLP neurons write, in words of the vocabulary, and gather those of a concept.

Shapes: F neurons of a layer, D width, V vocabulary, K tokens kept, N neurons of all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actkit.anatomy.linear_map import is_linear, weight_of
from actkit.anatomy.norm import norm_gain
from actkit.anatomy.plain_writes import check_plain_writes
from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.token_labels import BROKEN, token_label
from actkit.core.sites.site import Site
from actkit.find._base import Finder
from actkit.model import Model


@dataclass(frozen=True, eq=False)
class ValueVectors:
    """What the neurons of some layers write.

    Attributes:
        vectors: (F, D) of each layer: the columns of the down projection, as they are stored.
        tokens: (F, K) of each layer: the tokens that each neuron promotes most, most first.
        texts: Text of each token of the vocabulary.
    """

    vectors: dict[int, Tensor]
    tokens: dict[int, Tensor]
    texts: Sequence[str]

    def __repr__(self) -> str:
        """Return how many neurons of which layers there are, in one line."""
        number = sum(map(len, self.tokens.values()))
        return f"ValueVectors({number:,} neurons of layers {list(self.tokens)})"

    def words(self, layer: int, unit: int) -> list[str]:
        """Return the texts of the tokens that a neuron promotes most."""
        return [self.texts[int(i)] for i in self.tokens[layer][unit]]

    def concept(self, words: Sequence[str], num_neurons: int = 10) -> dict[int, tuple[int, ...]]:
        """Return the neurons with most of a concept's words among their tokens, by layer.

        Words are compared without case and surrounding space. Among equals the neuron comes
        first whose words are promoted more, then the earlier one.

        Raises:
            InputError: Fewer neurons promote any of the words.
        """
        wanted = {w.strip().casefold() for w in words}
        meant_V = torch.tensor([t.strip().casefold() in wanted for t in self.texts])
        found = []
        for layer, tokens_FK in self.tokens.items():
            hit_FK = meant_V[tokens_FK.cpu()]
            place_F = (hit_FK * torch.arange(hit_FK.shape[1], 0, -1)).sum(1)
            for unit in hit_FK.any(1).nonzero()[:, 0].tolist():
                found.append((-int(hit_FK[unit].sum()), -int(place_F[unit]), layer, unit))
        if not 1 <= num_neurons <= len(found):
            raise InputError(
                f"num_neurons must be in 1..{len(found)}, the neurons that promote any of "
                f"{sorted(wanted)}, got {num_neurons}"
            )
        return _by_layer([(layer, unit) for *_, layer, unit in sorted(found)[:num_neurons]])

    def clusters(self, num_clusters: int, seed: int = 0) -> list[dict[int, tuple[int, ...]]]:
        """Return all neurons in clusters of like direction, each as neurons by layer.

        The clusters are those of k-means on value vectors of length one, over all layers.

        Raises:
            InputError: There are fewer neurons than clusters.
        """
        from sklearn.cluster import KMeans

        names = [(n, i) for n, own in self.vectors.items() for i in range(len(own))]
        if not 1 <= num_clusters <= len(names):
            raise InputError(f"num_clusters must be in 1..{len(names)}, got {num_clusters}")
        vectors_ND = torch.cat([v.detach().cpu().float() for v in self.vectors.values()])
        units_ND = nn.functional.normalize(vectors_ND, dim=-1).numpy()
        labels_N = KMeans(num_clusters, n_init=3, random_state=seed).fit_predict(units_ND)
        members: list[list[tuple[int, int]]] = [[] for _ in range(num_clusters)]
        for name, label in zip(names, labels_N, strict=True):
            members[label].append(name)
        return [_by_layer(own) for own in members]


@method(source="Haon et al. 2025, arXiv:2509.00328, section 3", interface=Finder)
def value_vectors(
    model: Model,
    layers: int | Sequence[int] | None = None,
    top_k: int = 20,
    fold_norm: bool = True,
    dtype: torch.dtype | None = None,
) -> ValueVectors:
    """Project each neuron's value vector on the token basis.

    An MLP returns sum_i a_i(x) w_i with w_i a column of its down projection; W_U w_i says which
    tokens neuron i promotes when a_i is positive. Concepts are the neurons whose top tokens hold
    the concept's words (`concept`), or clusters of value vectors (`clusters`). As in the paper.

    Args:
        model: A language model, or one that reads images or writes actions as tokens.
        layers: Which layers; all if None.
        top_k: How many tokens to keep of each neuron.
        fold_norm: Multiply by the gain of the last norm first, as the network does.
        dtype: In which the products are taken; the weights' own if None. bfloat16 is several
            times faster on processors that have it, and only close calls come out otherwise.

    Returns:
        Vectors, top tokens and their texts.

    Raises:
        SiteError: The network has no MLP neurons, or no norm to fold in.
        InputError: It has no output head, a down projection that is no plain linear map, or a norm
            between MLP and stream.

    Example:
        >>> import actkit as ak
        >>> found = value_vectors(ak.open("smollm2"), layers=25, top_k=4)
        >>> found.words(25, 822), found.concept(["up"], num_neurons=1)
        ([' below', ' above', 'below', 'above'], {25: (476,)})
    """
    head = getattr(model.module, "get_output_embeddings", lambda: None)()
    if head is None:
        raise InputError(f"value vectors are read by an output head, which {model!r} lacks")
    asked = [layers] if isinstance(layers, int) else layers
    patterns = ["mlp_hidden.*"] if asked is None else [f"mlp_hidden.{n}" for n in asked]
    sites = [site for pattern in patterns for site in model.sites(pattern)]
    out_VD = head.weight.detach()
    if not 1 <= top_k <= len(out_VD):
        raise InputError(f"top_k must be in 1..{len(out_VD)}, got {top_k}")
    if fold_norm:
        out_VD = out_VD * _gain(model, out_VD)
    out_VD = out_VD.to(dtype or out_VD.dtype)
    vectors, tokens = {}, {}
    for site in track(sites, "projecting value vectors"):
        layer = site.depth
        check_plain_writes(model, "mlp_out", layer)
        vectors[layer] = _columns(model, site)
        logits_FV = vectors[layer].to(out_VD) @ out_VD.mT
        tokens[layer] = logits_FV.topk(top_k).indices
    return ValueVectors(vectors, tokens, _texts(model, len(out_VD)))


def _columns(model: Model, site: Site) -> Tensor:
    """Return the (F, D) columns of the map that reads a site."""
    module = model.module.get_submodule(site.place.path)
    if not is_linear(module):
        raise InputError(
            f"value vectors are columns of a linear map (merge adapters first), at {site.name} "
            f"stands {site.place.path}, a {type(module).__name__}"
        )
    return weight_of(module).mT


def _gain(model: Model, like_VD: Tensor) -> Tensor:
    """Return the (D,) gain of the last norm."""
    norm = model.module.get_submodule(model.sites("final_norm")[0].place.path)
    return norm_gain(norm, like_VD.shape[1], like_VD)


def _texts(model: Model, size: int) -> list[str]:
    """Return the text of each token; of a network without a tokenizer its number."""
    if model.tokenizer is None:
        return [str(i) for i in range(size)]
    texts: list[str] = model.tokenizer.batch_decode([[i] for i in range(size)])
    return [
        token_label(model.tokenizer, i) if BROKEN in text else text for i, text in enumerate(texts)
    ]


def _by_layer(neurons: Sequence[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    ordered = sorted(neurons)
    return {n: tuple(i for m, i in ordered if m == n) for n, _ in ordered}
