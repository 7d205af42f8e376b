"""The claims of the paper on massive activations, on SmolLM2-135M-Instruct."""

import pytest
import torch

import actkit as ak
from actkit.model import Model
from actkit.nn.attention.kv_bias_attention import KVBiasAttention
from actkit.read.streaming.massive import Massive
from tests._evidence import Evidence

BLOCK, UNIT, OTHER = 12, 507, 300
TEXT = (
    "The lighthouse keeper had lived on the rock for thirty years, and in all that time he had "
    "never once let the lamp go out. On the night of the great storm the oil ran low, the waves "
    "climbed over the lower gallery, and he carried the last barrel up the stairs alone while the "
    "wind tore at the door behind him."
)
UNRELATED = [
    "Prime numbers have exactly two divisors.",
    "Add the flour slowly and stir until the batter is smooth.",
    "The committee will meet again in March to vote on the budget.",
    "Whales are mammals that returned to the sea.",
]


def loss(model: Model, *edits: ak.Edit) -> float:
    """Return the mean negative log-likelihood of the text's tokens, in nats."""
    rec = model.run(TEXT, logits=True, edits=edits)
    logits_TV = rec.logits[0, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits_TV, rec.rows.token[0, 1:]))


@pytest.mark.paper("massive-activations-large-language")
def test_few_activations_are_massive_and_act_as_constant_biases(
    smollm2: Model, evidence: Evidence
) -> None:
    site = f"resid_post.{BLOCK}"
    fed = smollm2.observe([TEXT], {"resid_post.*": [Massive()]})
    found = {name: readings[0].result() for name, readings in fed.items()}
    peak = found[site].top[0]
    assert (peak.position, peak.unit) == (0, UNIT)
    evidence("largest activation / median of its layer", measured=found[site].ratios[0],
             at_least=1000)  # fmt: skip
    massive = [int(name.split(".")[1]) for name, r in found.items() if r.num_massive]
    evidence("first block with a massive activation", measured=min(massive), at_most=BLOCK)
    evidence("massive entries in a layer", measured=max(r.num_massive for r in found.values()),
             at_most=20)  # fmt: skip

    where = ak.Where(tokens=0, units=UNIT)
    held_B = smollm2.run(UNRELATED, record=site)
    rows = held_B.rows
    values = held_B[site][rows.valid & (rows.position == 0)][:, UNIT]
    evidence("spread of its value over texts, std / mean",
             measured=values.std() / values.mean().abs(), at_most=0.1)  # fmt: skip
    plain = loss(smollm2)
    zeroed = loss(smollm2, ak.set(site, 0.0, where=where))
    evidence("loss added by setting it to zero (nats)", measured=zeroed - plain, at_least=5)
    mean = loss(smollm2, ak.set(site, float(values.mean()), where=where))
    evidence("loss changed by setting it to its mean (nats)", measured=abs(mean - plain),
             at_most=0.05)  # fmt: skip
    control = loss(smollm2, ak.set(site, 0.0, where=ak.Where(tokens=0, units=OTHER)))
    evidence("loss changed by zeroing another unit there (nats)", measured=abs(control - plain),
             at_most=0.05)  # fmt: skip

    gen = torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=gen) for _ in range(3))
    logits = q @ k.mT / 7**0.5
    oracle = logits.exp() / (1 + logits.exp().sum(-1, keepdim=True)) @ v
    off = (KVBiasAttention(3, 7).double()(q, k, v) - oracle).detach().abs().max()
    evidence("explicit bias at zero against one more logit of zero", measured=off, at_most=1e-6)
