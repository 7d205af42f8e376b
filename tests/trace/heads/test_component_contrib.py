"""What components write: sums and zeroing on real weights, and a planted circuit found again.

Shapes: G contexts, E concepts, L layers, F neurons, H heads, D width.
"""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace.heads.component_contrib import Contributions, component_contrib, shared_out
from tests._evidence import Evidence
from tests.core import tiny
from tests.core.tiny import untouched
from tests.trace import _planted_emotion as planted
from tests.trace.test_attribution import gemma2

PROMPTS = ["w1 w2 w3 w4", "w6 w2", "w8 w2 w9"]


def random_directions(model: Model) -> dict[str, Tensor]:
    """Unit directions at every sublayer."""
    gen = torch.Generator().manual_seed(3)
    sites = [s for p in ("resid_mid.*", "resid_post.*") for s in model.sites(p)]
    drawn = {s.name: torch.randn(s.unit_shape[-1], generator=gen) for s in sites if s.unit_shape}
    return {name: torch.nn.functional.normalize(v_D, dim=0) for name, v_D in drawn.items()}


def last(model: Model, site: str, prompts: Any, edits: Any = ()) -> Tensor:
    rec = model.run(prompts, record=site, edits=edits)
    return rec[site][:, -1].double()


@pytest.mark.parametrize("made", ["llama", "gpt2"])
def test_scores_equal_those_by_hand(made: str) -> None:
    """GPT-2 has biases, which no neuron writes."""
    model = Model(getattr(tiny, made)(), tiny.tokenizer())
    v = random_directions(model)
    found = component_contrib(model, PROMPTS, v, batch_size=2)
    for layer in range(len(found.neurons)):
        hidden, out = (last(model, f"mlp_{p}.{layer}", PROMPTS) for p in ("hidden", "out"))
        block: Any = model.module
        weight = (
            block.model.layers[layer].mlp.down_proj.weight
            if made == "llama"
            else block.transformer.h[layer].mlp.c_proj.weight.mT
        ).double()
        v_D = v[f"resid_post.{layer}"].double()
        expected_F = (hidden * (weight.mT @ v_D)).mean(0)
        torch.testing.assert_close(found.neurons[layer].double(), expected_F, rtol=1e-4, atol=1e-6)
        assert out.shape[-1] == len(v_D)
        bare = last(model, f"resid_mid.{layer}", PROMPTS)
        for head in range(found.heads.shape[1]):
            zero = ak.scale(f"z.{layer}", 0.0, ak.Where(heads=head))
            drop = bare - last(model, f"resid_mid.{layer}", PROMPTS, [zero])
            expected = (drop @ v[f"resid_mid.{layer}"].double()).mean()
            assert found.heads[layer, head] == pytest.approx(float(expected), abs=1e-5)


def test_what_is_put_in_is_carried_as_by_hand() -> None:
    model = tiny.model()
    v = random_directions(model)
    found = component_contrib(model, PROMPTS, v, late=slice(1, 3), alphas=(0.2, 0.6))
    v_ref = (v["resid_post.1"] + v["resid_post.2"]).double() / 2
    expected = []
    for prompt in PROMPTS:  # one by one: batches and padding change nothing
        bare = last(model, "resid_post.2", prompt) @ v_ref
        sigma = last(model, "resid_mid.1", prompt).square().mean().sqrt()
        for alpha in (0.2, 0.6):
            size = float(alpha * sigma)
            edit = ak.add("attn_out.1", v["resid_mid.1"], size, ak.Where(tokens=-1))
            expected.append((last(model, "resid_post.2", prompt, [edit]) @ v_ref - bare) / size)
    assert found.sublayers[1, 0] == pytest.approx(float(torch.cat(expected).mean()), rel=1e-3)
    whole = component_contrib(model, PROMPTS, v, late=slice(1, 3), alphas=(0.2, 0.6), batch_size=2)
    for name in ("neurons", "heads", "sublayers"):
        torch.testing.assert_close(getattr(whole, name), getattr(found, name), rtol=1e-3, atol=1e-4)


def test_in_a_linear_network_everything_is_carried() -> None:
    """Without heads and MLPs the last state is moved by just what was put in."""
    from actkit.worlds.toy_transformer import clear, toy

    net = clear(toy(12, layers=2, width=16))
    torch.nn.init.normal_(net.transformer.wte.weight, generator=torch.Generator().manual_seed(0))
    v = torch.nn.functional.normalize(torch.arange(16.0) - 5, dim=0)
    model = Model(net)
    directions = {s.name: v for p in ("resid_mid.*", "resid_post.*") for s in model.sites(p)}
    found = component_contrib(model, [[1, 2], [3, 4, 5]], directions)
    torch.testing.assert_close(found.sublayers, torch.ones(2, 2))
    assert not found.heads.any() and not found.neurons.any()


def test_the_network_stays_as_it_is() -> None:
    model = tiny.model()
    with untouched(model.module):
        component_contrib(model, PROMPTS, random_directions(model), alphas=(0.5,))


