"""Reasoning over activations: exact closures, planted chains, and steering what is inferred."""

from itertools import pairwise, product
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer._states import states
from actkit.steer.controllers.activation_reasoner import ActivationReasoner
from actkit.steer.controllers.activation_reasoner._concepts import FeatureConcept, cut
from actkit.steer.controllers.activation_reasoner._rules import closure, parsed
from tests._evidence import Evidence
from tests.core import tiny

WIDTH, NAMES = 64, [f"c{i}" for i in range(24)]


# -- rules ---------------------------------------------------------------------------------------


def truth_table(rules: list[tuple[list[str], str]], facts: set[str], names: list[str]) -> set[str]:
    """Return what holds in every assignment that satisfies facts and clauses."""
    every = set(names)
    for bits in product([False, True], repeat=len(names)):
        true = {name for name, bit in zip(names, bits, strict=True) if bit}
        broken = any(set(body) <= true and head not in true for body, head in rules)
        if facts <= true and not broken:
            every &= true
    return every


@pytest.mark.paper("activationreasoning")
def test_closures_of_random_programs(evidence: Evidence) -> None:
    rng, wrong, late = Random(0), 0, 0
    for _ in range(200):
        names = [f"p{i}" for i in range(rng.randint(3, 8))]
        clauses = [
            (rng.sample(names, rng.randint(1, 3)), rng.choice(names))
            for _ in range(rng.randint(1, 12))
        ]
        facts = set(rng.sample(names, rng.randint(1, 2)))
        rules = [parsed(f"{' AND '.join(body)} IMPLIES {head}") for body, head in clauses]
        found = closure(rules, dict.fromkeys(facts, 1.0))
        wrong += set(found.confidence) != truth_table(clauses, facts, names)
        late += found.num_iterations > len(rules)
    evidence("of 200 programs, closures unlike the truth table's", measured=wrong, at_most=0)
    evidence("of 200 programs, more iterations than rules", measured=late, at_most=0)


def test_connectives_negation_and_confidence() -> None:
    rules = [
        parsed("bird AND NOT (penguin OR kiwi) IMPLIES flies AND sings"),
        parsed("tuxedo OR antarctic IMPLIES penguin"),
        parsed("flies IMPLIES light"),
    ]
    facts = {"bird": 0.9, "antarctic": 0.8, "tuxedo": 0.6}
    found = closure(rules, facts)
    assert found.confidence == {**facts, "penguin": 0.8}, "what is negated is settled first"
    found = closure(rules, {"bird": 0.9})
    assert found.confidence == {"bird": 0.9, "flies": 0.9, "sings": 0.9, "light": 0.9}
    assert [str(step) for step in found.proof("light")] == [
        "flies (0.90) from bird, NOT penguin or kiwi: " + rules[0].text,
        "light (0.90) from flies: flies IMPLIES light",
    ]
    assert found.proof("bird") == []
    with pytest.raises(InputError, match="got 'penguin'"):
        found.proof("penguin")
    chain = [parsed("a AND b IMPLIES c"), parsed("c AND a IMPLIES d"), parsed("b IMPLIES d")]
    sure = {"a": 0.5, "b": 0.4}
    for order in (chain, chain[::-1]):
        assert closure(order, sure).confidence == {**sure, "c": 0.4, "d": 0.4}
        assert closure(order, sure, "product").confidence == {**sure, "c": 0.2, "d": 0.4}


