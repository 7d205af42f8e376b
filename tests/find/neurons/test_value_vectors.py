"""Value vectors: projections by brute force, concepts by hand, planted clusters."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actkit.core.errors import InputError, SiteError
from actkit.find.neurons.value_vectors import ValueVectors, value_vectors
from actkit.model import Model
from tests.core import tiny


def uneven(module: Any) -> Any:
    """Give every norm an uneven gain, which a random network lacks."""
    for name, p in module.named_parameters():
        if p.dim() == 1 and "weight" in name:
            p.data = tiny.uneven(len(p)).abs() + 0.2
    return module


def columns(model: Model, layer: int) -> Tensor:
    module: Any = model.module
    if hasattr(module, "transformer"):
        return torch.as_tensor(module.transformer.h[layer].mlp.c_proj.weight).detach()
    return torch.as_tensor(module.model.layers[layer].mlp.down_proj.weight).detach().T


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "as it is"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_top_tokens_are_those_of_the_head(name: str, fold: bool) -> None:
    module = uneven(tiny.llama() if name == "llama" else tiny.gpt2())
    model = Model(module, tiny.tokenizer())
    found = value_vectors(model, top_k=4, fold_norm=fold)
    norm = module.model.norm if name == "llama" else module.transformer.ln_f
    gain = norm.weight.detach().double() if fold else 1.0
    for layer, tokens in found.tokens.items():
        vectors = columns(model, layer)
        assert torch.equal(found.vectors[layer], vectors)
        head = module.lm_head.weight.detach().double()
        by_hand = torch.stack([head @ (gain * v.double()) for v in vectors])
        assert torch.equal(tokens, by_hand.topk(4).indices)
        assert found.words(layer, 5) == [f"w{i}" if i else "<pad>" for i in tokens[5].tolist()]
    assert len(found.tokens) == module.config.num_hidden_layers


def test_a_neuron_that_writes_a_token_names_it() -> None:
    """Written along the head's row of w17, less the mean row, it promotes w17 first."""
    module = tiny.llama()
    head = module.lm_head.weight.detach()
    module.model.layers[1].mlp.down_proj.weight.data[:, 9] = 3 * (head[17] - head.mean(0))
    found = value_vectors(Model(module, tiny.tokenizer()), layers=1, top_k=3)
    assert list(found.tokens) == [1]
    assert found.words(1, 9)[0] == "w17"
    assert found.concept(["W17 "], num_neurons=1) == {1: (9,)}


def test_concept_counts_words_then_their_places() -> None:
    texts = [" up", "UP", " down", "left", "above"]
    tokens = {3: torch.tensor([[0, 2, 3], [2, 3, 0], [3, 2, 4]]), 7: torch.tensor([[2, 0, 1]])}
    found = ValueVectors({}, tokens, texts)
    assert found.concept(["up"], 1) == {7: (0,)}
    assert found.concept(["Up"], 2) == {3: (0,), 7: (0,)}
    assert found.concept(["up", "above"], 4) == {3: (0, 1, 2), 7: (0,)}
    with pytest.raises(InputError, match=r"1\.\.3.*\['up'\], got 4"):
        found.concept(["up"], 4)
    with pytest.raises(InputError, match=r"1\.\.0.*got 1"):
        found.concept(["sideways"], 1)


def test_clusters_are_directions_over_all_layers() -> None:
    """Lengths do not count: each direction is planted with lengths from .1 to 30."""
    gen = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(11, 11, generator=gen)).Q[:3]
    kind = torch.arange(23) % 3
    noisy = directions[kind] + 0.05 * torch.randn(23, 11, generator=gen)
    vectors = noisy * torch.logspace(-1, 1.5, 23)[:, None]
    found = ValueVectors({2: vectors[:9], 5: vectors[9:]}, {}, [])
    clusters = found.clusters(3)
    names = [(2, i) for i in range(9)] + [(5, i) for i in range(14)]
    expected = [{n for n, k in zip(names, kind.tolist(), strict=True) if k == j} for j in range(3)]
    had = [{(n, i) for n, own in c.items() for i in own} for c in clusters]
    assert sorted(map(sorted, had)) == sorted(map(sorted, expected))
    with pytest.raises(InputError, match=r"1\.\.23, got 24"):
        found.clusters(24)


def test_lower_precision_changes_close_calls_only() -> None:
    model = Model(uneven(tiny.llama()), tiny.tokenizer())
    exact, coarse = (
        value_vectors(model, top_k=5),
        value_vectors(model, top_k=5, dtype=torch.bfloat16),
    )
    same = torch.stack([exact.tokens[n] == coarse.tokens[n] for n in exact.tokens])
    assert same.float().mean() > 0.9


def test_networks_without_what_it_takes_are_refused() -> None:
    model = tiny.model()
    with pytest.raises(InputError, match=r"top_k must be in 1\.\.89, got 90"):
        value_vectors(model, top_k=90)
    with pytest.raises(SiteError, match=r"mlp_hidden\.7"):
        value_vectors(model, layers=[0, 7])
    with pytest.raises(InputError, match="output head, which"):
        value_vectors(Model(tiny.Cnn()))
    module = tiny.llama()
    path = module.model.layers[0].mlp
    path.down_proj = nn.Sequential(path.down_proj)
    with pytest.raises(InputError, match=r"mlp_hidden\.0 stands .*a Sequential"):
        value_vectors(Model(module, tiny.tokenizer()))
    bare = value_vectors(Model(tiny.llama()), layers=0, top_k=2)
    assert bare.words(0, 0) == [str(i) for i in bare.tokens[0][0].tolist()]
    assert repr(bare) == "ValueVectors(80 neurons of layers [0])"
