"""Classes of gated neurons: planted ones, random ones, and those of SmolLM2-135M-Instruct."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from actkit.core.errors import InputError, SiteError
from actkit.model import Model
from actkit.read.network.io_functionality import (
    CLASSES,
    chance_cosine,
    io_functionality,
    neuron_classes,
)
from tests._evidence import Evidence
from tests.core import tiny

WIDTH = 576


def units(num: int, seed: int = 0, width: int = WIDTH) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(num, width, generator=gen, dtype=torch.float64)


def planted(num: int = 7) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Return (6 * num, D) gate, in and out weights of all classes, and their names.

    A layer's first weight vector is free, the others are at cosines of +-0.8 or +-0.2 from it.
    """
    names = [name for name in CLASSES for _ in range(num)]
    basis, _ = torch.linalg.qr(units(3 * len(names), width=3 * len(names)))
    first, second, third = basis.chunk(3)
    in_ND, gate_ND = [], []
    for i, name in enumerate(names):
        sign, aligned = CLASSES[name]
        turn = 1 if i % 2 else -1
        in_out = 0.8 * sign if sign else 0.2 * turn
        gate_out = turn * (0.8 if aligned else 0.2)
        in_ND.append(in_out * first[i] + (1 - in_out**2) ** 0.5 * second[i])
        gate_ND.append(gate_out * first[i] + (1 - gate_out**2) ** 0.5 * third[i])
    scale_N1 = torch.linspace(0.01, 30, len(names), dtype=torch.float64)[:, None]
    return torch.stack(gate_ND) / scale_N1, torch.stack(in_ND), first * scale_N1, names


@pytest.mark.paper("understanding-gated-neurons-transformers")
def test_planted_neurons_are_classed_and_random_ones_are_orthogonal(evidence: Evidence) -> None:
    gate_ND, in_ND, out_ND, names = planted()
    found = neuron_classes(gate_ND, in_ND, out_ND)
    right = [[*CLASSES][int(c)] == name for c, name in zip(found.class_N, names, strict=True)]
    evidence("planted neurons of six classes labelled correctly (share)",
             measured=sum(right) / len(right), at_least=1)  # fmt: skip
    moved = neuron_classes(0.3 * gate_ND, -7 * in_ND, -1e-3 * out_ND)
    changed = (moved.cosines_N3[:, 0] - found.cosines_N3[:, 0]).abs().max()
    evidence("change of cos(in, out) by scales and by flipping both signs", measured=changed,
             at_most=1e-9)  # fmt: skip
    assert moved.class_N.equal(found.class_N)

    random = neuron_classes(units(20_000), units(20_000, 1), units(20_000, 2))
    quantile = random.cosines_N3[:, 0].abs().quantile(0.95)
    evidence(f"95 % quantile of random |cosines|, D = {WIDTH}, over that of the Beta distribution",
             measured=quantile / chance_cosine(WIDTH), equals=1, tolerance=0.02)  # fmt: skip
    evidence("chance band of |cosine|, D = 576", measured=random.chance, equals=0.0816,
             tolerance=5e-5)  # fmt: skip
    evidence("random neurons with an orthogonal output (share)",
             measured=random.counts["orthogonal output"] / 20_000, at_least=0.999)  # fmt: skip


@pytest.mark.paper("understanding-gated-neurons-transformers")
def test_smollm2_goes_from_enrichment_to_depletion(smollm2: Model, evidence: Evidence) -> None:
    layers = [found.summary() for found in io_functionality(smollm2).values()]
    means = torch.tensor([layer["mean_cosine"] for layer in layers])
    early, late = float(means[:15].mean()), float(means[20:].mean())
    evidence("mean cos(in, out), first half of the layers", measured=early, at_least=0.1)
    evidence("mean cos(in, out), first half of the layers less last third",
             measured=early - late, at_least=0.2)  # fmt: skip
    enriching = [layer["enrichment"] + layer["conditional_enrichment"] for layer in layers]
    evidence("enrichment neurons, cos(in, out) > 0.5, least of layers 5, 9, 10, 11, 13",
             measured=min(enriching[i] for i in (5, 9, 10, 11, 13)), at_least=300)  # fmt: skip
    evidence("enrichment neurons in layers 25 to 29", measured=sum(enriching[25:]), at_most=0)


def test_a_neuron_is_atypical_if_gate_and_in_are_not_as_the_others_say() -> None:
    out = torch.tensor([[1.0, 0.0, 0.0]] * 6)
    x, y, z = torch.eye(3)
    into = torch.stack([x + y, x + y, y, y, x + y, y - x])
    gate = torch.stack([x + y, x - y, y, z, 0.3 * x + y, y - x])
    found = neuron_classes(gate, into, out)
    assert found.neurons("enrichment") == [0, 1]
    assert found.neurons("orthogonal output") == [2, 3]
    assert found.neurons("conditional enrichment") == [4]
    assert found.neurons("depletion") == [5]
    assert found.neurons("atypical") == [1, 2, 4]
    assert found.summary()["num_atypical"] == 3
    assert found.summary()["median_cosine"] == pytest.approx(0.5**0.5 / 2)


