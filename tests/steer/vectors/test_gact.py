"""Gated cluster steering: the formula by hand, planted clusters, drift, and its cost."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize
from torch.utils.flop_counter import FlopCounterMode

import actkit as ak
from actkit.core.errors import InputError, NotFittedError
from actkit.model import Model
from actkit.steer.vectors.gact import GACT
from actkit.steer.vectors.gact._cluster_probe import refined
from tests._evidence import Evidence
from tests.core import tiny

PAIRS = [
    (f"w{i} w{2 * i + 1} w{40 + i} w7", f"w{i} w{2 * i + 2} w{60 + i} w8") for i in range(1, 12)
]


def test_the_added_vector_by_hand() -> None:
    """In numpy's float64, from the states and what was learnt, at the last token only."""
    model = tiny.model()
    gact = GACT(layers=[1, 2]).fit(model, PAIRS)
    bare = model.run(tiny.PROMPTS, "resid_post.1")["resid_post.1"]
    first, _ = gact.edits(1.7)
    found = model.run(tiny.PROMPTS, "resid_post.1", [first])["resid_post.1"]
    assert torch.equal(found[:, :-1], bare[:, :-1])
    operation: Any = first.operation
    centre, weights, vectors = (
        t.double().numpy() for t in (operation.centre, operation.weights, gact.vectors_[1])
    )
    for i, h in enumerate(bare[:, -1].double().numpy()):
        x = (h - centre) / np.linalg.norm(h - centre)
        odds = np.exp(weights @ x)
        p = odds / odds.sum()
        expected = h + 1.7 * p.max() * vectors[p.argmax()] / 2  # two layers share the strength
        np.testing.assert_allclose(found[i, -1].double().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_one_cluster_is_the_mean_direction_of_the_differences() -> None:
    model = tiny.model()
    gact = GACT(num_clusters=1).fit(model, PAIRS)
    rec = [model.run([p[i] for p in PAIRS], "resid_post.2")["resid_post.2"][:, -1] for i in (0, 1)]
    difference = (rec[0] - rec[1]).double()
    mean = normalize(normalize(difference, dim=-1).mean(0), dim=0) * difference.norm(dim=-1).mean()
    torch.testing.assert_close(gact.vectors_[2][0].double(), mean, rtol=1e-4, atol=1e-4)
    assert set(gact.accuracy_.values()) == {1.0}
    assert gact.active == [0, 1, 2]


def test_a_refining_step_is_the_gradient_of_the_cross_entropy() -> None:
    weights = tiny.uneven(3, 7, dtype=torch.float64).requires_grad_()
    x = tiny.uneven(7, seed=1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        cross_entropy((weights @ x)[None], torch.tensor([2])), [weights]
    )
    found = refined(weights.detach(), x, 2, 0.3)
    torch.testing.assert_close(found, weights.detach() - 0.3 * gradient)


def test_what_cannot_be_done_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(InputError, match="got 2 pairs for 3 clusters"):
        GACT().fit(model, PAIRS[:2])
    with pytest.raises(InputError, match="got 1 pairs for 1 clusters"):
        GACT(num_clusters=1).fit(model, PAIRS[:1])
    with pytest.raises(InputError, match="1 of 4 do not"):
        GACT().fit(model, [*PAIRS[:3], ("w1 w2", "w1 w2")])
    with pytest.raises(InputError, match=r"pairs.* got 2 and 1"):
        GACT().fit(model, {"positive": ["w1", "w2"], "negative": ["w3"]})
    with pytest.raises(NotFittedError, match="before it is refined"):
        GACT().refine(model, PAIRS)


WIDTH = 48
SIZES = (55, 50, 45)


class Planted:
    """Pairs of three kinds whose states are set: the blocks of the network pass on what is there.

    The negative side's state tells the kind, noisily; the positive side differs by the kind's
    own direction, of three at right angles, with an uneven length.
    """

    def __init__(self) -> None:
        self.gen = torch.Generator().manual_seed(0)
        axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=self.gen)).Q
        self.directions, self.kinds, self.moved = axes[:3], 4 * axes[3:6], 4 * axes[6:9]
        self.drift, self.offset = 6 * axes[9], tiny.uneven(WIDTH)
        self.states: list[Tensor] = []

    def pairs(self, kinds: Tensor, drifted: bool = False) -> list[tuple[Any, Any]]:
        """Return pairs of inputs, one token each; drifted ones stand elsewhere and tell less."""
        noise = torch.randn(len(kinds), WIDTH, generator=self.gen)
        centre = self.kinds[kinds]
        if drifted:
            centre = 0.25 * centre + self.moved[kinds] + self.drift + 0.5 * self.kinds[0]
        minus = self.offset + centre + noise
        length = 2 + 3 * torch.rand(len(kinds), 1, generator=self.gen)
        bent = self.directions[kinds] + 0.05 * torch.randn(len(kinds), WIDTH, generator=self.gen)
        start = sum(map(len, self.states))
        self.states += [minus, minus + length * bent]
        num = len(kinds)
        tokens = [{"input_ids": torch.tensor([[start + i]])} for i in range(2 * num)]
        return list(zip(tokens[num:], tokens[:num], strict=True))

    def model(self) -> Model:
        """Return the network; later pairs need a later one."""
        net: Any = tiny.llama()
        net.config.vocab_size = sum(map(len, self.states))
        for layer in net.model.layers:
            layer.self_attn.o_proj.weight.data.zero_()
            layer.mlp.down_proj.weight.data.zero_()
        net.model.embed_tokens.weight.data = torch.cat(self.states)
        return Model(net)

    def chosen(self, model: Model, gact: GACT, pairs: Any) -> Tensor:
        """Return the planted direction that is most like what is added to each negative side."""
        ids = torch.cat([minus["input_ids"] for _, minus in pairs])
        bare = model.run(ids, "resid_post.1")["resid_post.1"]
        edits = gact.at(1).edits(1.0)
        added = model.run(ids, "resid_post.1", edits)["resid_post.1"] - bare
        told: Tensor = (added[:, 0] @ self.directions.T).argmax(-1)
        return told


