"""Perplexity-aware sparsity against hooks set by hand, on tiny decoders that read their own text.

A network that reads what it sampled itself has the best loss that there is, so every gate costs.
"""

from collections.abc import Callable
from math import exp, inf
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import MixtralConfig, MixtralForCausalLM

from actkit.core.errors import InputError, SiteError
from actkit.model import Model
from actkit.read.network.ppl_sparsity import (
    PplSparsity,
    cett,
    cett_thresholds,
    fat,
    ppl_sparsity,
    topk,
)
from tests._evidence import Evidence
from tests.contract import acts, check_restored
from tests.core import tiny

Method = Callable[..., PplSparsity]


def sampled(module: Any, lengths: tuple[int, ...] = (23, 9, 30, 17)) -> list[list[int]]:
    """Return token ids that the network itself wrote."""
    gen = torch.Generator().manual_seed(0)
    ids = torch.full((len(lengths), 1), 5)
    for _ in range(max(lengths) - 1):
        with torch.no_grad():
            probs_BV = module(input_ids=ids).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probs_BV, 1, generator=gen)], 1)
    return [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)]


def made(kind: str) -> tuple[Model, list[list[int]]]:
    module = tiny.llama() if kind == "llama" else tiny.gpt2()
    return Model(module, tiny.tokenizer()), sampled(module)


def by_hand(
    module: Any, texts: list[list[int]], off: Callable[[int, Tensor, Tensor], Tensor]
) -> tuple[float, list[float]]:
    """Return the mean loss and each block's activation ratio, one text at a time, with hooks.

    `off` says which neurons are off, from the block, act(gate) and the activations.
    """
    loss: list[Tensor] = []
    kept: dict[int, list[Tensor]] = {}
    llama = hasattr(module, "model")
    mlps = [b.mlp for b in (module.model.layers if llama else module.transformer.h)]
    handles = []
    for i, mlp in enumerate(mlps):
        seen: dict[str, Tensor] = {}

        def keep(_: Any, __: Any, output: Tensor, seen: dict[str, Tensor] = seen) -> None:
            seen["gate"] = nn.functional.silu(output)

        def gate(_: Any, args: Any, i: int = i, seen: dict[str, Tensor] = seen) -> Any:
            new = args[0].clone()
            new[off(i, seen.get("gate", new), new)] = 0
            kept.setdefault(i, []).append((new[0, 1:] != 0).double().mean(-1))
            return (new,)

        if llama:
            handles.append(mlp.gate_proj.register_forward_hook(keep))
        down = mlp.down_proj if llama else mlp.c_proj
        handles.append(down.register_forward_pre_hook(gate))
    try:
        for text in texts:
            ids = torch.tensor([text])
            with torch.no_grad():
                logits_TV = module(input_ids=ids).logits[0]
            loss.append(cross_entropy(logits_TV[1:-1], ids[0, 2:], reduction="none"))
    finally:
        for handle in handles:
            handle.remove()
    return float(torch.cat(loss).mean()), [float(torch.cat(kept[i]).mean()) for i in kept]


def out_weight(module: Any, block: int) -> Tensor:
    if hasattr(module, "model"):
        return torch.as_tensor(module.model.layers[block].mlp.down_proj.weight.T).detach()
    return torch.as_tensor(module.transformer.h[block].mlp.c_proj.weight).detach()


def rule(method: Method, module: Any, found: PplSparsity) -> Callable[..., Tensor]:
    cut = list(found.cutoffs.values())

    def off(i: int, gate: Tensor, h: Tensor) -> Tensor:
        if method is ppl_sparsity:
            return torch.le(h.abs() * out_weight(module, i).norm(dim=1), cut[i])
        if method is fat:
            return torch.lt(gate.abs(), cut[i])
        kth = gate.abs().sort(-1, descending=True).values[..., int(cut[i]) - 1, None]
        return torch.lt(gate.abs(), kth)

    return off


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [ppl_sparsity, fat, topk], ids=lambda m: m.__name__)
def test_the_found_gate_costs_by_hand_what_it_is_said_to_cost(method: Method, kind: str) -> None:
    model, texts = made(kind)
    found = method(model, texts, p=0.05, batch_size=3)
    dense, _ = by_hand(model.module, texts, lambda i, g, h: torch.zeros_like(h, dtype=torch.bool))
    loss, kept = by_hand(model.module, texts, rule(method, model.module, found))
    assert found.dense_loss == pytest.approx(dense, rel=1e-4)
    assert found.ratio == pytest.approx(exp(loss - dense), abs=5e-4)
    assert list(found.kept.values()) == pytest.approx(kept, abs=5e-4)
    assert found.num_tokens == sum(len(t) - 2 for t in texts)
    assert found.ratio == pytest.approx(1.05, abs=0.03 if method is topk else 0.006)
    assert 0 < found.activation_ratio < 1
    assert found.num_evaluations <= 14