def test_the_surest_of_several_proofs_counts() -> None:
    rules = [parsed("a IMPLIES c"), parsed("b IMPLIES c"), parsed("b OR a IMPLIES d")]
    for order in (rules, rules[::-1]):
        found = closure(order, {"a": 0.5, "b": 0.4}).confidence
        assert (found["c"], found["d"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    "text", ["a", "a OR IMPLIES b", "a IMPLIES b OR c", "a IMPLIES NOT b", "a + b IMPLIES c", ""]
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="a rule must be names"):
        parsed(text)


def test_a_name_on_its_own_negation_is_refused() -> None:
    rules = [parsed("NOT a IMPLIES b"), parsed("b IMPLIES c"), parsed("c IMPLIES a")]
    with pytest.raises(InputError, match="its own negation"):
        closure(rules, {})


# -- planted features ----------------------------------------------------------------------------


class Net(nn.Module):
    """A place to read and write, and a rotation behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.turn = nn.Identity(), nn.Linear(WIDTH, WIDTH, bias=False)
        gen = torch.Generator().manual_seed(5)
        turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=gen)).Q
        self.turn.weight = nn.Parameter(turn)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, D) of (B, T, D)."""
        return torch.as_tensor(self.turn(self.place(x)))


def planted() -> Tensor:
    """Return (24, D) directions of unit length, each with cosine .1 to every other."""
    random = torch.randn(WIDTH, 25, generator=torch.Generator().manual_seed(1))
    basis = torch.as_tensor(torch.linalg.qr(random).Q.T)
    return sqrt(0.9) * basis[:24] + sqrt(0.1) * basis[24]


def text(tokens: list[str | None], gen: torch.Generator) -> Tensor:
    """Return (1, 1 + T, D) activations: at each token one concept or none, and noise."""
    noise = 0.1 * torch.randn(1 + len(tokens), WIDTH, generator=gen) + 0.02
    for t, name in enumerate(tokens, 1):
        if name is not None:
            noise[t] += (1.5 + 1.5 * torch.rand((), generator=gen)) * planted()[NAMES.index(name)]
    return noise[None]


def labelled(num: int, seed: int, names: list[str] = NAMES) -> list[tuple[Tensor, list[str]]]:
    """Return texts of 2 to 5 tokens with the concepts in them."""
    rng, gen = Random(seed), torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(num):
        own = rng.sample(names, rng.randint(1, 3))
        tokens: list[str | None] = [*own, None, None][: rng.randint(len(own) + 1, 5)]
        rng.shuffle(tokens)
        rows.append((text(tokens, gen), own))
    return rows


def reasoner(rules: list[str], **settings: Any) -> ActivationReasoner:
    concepts = {name: FeatureConcept([i]) for i, name in enumerate(NAMES)}
    return ActivationReasoner("place:out", planted(), planted(), concepts, rules, **settings)


def question(seed: int) -> tuple[Tensor, list[str], bool]:
    """Return a puzzle as activations, its tokens' concepts, and its answer.

    Two chains of 5 rules in any order, two tokens each; a fact, which begins one of the chains;
    and the query, which ends one of them.
    """
    rng, gen = Random(seed), torch.Generator().manual_seed(seed)
    names = rng.sample(NAMES, 12)
    chains = names[:6], names[6:]
    pairs = [pair for chain in chains for pair in pairwise(chain)]
    rng.shuffle(pairs)
    first, last = rng.randint(0, 1), rng.randint(0, 1)
    tokens = [name for pair in pairs for name in pair] + [chains[first][0], chains[last][-1]]
    return text(list(tokens), gen), tokens, first == last


@pytest.mark.paper("activationreasoning")
def test_chains_of_five_rules_in_noise(evidence: Evidence) -> None:
    """What the tokens say is read locally; the rules are the puzzle's own, so are their names."""
    model = ak.open(Net())
    own = reasoner([]).fit(model, labelled(200, seed=0))
    puzzles = [question(seed) for seed in range(1000, 1600)]
    test = puzzles[400:]
    found = own.active(model, torch.cat([x for x, _, _ in test]))[:, 1:]
    true = torch.zeros_like(found)
    for i, (_, tokens, _) in enumerate(test):
        true[i, torch.arange(22), [NAMES.index(name) for name in tokens]] = True
    f1 = f1_score(true.flatten(), found.flatten())
    evidence("F1 of propositions at tokens", measured=f1, at_least=0.95)
    right = 0
    for active_TC, (_, _, answer) in zip(found, test, strict=True):
        *pairs, fact, query = [NAMES[int(c)] for c in active_TC.int().argmax(-1)]
        rules = [f"{a} IMPLIES {b}" for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
        inferred = closure([parsed(rule) for rule in rules], {fact: 1.0})
        right += (query in inferred.confidence) == answer
        assert not answer or len(inferred.proof(query)) == 5
    evidence("share of puzzles of 5 hops answered", measured=right / len(test), at_least=1)
    states = torch.stack([x[0] for x, _, _ in puzzles])
    answers = [answer for _, _, answer in puzzles]
    views = {"tokens": states.flatten(1), "mean": states.mean(1), "last": states[:, -2:].flatten(1)}
    scores = []
    for view in views.values():
        probe = LogisticRegression(max_iter=2000).fit(view[:400], answers[:400])
        scores.append(float(probe.score(view[400:], answers[400:])))
    evidence("accuracy of the best of 3 linear probes", measured=max(scores), at_most=0.65)


RULES = ["c0 AND c1 IMPLIES middle", "middle AND NOT c2 IMPLIES c3"]


@pytest.mark.paper("activationreasoning")
def test_what_is_inferred_is_steered(evidence: Evidence) -> None:
    net = Net()
    model, rng, gen = ak.open(net), Random(3), torch.Generator().manual_seed(3)
    own = reasoner(RULES).fit(model, labelled(200, seed=0))
    names = [n for n in NAMES if n != "c3"]
    rows = [[rng.choice(["c0", "c1", "c2", "c9"]) for _ in range(6)] for _ in range(300)]
    x = torch.cat([text([*row, rng.choice(names[4:])], gen) for row in rows])
    meant = torch.tensor([{"c0", "c1"} <= {*r} and "c2" not in r for r in rows])
    assert 20 < meant.sum() < 280
    held = [c.confidence for c in own.reason(model, x)]
    assert [("c3" in c) for c in held] == meant.tolist()
    # the planted readout behind the rotation, with a threshold from texts of its own
    readout = net.turn.weight.detach() @ planted()[3]
    peaks = [((net(t)[0, 1:] @ readout).amax(), "c3" in n) for t, n in labelled(200, seed=7)]
    scores, labels = zip(*peaks, strict=True)
    at, _ = cut(torch.stack(scores).detach(), torch.tensor(labels))

    def above(edits: Any) -> Tensor:
        out = torch.as_tensor(model.run(x, edits=edits).output)
        return out[meant, -1] @ readout > at

    before, after = above([]).float().mean(), above(own.edits(1.0)).float().mean()
    evidence("share of readouts above threshold, unsteered", measured=before, at_most=0.05)
    evidence("share of readouts above threshold, steered", measured=after, at_least=0.95)
    bare, steered = model.run(x).output, model.run(x, edits=own.edits(1.0)).output
    none = model.run(x, edits=own.edits(0.0)).output
    evidence("strength 0: entries that change", measured=(none != bare).sum(), at_most=0)
    others = (steered[~meant] != bare[~meant]).sum() + (steered[:, :-1] != bare[:, :-1]).sum()
    evidence("entries that change where nothing is inferred", measured=others, at_most=0)


def test_targets_may_be_suppressed() -> None:
    model = ak.open(Net())
    own = reasoner(["c0 IMPLIES c3"], targets={"c3": -1.0}).fit(model, labelled(200, seed=0))
    x = text(["c0", "c3"], torch.Generator().manual_seed(0))
    bare, less = (model.run(x, "place:out", e)["place:out"] for e in ([], own.edits(1.0)))
    v = planted()[3]
    assert (bare[0, -1] @ v) > 1.5
    assert (less[0, -1] @ v).abs() < 1
    assert torch.equal(bare[:, :-1], less[:, :-1])


def test_sums_and_trees_are_found_from_labels() -> None:
    """`either` is a sum of two features; `only` is one without the other at the same token."""
    gen, rng, rows = torch.Generator().manual_seed(2), Random(2), []
    for _ in range(160):
        kind = rng.choice(["c0", "c1", "both", "c5"])
        x = text([None, "c0" if kind == "both" else kind, None], gen)
        x[0, 2] += 2 * planted()[1] * (kind == "both")
        names = (["either"] if kind != "c5" else []) + (["only"] if kind == "c0" else [])
        rows.append((x, names))
    concepts = {
        "either": FeatureConcept(num_features=2),
        "only": FeatureConcept([0, 1, 5], depth=2),
    }
    model = ak.open(Net())
    own = ActivationReasoner("place:out", planted(), planted(), concepts, []).fit(model, rows[:100])
    assert set(own.reason_.weights_CK[0].nonzero()[:, 0].tolist()) == {0, 1}
    held = [own.reason(model, x)[0].confidence for x, _ in rows[100:]]
    agree = [set(h) == set(names) for h, (_, names) in zip(held, rows[100:], strict=True)]
    assert sum(agree) >= 57, "95 % of 60"
    weighted = FeatureConcept([0, 1], weights=[3.0, 1.0])
    own = ActivationReasoner("place:out", planted(), planted(), {"either": weighted}, [])
    pairs = [(x, [n for n in names if n == "either"]) for x, names in rows]
    assert own.fit(model, pairs).reason_.weights_CK.tolist() == [[0.75, 0.25]]


def test_thresholds_maximise_balanced_accuracy() -> None:
    gen = torch.Generator().manual_seed(4)
    labels = torch.rand(41, generator=gen) < 0.2
    scores = torch.randn(41, generator=gen) + labels
    at, accuracy = cut(scores, labels)

    def balanced(threshold: float) -> float:
        above = scores > threshold
        return float((above[labels].float().mean() + (~above[~labels]).float().mean()) / 2)

    assert balanced(at) == pytest.approx(accuracy)
    assert accuracy == pytest.approx(max(balanced(t) for t in torch.linspace(-4, 5, 4001)))
    with pytest.raises(InputError, match="must vary, got 1 in all 3"):
        cut(torch.ones(3), torch.tensor([True, False, True]))


# -- on a language model -------------------------------------------------------------------------


def on_llama(model: Model) -> ActivationReasoner:
    """One feature for each of three words, in the stream before the first block."""
    words = {"seven": 7, "eight": 8, "nine": 9}
    embeddings: Any = model.module.get_submodule("model.embed_tokens")
    rows = embeddings.weight.detach()[list(words.values())]
    directions = torch.nn.functional.normalize(rows - rows.mean(0), dim=-1)
    concepts = {name: FeatureConcept([i]) for i, name in enumerate(words)}
    rules = ["seven AND eight IMPLIES nine"]
    data = [(f"w{i} w{n} w{i + 20}", [name]) for i in range(10, 40) for name, n in words.items()]
    reasoner = ActivationReasoner("resid_pre.0", directions, directions, concepts, rules)
    return reasoner.fit(model, data)


def test_in_a_language_model(tmp_path: Path) -> None:
    model = tiny.model()
    own = on_llama(model)
    prompts = ["w3 w7 w1 w8 w2", "w3 w7 w2", "w30 w1 w8 w7 w8 w3 w5"]

    def logits(edits: Any, given: list[str] = prompts) -> Tensor:
        return model.run(given, edits=edits, logits=True).logits[:, -1]

    held = [sorted(c.confidence) for c in own.reason(model, prompts)]
    assert held == [["eight", "nine", "seven"], ["seven"], ["eight", "nine", "seven"]]
    local = own.reason(model, prompts, "local")
    assert [sorted(c.confidence) for c in local[1][-3:]] == [[], ["seven"], []]
    assert own.active(model, ["w7 w3", "w3 w7"]).any(-1).tolist() == [[False] * 2, [False, True]]
    strengths = torch.tensor([2.0, 2.0, 0.0])
    bare, steered = logits([]), logits(own.edits(strengths))
    assert torch.equal(steered[1:], bare[1:]), "nothing inferred, and a strength of 0"
    assert not torch.equal(steered[0], bare[0])
    torch.testing.assert_close(steered[0], logits(own.edits(2.0), prompts[:1])[0])
    own.save(tmp_path / "own.safetensors", model, strength=2.0)
    loaded = ak.load_edits(tmp_path / "own.safetensors", model)
    assert torch.equal(logits(loaded), logits(own.edits(2.0)))
    written = model.generate(prompts, edits=own.edits(4.0), max_new_tokens=5)
    plain = model.generate(prompts, max_new_tokens=5)
    assert written[0] != plain[0]
    for row in range(3):
        alone = model.generate(prompts[row : row + 1], edits=own.edits(4.0), max_new_tokens=5)
        assert alone == [written[row]]
    text, words = prompts[0], []
    for step in range(5):  # what held in the prompt holds on at every step
        where = ak.Where(tokens=list(range(4, 5 + step)))
        at = [ak.Edit(e.site, e.operation, where) for e in own.edits(4.0)]
        words.append(f"w{int(logits(at, [text]).argmax())}")
        text = f"{text} {words[-1]}"
    assert written[0] == " ".join(words)
    other = ak.add("resid_post.1", tiny.uneven(tiny.WIDTH), 0.5)
    assert not torch.equal(logits([other, *own.edits(1.0)])[0], logits(own.edits(1.0))[0])


PLACES = ("Japan", "France", "Spain", "Russia")
HEARD = ("Anna comes from {}", "They flew to {}", "A book about {}", "We talked of {}")
CAPITALS = ("They saw the capital", "Anna went to the capital", "He left the capital")
NEW = (
    "Last year Tom went to {} and had friends {}",
    "In {} it rains a lot {}",
    "My aunt, who lives in {}, works {}",
)


def propositions(model: Model, site: str) -> tuple[float, list[float]]:
    """Return F1 of propositions in new sentences, and that by 5 random dictionaries."""
    heard = [[frame.format(place) for frame in HEARD] for place in PLACES]
    means = torch.stack([states(model, t, site)[site].mean(0) for t in [*heard, CAPITALS]])
    data = [(text, [place]) for place, texts in zip(PLACES, heard, strict=True) for text in texts]
    data += [(f"In {place} we saw the capital and", [place, "capital"]) for place in PLACES]
    data += [(text, ["capital"]) for text in CAPITALS]
    data += [(text, []) for text in ("Anna comes from home again", "They read the old book")]
    asked = [
        (frame.format(place, where), [place, *["capital"][: where.count("capital")]])
        for frame in NEW
        for place in PLACES
        for where in ("in the capital", "near the sea")
    ]
    names = [*PLACES, "capital"]
    rules = [f"{place} AND capital IMPLIES city_in_{place}" for place in PLACES]

    def read(directions: Tensor) -> float:
        """Return F1 of the propositions; where they are all right, so must be what follows."""
        units = torch.nn.functional.normalize(directions, dim=-1)
        concepts = {name: FeatureConcept([i]) for i, name in enumerate(names)}
        own = ActivationReasoner(site, units, units, concepts, rules, -units @ means.mean(0))
        found = own.fit(model, data).reason(model, [text for text, _ in asked])
        for closed, (_, true) in zip(found, asked, strict=True):
            if {n for n in closed.confidence if n in names} == set(true):
                assert bool(closed.steps) == ("capital" in true)
        wanted = [name in true for _, true in asked for name in names]
        return float(f1_score(wanted, [n in closed.confidence for closed in found for n in names]))

    gen = torch.Generator().manual_seed(0)
    random = [torch.randn(means.shape, generator=gen) for _ in range(5)]
    return read(means - means.mean(0)), [read(drawn) for drawn in random]


@pytest.mark.slow
@pytest.mark.paper("activationreasoning")
def test_propositions_in_smollm2(smollm2: Model, evidence: Evidence) -> None:
    """Four countries and the word capital, in sentences unlike those it was fitted on."""
    own, random = propositions(smollm2, "resid_post.18")
    evidence("F1 of propositions in new sentences", measured=own, at_least=0.95)
    evidence("the same, best of 5 random dictionaries", measured=max(random), at_most=0.75)


def test_bad_input_is_refused() -> None:
    model, data = ak.open(Net()), labelled(200, seed=0)
    with pytest.raises(InputError, match="there must be a target"):
        reasoner([]).fit(model, data).edits()
    with pytest.raises(InputError, match=r"targets must be concepts, got \['c99'\]"):
        reasoner([], targets={"c99": 1.0}).fit(model, data)
    with pytest.raises(InputError, match=r"labels must be concepts, got \['other'\]"):
        reasoner([]).fit(model, [*data, (data[0][0], ["other"])])
    with pytest.raises(InputError, match="with and without"):
        reasoner([]).fit(model, labelled(200, seed=0, names=NAMES[1:]))
    with pytest.raises(InputError, match="with and without"):
        reasoner([]).fit(model, [])
    with pytest.raises(InputError, match="one row of 2 tokens or more"):
        reasoner([]).fit(model, [(x[:, :1], names) for x, names in data])
    wrong = {name: FeatureConcept([i + 5]) for i, name in enumerate(NAMES)}
    with pytest.raises(InputError, match=r"among 0 to 23, got \[24\]"):
        ActivationReasoner("place:out", planted(), planted(), wrong, []).fit(model, data)