@pytest.mark.paper("steering-conceptual-bias-transformer")
def test_planted_clusters(evidence: Evidence) -> None:
    planted = Planted()
    kinds = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
    kinds = kinds[torch.randperm(len(kinds), generator=planted.gen)]
    fresh = torch.randint(3, (120,), generator=planted.gen)
    train, test = planted.pairs(kinds), planted.pairs(fresh)
    model = planted.model()
    gact = GACT().fit(model, train)
    minus, plus = planted.states[:2]
    labels = ((plus - minus) @ gact.vectors_[1].T).argmax(-1)
    table = torch.stack([(labels == j).long() @ (kinds[:, None] == torch.arange(3)).long()
                         for j in range(3)])  # fmt: skip
    purity = table.amax(1).sum() / len(kinds)
    evidence("purity of the clusters", measured=purity, at_least=0.95)
    mean = normalize(plus - minus, dim=-1).mean(0)
    most = cosine_similarity(mean[None], gact.vectors_[1]).max()
    evidence("cosine of the one mean vector to a centroid, largest", measured=most, at_most=0.65)
    right = (planted.chosen(model, gact, test) == fresh).float().mean()
    evidence("share of new states that get their kind's vector", measured=right, at_least=0.95)
    assert gact.accuracy_[1] > 0.95


@pytest.mark.paper("steering-conceptual-bias-transformer")
def test_refining_follows_a_drift(evidence: Evidence) -> None:
    planted = Planted()
    kinds, stream, fresh = (torch.randint(3, (n,), generator=planted.gen) for n in (150, 200, 300))
    train = planted.pairs(kinds)
    updates, test = planted.pairs(stream, drifted=True), planted.pairs(fresh, drifted=True)
    model = planted.model()
    gact = GACT(num_clusters=3).fit(model, train)
    frozen = (planted.chosen(model, gact, test) == fresh).float().mean()
    after = (planted.chosen(model, gact.at(1).refine(model, updates), test) == fresh).float().mean()
    again = (planted.chosen(model, gact, test) == fresh).float().mean()
    assert again == frozen, "refining a copy left the original alone"
    evidence("accuracy gained by 200 updates", measured=after - frozen, at_least=0.15)
    evidence("accuracy after them", measured=after, at_least=0.8)


@pytest.mark.paper("steering-conceptual-bias-transformer")
def test_cost_is_counted(evidence: Evidence) -> None:
    model = tiny.model()
    gact = GACT(num_clusters=4).fit(model, PAIRS).at([0, 2])

    def products(edits: list[ak.Edit]) -> int:
        with FlopCounterMode(display=False) as counter:
            model.run("w3", edits=edits, logits=True)
        return int(counter.get_total_flops()) // 2

    extra = products(gact.edits(1.0)) - products([])
    evidence(
        "extra products for a token, over |layers| K D",
        measured=extra / (2 * 4 * tiny.WIDTH),
        equals=1,
        tolerance=0,
    )
