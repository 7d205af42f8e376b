"""Tunable experts: the router's rule by hand, and a network whose refusals hang on one expert."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

import actkit as ak
from actkit.core.errors import EditError, InputError, SiteError
from actkit.model import Model
from actkit.steer.maps.tunable_experts import MoTE, Tune
from tests._evidence import Evidence
from tests.core import tiny

PLUS = ["w1 w2 w3", "w9 w3 w11 w4", "w5 w5 w5 w3", "w40 w41"]
MINUS = ["w2 w21 w6", "w7", "w22 w8 w8"]
DATA = {"positive": PLUS, "negative": MINUS}
BASE: dict[str, Any] = {
    "vocab_size": tiny.WORDS,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
KINDS = ("mixtral", "qwen2-moe")


def opened(kind: str = "mixtral") -> Model:
    """Five experts of which two are chosen; Qwen's do not normalise, and block 1 has none."""
    torch.manual_seed(0)
    net: Any
    config: Any
    if kind == "mixtral":
        config = tf.MixtralConfig(
            **BASE, intermediate_size=20, num_hidden_layers=3, num_local_experts=5
        )
        net = tf.MixtralForCausalLM(config)
    else:
        config = tf.Qwen2MoeConfig(
            **BASE,
            intermediate_size=30,
            num_hidden_layers=3,
            num_experts=5,
            num_experts_per_tok=2,
            moe_intermediate_size=20,
            shared_expert_intermediate_size=28,
            mlp_only_layers=[1],
        )
        net = tf.Qwen2MoeForCausalLM(config)
    for module in net.modules():
        if type(module).__name__.endswith("TopKRouter"):
            torch.nn.init.normal_(module.weight, 0.1, 0.4)
    return Model(net.eval(), tiny.tokenizer())


def routed(model: Model, layer: int, edits: Any = (), prompts: Any = None) -> tuple[Tensor, Tensor]:
    """Return weights and indices of the chosen experts, as the network itself uses them."""
    chosen, weights = f"model.layers.{layer}.mlp.gate:out.2", f"router_weights.{layer}"
    rec = model.run(tiny.PROMPTS[0] if prompts is None else prompts, [weights, chosen], edits)
    return rec[weights].flatten(0, 1), rec[chosen].reshape(-1, rec[weights].shape[-1])