def test_a_neuron_without_weights_is_in_no_class() -> None:
    gate, into, out = units(5), units(5, 1), units(5, 2)
    into[3] = 0
    found = neuron_classes(gate, into, out)
    assert found.class_N[3] == -1 and sum(found.counts.values()) == 4
    assert found.summary()["num_zero"] == 1
    assert not found.atypical_N[3]


def oracle(gate: Tensor, up: Tensor, down: Tensor, gain: Any = 1.0, after: Any = 1.0) -> Tensor:
    """Return (N, 3) cosines from (N, D), (N, D) and (D, N) weights, in a loop."""
    rows = []
    for g, u, d in zip(gate.detach() * gain, up.detach() * gain, down.detach().T, strict=True):
        d = d * after
        pairs = ((u, d), (g, d), (g, u))
        rows.append([float(a @ b / (a.norm() * b.norm())) for a, b in pairs])
    return torch.tensor(rows)


def drawn(kind: str, **settings: Any) -> Any:
    """Return a tiny decoder of a kind, with gains of its norms that are not 1."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 24, "intermediate_size": 40, "head_dim": 6}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, **sizes, **heads, pad_token_id=0, **settings)
    auto: Any = AutoModelForCausalLM
    module = auto.from_config(config).eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "norm" in name:
                weight.add_(torch.linspace(-0.4, 1.3, weight.numel()).view_as(weight))
    return module


@pytest.mark.parametrize("kind", ["llama", "phi3", "gemma2", "olmo2"])
def test_weights_and_gains_are_found_in_every_architecture(kind: str) -> None:
    module = drawn(kind)
    found = io_functionality(Model(module))
    assert list(found) == ["mlp_gate.0", "mlp_gate.1"]
    for i, layer in enumerate(module.model.layers):
        gain: Any = 1.0
        after: Any = 1.0
        if kind == "phi3":
            gate, up = layer.mlp.gate_up_proj.weight.chunk(2)
        else:
            gate, up = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
        if kind in ("llama", "phi3"):
            gain = layer.post_attention_layernorm.weight.detach()
        if kind == "gemma2":
            gain = 1 + layer.pre_feedforward_layernorm.weight.detach()
            after = 1 + layer.post_feedforward_layernorm.weight.detach()
        if kind == "olmo2":
            after = layer.post_feedforward_layernorm.weight.detach()
        wanted = oracle(gate, up, layer.mlp.down_proj.weight, gain, after)
        torch.testing.assert_close(found[f"mlp_gate.{i}"].cosines_N3, wanted, atol=1e-5, rtol=1e-4)


def test_an_encoder_with_a_decoder_is_read_by_stack() -> None:
    torch.manual_seed(0)
    kind: Any = T5Config
    config = kind(vocab_size=60, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4,
                  feed_forward_proj="gated-gelu")  # fmt: skip
    t5: Any = T5ForConditionalGeneration
    module = t5(config).eval()
    layer = module.encoder.block[1].layer[1]
    with torch.no_grad():
        layer.layer_norm.weight.copy_(torch.linspace(0.3, 2, 24))
    found = io_functionality(Model(module), "encoder.mlp_gate.*")
    maps = layer.DenseReluDense
    gain_D = layer.layer_norm.weight.detach()
    wanted = oracle(maps.wi_0.weight, maps.wi_1.weight, maps.wo.weight, gain_D)
    torch.testing.assert_close(
        found["encoder.mlp_gate.1"].cosines_N3, wanted.detach(), atol=1e-5, rtol=1e-4
    )


def test_networks_without_gates_and_experts_are_refused_with_the_reason() -> None:
    with pytest.raises(SiteError, match="no gate"):
        io_functionality(Model(tiny.gpt2()))
    with pytest.raises(SiteError, match="experts"):
        io_functionality(Model(drawn("mixtral", num_local_experts=3)))
    with pytest.raises(SiteError, match=r"got mlp_pre.0"):
        io_functionality(tiny.model(), "mlp_pre.*")


def test_quantised_and_adapted_weights_are_refused() -> None:
    module = drawn("llama")
    up = module.model.layers[1].mlp.up_proj
    up.weight = torch.nn.Parameter(up.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"floating point.*mlp_pre.1.*int8"):
        io_functionality(Model(module))
    module.model.layers[1].mlp.up_proj = torch.nn.Sequential(torch.nn.Linear(24, 40))
    with pytest.raises(InputError, match=r"merge adapters first.*a Sequential"):
        io_functionality(Model(module))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 4), (3, 4), (3, 5)), "one shape"),
        (((3, 1), (3, 1), (3, 1)), "D >= 2"),
        (((4,), (4,), (4,)), "one shape"),
    ],
    ids=["widths", "one", "axes"],
)
def test_weights_that_do_not_fit_are_refused(
    shapes: tuple[tuple[int, ...], ...], message: str
) -> None:
    gate, into, out = map(torch.ones, shapes)
    with pytest.raises(InputError, match=message):
        neuron_classes(gate, into, out)


def test_weights_that_are_not_finite_and_unknown_classes_are_refused() -> None:
    bad = units(4)
    bad[1, 2] = torch.nan
    with pytest.raises(InputError, match="finite, 1 of 2304"):
        neuron_classes(units(4), bad, units(4))
    with pytest.raises(InputError, match="got 'enriching'"):
        neuron_classes(units(4), units(4), units(4)).neurons("enriching")