def test_a_circuit_is_shared_out_by_the_sublayers() -> None:
    neurons = torch.tensor([[5.0, 1.0, 4.0], [0.0, 9.0, 2.0], [8.0, 8.5, 7.0]])
    sublayers = torch.tensor([[1.0, 2.0], [1.0, 1.0], [1.0, -3.0]])
    found = Contributions(neurons, neurons[:, :2], sublayers)
    assert found.circuit("neurons", 3) == [(0, 0), (0, 2), (1, 1)]
    assert found.circuit("heads", 3) == [(0, 0), (1, 1), (2, 1)]
    assert found.top("neurons", 3) == [(1, 1), (2, 1), (2, 0)]
    assert shared_out(torch.tensor([1.0, 1e-9]), 4, 3) == [3, 1]
    assert sum(shared_out(torch.rand(30), 97, 20)) == 97


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, v: component_contrib(m, [], v), "need prompts"),
        (lambda m, v: component_contrib(m, PROMPTS, v, alphas=(0.0,)), "sizes other than 0"),
        (lambda m, v: component_contrib(m, PROMPTS, {}), r"lacking \['resid_mid.0'"),
        (lambda m, v: shared_out(torch.tensor([1.0, -1.0]), 4, 3), r"1\.\.3, .* got 4"),
        (lambda m, v: shared_out(torch.tensor([1.0]), 0, 3), "got 0"),
        (lambda m, v: made().top("mlps", 1), "'neurons' or 'heads', got 'mlps'"),
        (lambda m, v: made().top("heads", 7), "there are 6 components, got num=7"),
    ],
    ids=["no prompts", "zero", "no directions", "many", "none", "kind", "all"],
)
def test_bad_settings_are_refused(call: Any, said: str) -> None:
    model = tiny.model()
    with pytest.raises(InputError, match=said):
        call(model, random_directions(model))


def test_norms_between_parts_and_stream_are_refused() -> None:
    """Behind a norm what a neuron writes is no longer its activation times a slope."""
    model = Model(gemma2(), tiny.tokenizer())
    with pytest.raises(InputError, match=r"in layer 0 its slope differs by .* between tokens"):
        component_contrib(model, PROMPTS, random_directions(model))


def made() -> Contributions:
    return Contributions(torch.zeros(3, 4), torch.zeros(3, 2), torch.ones(3, 2))


@pytest.mark.slow
@pytest.mark.paper("do-llms-feel-emotion")
def test_contributions_add_up_on_smollm2(smollm2: Model, evidence: Evidence) -> None:
    """Neurons add up to what the MLP writes, and zeroing a head takes away what it wrote."""
    prompts = [
        "Someone full of joy writes: The mail came",
        "Someone full of fear writes: A bus left",
    ]
    v = random_directions(smollm2)
    layers = (3, 10, 20)
    rec = smollm2.run(
        prompts, record=[f"{p}.{n}" for p in ("mlp_out", "resid_mid") for n in layers]
    )
    found = component_contrib(smollm2, prompts, v, alphas=(0.5,))
    worst = zeroing = 0.0
    for layer in layers:
        out = rec[f"mlp_out.{layer}"][:, -1].double() @ v[f"resid_post.{layer}"].double()
        terms = found.neurons[layer].double()
        worst = max(worst, float((terms.sum() - out.mean()).abs() / terms.abs().sum()))
        zero = ak.scale(f"z.{layer}", 0.0, ak.Where(heads=4))
        drop = rec[f"resid_mid.{layer}"][:, -1] - last(
            smollm2, f"resid_mid.{layer}", prompts, [zero]
        )
        expected = float((drop @ v[f"resid_mid.{layer}"].double()).mean())
        zeroing = max(zeroing, abs(float(found.heads[layer, 4]) - expected) / abs(expected))
    evidence("sum of neurons less <mlp_out, v>, of the sum of sizes", measured=worst, at_most=1e-5)
    evidence("zeroed head's drop less its linear term, relative", measured=zeroing, at_most=1e-3)
    assert found.sublayers.shape == (30, 2) and found.sublayers.isfinite().all()


@pytest.mark.paper("do-llms-feel-emotion")
def test_planted_neurons_and_heads_are_found(evidence: Evidence) -> None:
    model = Model(planted.planted())
    sites = ["resid_mid.*", "resid_post.*"]
    acts: dict[str, Tensor] = {}
    for context, concept in product(range(planted.CONTEXTS), range(planted.CONCEPTS)):
        rec = model.run([planted.prompt(context, concept)], record=sites)
        for site in rec:
            shape = (planted.CONTEXTS, planted.CONCEPTS, rec[site].shape[-1])
            acts.setdefault(site, torch.zeros(shape))[context, concept] = rec[site][0, -1]
    hits, heads = [], []
    for concept in range(planted.CONCEPTS):
        v = {site: centred(x)[concept] for site, x in acts.items()}
        prompts = [planted.prompt(g, concept) for g in range(planted.CONTEXTS)]
        found = component_contrib(model, prompts, v, alphas=(0.5,))
        hits += [n in planted.neurons(concept) for n in found.top("neurons", planted.NEURONS)]
        heads.append(found.top("heads", 1) == [planted.HEAD])
    evidence("precision of the top neurons", measured=sum(hits) / len(hits), at_least=0.9)
    evidence("precision of the top head", measured=sum(heads) / len(heads), at_least=0.9)


def centred(acts_GED: Tensor) -> Tensor:
    """Directions as the method that finds them makes them."""
    mean_ED = (acts_GED - acts_GED.mean(1, keepdim=True)).mean(0)
    return torch.nn.functional.normalize(mean_ED - mean_ED.mean(0), dim=-1)