@pytest.mark.paper("sparsing-law")
def test_cett_equals_a_loop_and_goes_from_zero_to_one(evidence: Evidence) -> None:
    rng = np.random.default_rng(0)
    h, w = rng.normal(0.3, 1, (7, 11)) * np.linspace(0.2, 3, 11), rng.normal(0.1, 1, (11, 5))
    hidden_NH, out_HD = torch.tensor(h), torch.tensor(w)
    sizes = np.abs(h) * np.linalg.norm(w, axis=1)
    worst, values = 0.0, []
    for threshold in [0.0, *np.quantile(sizes, np.linspace(0, 1, 40)), inf]:
        shares = []
        for n in range(7):
            lost, whole = np.zeros(5), np.zeros(5)
            for i in range(11):
                whole += h[n, i] * w[i]
                if abs(h[n, i]) * np.linalg.norm(w[i]) <= threshold:
                    lost += h[n, i] * w[i]
            shares.append(np.linalg.norm(lost) / np.linalg.norm(whole))
        values.append(cett(hidden_NH, out_HD, threshold))
        worst = max(worst, abs(values[-1] - np.mean(shares)))
    evidence("CETT against a loop over tokens and neurons", measured=worst, at_most=1e-12)
    evidence("CETT at threshold 0", measured=values[0], equals=0, tolerance=0)
    evidence("CETT at threshold infinity", measured=values[-1], equals=1, tolerance=1e-12)


def test_cett_rises_where_neurons_write_in_orthogonal_directions() -> None:
    """Elsewhere a larger tail may be shorter, if what its neurons write cancels out."""
    hidden_NH, out_HD = acts(7), torch.eye(5).double() * 2
    values = [cett(hidden_NH, out_HD, t) for t in torch.linspace(0, 6, 60).tolist()]
    assert values == sorted(values) and values[0] == 0
    cancel_HD = torch.tensor([[1.0, 0.0], [-1.5, 0.0], [0.0, 3.0]])
    assert cett(torch.ones(1, 3), cancel_HD, 1.2) > cett(torch.ones(1, 3), cancel_HD, 1.7)


@pytest.mark.paper("sparsing-law")
def test_dead_neurons_are_never_needed(evidence: Evidence) -> None:
    module = tiny.llama()
    num_dead = round(0.3 * tiny.HIDDEN)
    with torch.no_grad():
        for i, layer in enumerate(module.model.layers):
            dead = torch.randperm(tiny.HIDDEN, generator=torch.Generator().manual_seed(i))
            layer.mlp.gate_proj.weight[dead[:num_dead]] = 0
    found = ppl_sparsity(Model(module, tiny.tokenizer()), sampled(module))
    evidence("activation ratio with 30 % of the neurons dead", measured=found.activation_ratio,
             at_most=0.7)  # fmt: skip
    evidence("perplexity ratio there", measured=found.ratio, equals=1.01, tolerance=0.001)


def test_interpolated_thresholds_have_the_cett_that_was_asked_for() -> None:
    model, texts = made("llama")
    rec = model.run(texts, record="mlp_hidden.*")
    for target in (0.02, 0.1, 0.3, 0.7, 0.95):
        for i, threshold in enumerate(cett_thresholds(model, texts, target).values()):
            acts_NH, rows = rec.flat(f"mlp_hidden.{i}")
            got = cett(acts_NH[rows.position > 0], out_weight(model.module, i), threshold)
            assert got == pytest.approx(target, abs=0.01 + 0.05 * target)
    assert set(cett_thresholds(model, texts, 0).values()) == {0.0}
    assert set(cett_thresholds(model, texts, 1).values()) == {inf}


def test_batches_do_not_matter() -> None:
    model, texts = made("llama")
    one, all_ = (fat(model, texts, p=0.05, batch_size=size) for size in (1, 4))
    assert one.ratio == pytest.approx(all_.ratio, abs=1e-4)
    assert one.kept == pytest.approx(all_.kept, abs=1e-4)


def test_a_network_that_needs_no_mlp_loses_all_neurons() -> None:
    model, texts = made("llama")
    found = ppl_sparsity(model, texts, p=1e9)
    assert found.strength == 1 and found.activation_ratio == 0
    assert set(found.cutoffs.values()) == {inf}


def test_one_block_alone_and_half_precision() -> None:
    module = tiny.llama(torch.bfloat16)
    model = Model(module, tiny.tokenizer())
    found = ppl_sparsity(model, sampled(module), p=0.05, sites="mlp_hidden.1")
    assert list(found.kept) == ["mlp_hidden.1"]
    assert found.summary()["ppl_ratio"] == found.ratio


def test_nothing_stays_behind() -> None:
    model, texts = made("llama")
    check_restored(model.module, lambda: ppl_sparsity(model, texts, p=0.5))


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (iter([[1, 2, 3]]), {}, "read several times"),
        ([[1, 2], [3]], {}, "at least 3 tokens"),
        ([[1, 2, 3]], {"p": 0}, "p > 0, got 0"),
        ([[1, 2, 3]], {"sites": "mlp_pre.*"}, "mlp_hidden.*, got mlp_pre.0"),
        ([], {}, "on 0 predicted tokens"),
    ],
    ids=["generator", "short", "p", "site", "none"],
)
def test_what_cannot_be_measured_is_refused(data: Any, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ppl_sparsity(tiny.model(), data, **settings)


def test_a_cett_outside_of_its_range_and_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"lies in \[0, 1\], got 1.5"):
        cett_thresholds(tiny.model(), tiny.PROMPTS, 1.5)
    with pytest.raises(InputError, match=r"\(3, 4\) and \(5, 2\)"):
        cett(torch.ones(3, 4), torch.ones(5, 2), 1)


def test_experts_are_refused_with_the_reason() -> None:
    kind: Any = MixtralConfig
    config = kind(vocab_size=89, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2, num_local_experts=3)  # fmt: skip
    mixtral: Any = MixtralForCausalLM
    model = Model(mixtral(config).eval(), tiny.tokenizer())
    with pytest.raises(SiteError, match="experts"):
        ppl_sparsity(model, [[1, 2, 3, 4]])