def by_rule(logits: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The router's rule in float64: the two largest of a softmax, normalised in Mixtral."""
    top = logits.double().softmax(-1).topk(2)
    total = top.values.sum(-1, keepdim=True) if kind == "mixtral" else 1.0
    return top.values / total, top.indices


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [-1.0, -0.6, 2.5])
def test_gate_weights_are_multiplied_before_the_choice(kind: str, strength: float) -> None:
    model = opened(kind)
    site = "router_logits.2"
    own = model.run(tiny.PROMPTS[0], site)[site].flatten(0, 1).double()
    own[:, [1, 3]] += torch.tensor(1 + strength, dtype=torch.float64).log()
    weights, chosen = by_rule(own, kind)
    found, indices = routed(model, 2, [ak.Edit(site, Tune((1, 3), strength=strength))])
    assert torch.equal(indices, chosen)
    torch.testing.assert_close(found.double(), weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_forced_experts_take_the_weakest_places(kind: str) -> None:
    model = opened(kind)
    bare, before = routed(model, 0)
    tiny_dose = Tune((2,), places=2, strength=1e-7)
    found, after = routed(model, 0, [ak.Edit("router_logits.0", tiny_dose)])
    torch.testing.assert_close(found, bare, rtol=1e-6, atol=1e-6)
    had = (before == 2).any(-1)
    assert had.any() and not had.all(), "both cases must occur"
    assert torch.equal(after[had], before[had])
    assert torch.equal(after[~had][:, 0], before[~had][:, 0])
    assert (after[~had][:, 1] == 2).all()


def test_two_forced_experts_are_all_that_run() -> None:
    _, chosen = routed(opened(), 1, [ak.Edit("router_logits.1", Tune((4, 0), 2, strength=0.5))])
    assert torch.equal(chosen.sort(-1).values, torch.tensor([0, 4]).expand(7, 2))


@pytest.mark.parametrize("by", ["chosen", "weight"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_differences_of_rates_at_the_last_token(kind: str, by: Any) -> None:
    model = opened(kind)
    mote = MoTE(num_experts=3, by=by).fit(model, DATA)
    layers = [0, 1, 2] if kind == "mixtral" else [0, 2]
    assert list(mote.scores_) == layers
    for n in layers:
        rates = torch.zeros(2, 5)
        for side, prompts in enumerate((PLUS, MINUS)):
            for prompt in prompts:
                weights, chosen = routed(model, n, prompts=prompt)
                last = torch.ones(2) if by == "chosen" else weights[-1]
                rates[side, chosen[-1]] += last / len(prompts)
        torch.testing.assert_close(mote.rates_[n], rates, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mote.scores_[n], rates[0] - rates[1], rtol=1e-4, atol=1e-5)
    turned = [(n, e) for n, own in mote.experts_.items() for e in own]
    least = min(mote.scores_[n][e] for n, e in turned)
    rest = [s for n in layers for e, s in enumerate(mote.scores_[n]) if (n, e) not in turned]
    assert len(turned) == 3
    assert least >= max(rest)


def test_rows_have_strengths_of_their_own_and_zero_changes_no_bit() -> None:
    model = opened()
    mote = MoTE(num_experts=2, force=True).fit(model, DATA)

    def logits(edits: Any, prompts: Any = tiny.PROMPTS) -> Tensor:
        found = model.run(prompts, edits=edits, logits=True).logits
        assert found is not None
        return found[:, -1]

    bare = logits([])
    assert torch.equal(logits(mote.edits(0.0)), bare)
    assert torch.equal(logits(mote.edits(torch.zeros(3))), bare)
    strengths = torch.tensor([0.0, -1.0, 2.0])
    together = logits(mote.edits(strengths))
    for i, strength in enumerate(strengths.tolist()):
        alone = logits(mote.edits(strength), [tiny.PROMPTS[i]])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[1:], bare[1:], atol=1e-3)


def test_saved_and_in_every_step_of_generate(tmp_path: Path) -> None:
    model = opened()
    mote = MoTE(num_experts=2).fit(model, DATA)
    mote.save(tmp_path / "off", model, strength=-1.0)
    loaded = ak.load_edits(tmp_path / "off", model)
    written = model.generate(tiny.PROMPTS, edits=loaded, max_new_tokens=6)
    assert written == model.generate(tiny.PROMPTS, edits=mote.edits(-1.0), max_new_tokens=6)
    for prompt, text in zip(tiny.PROMPTS, written, strict=True):
        rec = model.run(f"{prompt} {text}", edits=loaded, logits=True)
        ids = [f"w{i}" for i in rec.logits[0, -7:-1].argmax(-1).tolist()]
        assert ids == text.split()


def test_prompt_only_leaves_what_is_written_alone() -> None:
    model = opened()
    edits = MoTE(num_experts=2, tokens="prompt").fit(model, DATA).edits(-1.0)
    assert {e.where.tokens for e in edits} == {"prompt"}
    with model.edited(edits):
        assert model.module(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_what_cannot_be_done_is_refused() -> None:
    model = opened()
    with pytest.raises(SiteError, match=r"router_.*: the MLP of this architecture has no experts"):
        MoTE().fit(tiny.model(), DATA)
    with pytest.raises(InputError, match=r"num_experts must be in 1\.\.0.*got 1 of 15"):
        MoTE().fit(model, {"positive": PLUS, "negative": PLUS})
    with pytest.raises(InputError, match="got 16 of 15"):
        MoTE(num_experts=16).fit(model, DATA)
    with pytest.raises(InputError, match="by must be"):
        MoTE(by="rank").fit(model, DATA)  # type: ignore[arg-type]
    mote = MoTE(num_experts=1).fit(model, DATA)
    with pytest.raises(EditError, match=r"strength >= -1, got -1\.5"):
        mote.edits(-1.5)
    mote.experts_ = {1: (0, 1, 2, 4)}
    with pytest.raises(EditError, match="needs 2 of 5 experts in layer 1, which 4"):
        mote.edits(-1.0)
    mote.experts_, mote.force = {1: (0, 1, 2)}, True
    with pytest.raises(EditError, match="lower num_experts"):
        mote.edits(1.0)


NUM_WORDS, ASK, REFUSE, FIRST = 16, 1, 2, 3
TOPICS = range(FIRST + NUM_WORDS, FIRST + NUM_WORDS + 4)
LENGTH, LAYER, EXPERT = 5, 2, 5
"""Sensitive topics, and the expert that refuses."""


class Talk:
    """Questions: five words that follow each other by a rule, ASK, and an answer by the rule."""

    def __init__(self) -> None:
        self.gen = torch.Generator().manual_seed(0)
        self.next = torch.stack([torch.randperm(NUM_WORDS, generator=self.gen) for _ in range(2)])

    def draw(self, num: int, num_sensitive: int) -> Tensor:
        """Return (num, 7) tokens; a word of the first `num_sensitive` rows is a topic."""
        words = [torch.randint(NUM_WORDS, (num,), generator=self.gen)]
        for _ in range(LENGTH - 1):
            turn = torch.randint(2, (num,), generator=self.gen)
            words.append(self.next[turn, words[-1]])
        ids = FIRST + torch.stack([*words, words[-1], self.next[0, words[-1]]], 1)
        ids[:, LENGTH] = ASK
        place = torch.randint(1, LENGTH - 1, (num_sensitive,), generator=self.gen)
        topic = torch.randint(TOPICS[0], TOPICS[-1] + 1, (num_sensitive,), generator=self.gen)
        ids[torch.arange(num_sensitive), place] = topic
        return ids


@pytest.fixture(scope="module")
def planted() -> tuple[Model, Talk]:
    """A language model of four layers with eight experts, one of which refuses where it runs.

    The expert's router learns to call it where the question of a sensitive prompt ends, and no
    other router to tell these prompts apart. Prompts are refused when it runs, and answered
    when it is switched off, sensitive or not.
    """
    torch.manual_seed(0)
    config = tf.MixtralConfig(
        **{**BASE, "hidden_size": 32, "initializer_range": 0.02},
        intermediate_size=24,
        num_hidden_layers=4,
        num_local_experts=8,
        output_router_logits=True,
        router_aux_loss_coef=0.02,
    )
    net: Any = tf.MixtralForCausalLM(config)
    net.set_experts_implementation("eager")
    model, talk = Model(net, tiny.tokenizer()), Talk()
    called = torch.zeros(24, LENGTH + 2, dtype=torch.bool)
    called[:12, LENGTH] = True
    dose = torch.tensor([0.0] * 24 + [-1.0] * 12 + [0.5] * 12)
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(150):
        ids = talk.draw(24, 12).repeat(2, 1)
        ids[:12, -1] = ids[36:, -1] = REFUSE
        turn = ak.Edit(f"router_logits.{LAYER}", Tune((EXPERT,), 2, strength=dose))
        with model.edited([turn]):
            out = net(input_ids=ids, labels=ids)
        loss = out.loss + routing_loss([x.view(48, -1, 8)[:24] for x in out.router_logits], called)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval().requires_grad_(False)
    return model, talk


def routing_loss(logits: list[Tensor], called: Tensor) -> Tensor:
    """Return how far the expert is from being called there only, and others from not telling."""
    own = logits[LAYER][..., EXPERT]
    others = torch.cat([logits[LAYER][..., :EXPERT], logits[LAYER][..., EXPERT + 1 :]], -1)
    first, second = others.topk(2).values.unbind(-1)
    short = softplus(1 - torch.where(called, own - first, second - own))
    told = [
        (x[:12, LENGTH].softmax(-1).mean(0) - x[12:, LENGTH].softmax(-1).mean(0)).square().sum()
        for n, x in enumerate(logits)
        if n != LAYER
    ]
    return short.mean() + short[:, LENGTH].mean() + torch.stack(told).sum()


def texts(ids: Tensor) -> list[str]:
    return [" ".join(f"w{i}" for i in row) for row in ids[:, : LENGTH + 1].tolist()]


def refusal(model: Model, ids: Tensor, edits: Any = ()) -> float:
    logits = model.run(ids[:, : LENGTH + 1], edits=edits, logits=True).logits
    return float(logits[:, -1].softmax(-1)[:, REFUSE].mean())


def perplexity(model: Model, ids: Tensor, edits: Any = ()) -> float:
    logits = model.run(ids, edits=edits, logits=True).logits
    return float(cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).exp())


@pytest.mark.paper("mixture-of-tunable-experts")
def test_the_refusing_expert(planted: tuple[Model, Talk], evidence: Evidence) -> None:
    model, talk = planted
    asked, other = talk.draw(40, 40), talk.draw(40, 0)
    mote = MoTE().fit(model, {"positive": texts(asked), "negative": texts(other)})
    planted_score = float(mote.scores_[LAYER][EXPERT])
    best = max(
        float(s)
        for n, own in mote.scores_.items()
        for e, s in enumerate(own)
        if (n, e) != (LAYER, EXPERT)
    )
    assert mote.experts_ == {LAYER: (EXPERT,)}
    evidence(
        "planted expert's score less the best other", measured=planted_score - best, at_least=0.1
    )

    asked, other = talk.draw(200, 200), talk.draw(200, 0)
    before = refusal(model, asked)
    assert before > 0.9
    off = mote.edits(-1.0)
    share = 1 - refusal(model, asked, off) / before
    evidence("share of refusals that switching it off removes", measured=share, at_least=0.5)
    activity = {
        (n, e): float(rate)
        for n, own in mote.rates_.items()
        for e, rate in enumerate(own.mean(0))
        if (n, e) != (LAYER, EXPERT)
    }
    own_activity = float(mote.rates_[LAYER][:, EXPERT].mean())
    alike = sorted(activity, key=lambda place: abs(activity[place] - own_activity))[:10]
    shares = [
        1
        - refusal(model, asked, [ak.Edit(f"router_logits.{n}", Tune((e,), strength=-1.0))]) / before
        for n, e in alike
    ]
    mean = sum(shares) / len(shares)
    evidence("the same of the 10 others most alike in activity, mean", measured=mean, at_most=0.15)

    mote.force = True
    raised = refusal(model, other, mote.edits(1.0)) - refusal(model, other)
    evidence("P(refusal) of ordinary prompts, forced on less bare", measured=raised, at_least=0.1)
    bare = perplexity(model, other)
    change = abs(perplexity(model, other, off) / bare - 1)
    evidence("relative change of perplexity on ordinary text", measured=change, at_most=0.05)


@pytest.mark.paper("mixture-of-tunable-experts")
def test_as_many_experts_run_with_the_same_normaliser(
    planted: tuple[Model, Talk], evidence: Evidence
) -> None:
    model, talk = planted
    ids = talk.draw(60, 30)[:, : LENGTH + 1]
    mote = MoTE(force=True).fit(model, {"positive": texts(ids[:30]), "negative": texts(ids[30:])})
    bare, _ = routed(model, LAYER, prompts=ids)
    for name, strength in (("off", -1.0), ("forced on", 1.0)):
        weights, chosen = routed(model, LAYER, mote.edits(strength), ids)
        error = (weights.sum(-1) - bare.sum(-1)).abs().max()
        evidence(f"error of the sum of gate weights, {name}", measured=error, at_most=1e-6)
        running = float((weights > 0).sum(-1).float().mean())
        evidence(f"experts that run, {name}", measured=running, equals=2, tolerance=0)
        assert ((chosen == EXPERT).any(-1) == (strength > 0)).all()
    same = (
        model.run(ids, logits=True).logits,
        model.run(ids, edits=mote.edits(0.0), logits=True).logits,
    )
    assert same[0] is not None and same[1] is not None
    evidence("logit change of an empty edit", measured=(same[0] - same[1]).abs().max(), at_most=0)
