"""Relevance patching: each rule against its formula, and the limit of a linear network.

Shapes: B pairs, T tokens, D width.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Parts, Task
from actkit.trace._gradients import with_metric
from actkit.trace.nodes.attribution_patching import AttributionPatching
from actkit.trace.nodes.patch import Patch
from actkit.trace.nodes.relp import RelP, RelPEdges, feature_relevance
from actkit.trace.nodes.relp._relevance import (
    RULES,
    Change,
    ConstantNorm,
    ConstantRatio,
    propagating,
)
from actkit.worlds.toy_transformer import toy
from tests._evidence import Evidence
from tests.core import tiny

CLEAN, CORRUPT = torch.tensor([[3, 1, 2, 7, 4]]), torch.tensor([[5, 1, 6, 7, 4]])


def difference(logits_nPV: Tensor) -> Tensor:
    return logits_nPV[:, -1, 5] - 2 * logits_nPV[:, -1, 7]


TASK = Task(CLEAN, CORRUPT, metric=difference)


def linear() -> Model:
    """Attention is even and the MLPs have no nonlinearity, so logits are linear in the stream."""
    net = toy(9, layers=3, heads=2, width=24, mlp=40)
    for block in net.transformer.h:
        block.attn.c_attn.weight.data[:, :48] = 0
        block.mlp.act = nn.Identity()
    return Model(net.double())


@pytest.mark.paper("relp")
def test_on_a_linear_network_it_is_patching(evidence: Evidence) -> None:
    m = linear()
    for name in ("resid", "heads", "mlp", "neurons"):
        true = Patch(name)(m, TASK).values
        assert true.abs().max() > 0.05
        for kind in (RelP, AttributionPatching):
            error = (kind(name)(m, TASK).values - true).abs().max()
            what = f"{name} of a linear network: {kind.__name__} less patching (share of the gap)"
            evidence(what, measured=error, at_most=1e-6)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_divide_by_a_constant(kind: str) -> None:
    torch.manual_seed(0)
    norm: Any = nn.LayerNorm(7) if kind == "layer" else tiny.llama().model.norm.__class__(7)
    norm.weight.data = tiny.uneven(7, seed=1)
    if kind == "layer":
        norm.bias.data = tiny.uneven(7, seed=2)
    x = tiny.uneven(2, 3, 7, seed=3).requires_grad_()
    out = ConstantNorm(norm)(x)
    assert torch.equal(out, norm(x))
    sent = tiny.uneven(2, 3, 7, seed=4)
    (got,) = torch.autograd.grad((out * sent).sum(), [x])
    wide = x.detach().double()
    centred = wide - wide.mean(-1, keepdim=True) if kind == "layer" else wide
    back = sent.double() * norm.weight / centred.pow(2).mean(-1, keepdim=True).sqrt()
    expected = back - back.mean(-1, keepdim=True) if kind == "layer" else back
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("phi", [nn.SiLU(), nn.GELU(), nn.ReLU(), nn.Tanh()], ids=repr)
def test_activations_are_constant_factors(phi: nn.Module) -> None:
    z = torch.cat([tiny.uneven(31, seed=5), torch.tensor([0.0, 1e-12, -40.0])]).requires_grad_()
    out = ConstantRatio(phi)(z)
    assert torch.equal(out, phi(z))
    (got,) = torch.autograd.grad(out.sum(), [z])
    torch.testing.assert_close(got * z, phi(z), rtol=1e-5, atol=1e-8)
    assert got.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", ["llama", "gpt2"])
def test_no_value_changes_and_all_is_put_back(net: str, rule: str) -> None:
    m = tiny.model() if net == "llama" else Model(tiny.gpt2())
    bare = m.run(CLEAN, record="resid_post.*", logits=True)
    with tiny.untouched(m.module):
        with propagating(m, [rule]) as edits:
            ruled = m.run(CLEAN, record="resid_post.*", edits=edits, logits=True, grad=True)
        assert all(torch.equal(bare[n], ruled[n]) for n in bare)
        assert torch.equal(bare.logits, ruled.logits)
        with pytest.raises(KeyError), propagating(m, [rule]):
            raise KeyError


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_relevance_is_conserved_without_biases(kernel: str) -> None:
    m = Model(tiny.llama(attn_implementation=kernel))
    trial = TASK.on(m)
    names = [s.name for point in ("resid_pre", "resid_mid") for s in m.sites(f"{point}.*")]
    with propagating(m, tuple(RULES)) as edits:
        rec, value = with_metric(trial, "clean", names, edits)
        c = torch.autograd.grad(value.sum(), [rec[n] for n in names])
    sums = torch.stack([(rec[n] * g).sum() for n, g in zip(names, c, strict=True)]).detach()
    torch.testing.assert_close(sums, value.detach().expand(len(names)), rtol=1e-4, atol=1e-4)


def test_gated_products_are_shared_and_patterns_are_constants() -> None:
    m = tiny.model()
    trial = TASK.on(m)

    def gradients(*rules: str) -> list[Tensor]:
        """Return those at the gate, at the other factor, at a value and at what attention reads."""
        names = ["mlp_gate.2", "mlp_pre.2", "v.2", "attn_in.2"]
        with propagating(m, rules) as edits:
            rec, value = with_metric(trial, "clean", names, edits)
            return list(torch.autograd.grad(value.sum(), [rec[n] for n in names]))

    plain, halved = gradients(), gradients("gate")
    torch.testing.assert_close(halved[0], plain[0] / 2)
    torch.testing.assert_close(halved[1], plain[1] / 2)
    fixed = gradients("attention")
    torch.testing.assert_close(fixed[2], plain[2])
    weight = m.module.get_parameter("model.layers.2.self_attn.v_proj.weight")
    torch.testing.assert_close(fixed[3], fixed[2].flatten(2) @ weight)


def test_without_rules_it_is_attribution_patching() -> None:
    m = tiny.model()
    for parts in ("resid", "neurons", Parts("k", ("head",))):
        plain = AttributionPatching(parts, "noise")(m, TASK).values
        assert torch.equal(RelP(parts, "noise", rules=())(m, TASK).values, plain)
    assert not torch.allclose(RelP("neurons", "noise")(m, TASK).values, plain[..., :1])


def test_rules_of_the_users_own() -> None:
    """Half of what each MLP writes is let back: as `grad` halved there, by hand."""
    m = tiny.model()

    def halve(x: Tensor) -> Tensor:
        return x / 2 + (x / 2).detach()

    own = RelP("resid", rules=[lambda _: Change(edits=[ak.apply("mlp_out.1", halve)])])
    found = own(m, TASK).values
    plain = AttributionPatching("resid")(m, TASK).values
    torch.testing.assert_close(found[2], plain[2])
    assert not torch.allclose(found[1], plain[1])


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Return x, with a computation that has no rule."""
        return x * x.sigmoid()


@pytest.mark.parametrize("phi", [Swish(), nn.Sigmoid(), nn.PReLU()], ids=repr)
def test_modules_without_a_rule_are_refused(phi: nn.Module) -> None:
    net = tiny.llama()
    net.model.layers[1].mlp.act_fn = phi
    with pytest.raises(InputError, match=rf"{type(phi).__name__} at 'model.layers.1.mlp.act_fn'"):
        RelP()(Model(net), TASK)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"rules must be of norm, .* got \['nrom'\]"):
        RelP(rules=["nrom"])
    with pytest.raises(InputError, match="direction must be"):
        RelP("heads", "up")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="constants to the AH-rule, got k"):
        RelP(Parts("k", ("head",)))(tiny.model(), TASK)


@pytest.mark.parametrize("net", ["llama", "gpt2"])
@pytest.mark.parametrize("rules", [(), tuple(RULES)], ids=["plain", "ruled"])
def test_edges_out_of_a_head_add_up_to_the_head(net: str, rules: tuple[str, ...]) -> None:
    m = tiny.model() if net == "llama" else Model(tiny.gpt2())
    trial = TASK.on(m)
    with tiny.untouched(m.module):
        edges = RelPEdges(rules=rules)(m, trial)
    heads = RelP("heads", "noise", rules)(m, trial).values * trial.gap
    mlps = RelP("mlps", "noise", rules)(m, trial).values * trial.gap
    out = dict(zip(edges.names[1], edges.values.nansum(0).tolist(), strict=True))
    for layer, row in enumerate(heads.tolist()):
        for head, score in enumerate(row):
            assert out[f"head {layer}.{head}"] == pytest.approx(score, rel=1e-3, abs=1e-4)
        assert out[f"mlp {layer}"] == pytest.approx(float(mlps[layer]), rel=1e-3, abs=1e-4)


def test_edges_into_queries_and_keys_have_no_relevance() -> None:
    m = tiny.model()
    edges = RelPEdges()(m, TASK)
    reads = torch.tensor([name.endswith((" q", " k")) for name in edges.names[0]])
    assert edges.values[reads].nan_to_num().abs().max() == 0
    assert edges.values[~reads].nan_to_num().abs().max() > 0.01
    assert RelPEdges(rules=())(m, TASK).values[reads].nan_to_num().abs().max() > 0.01


def test_features_that_are_units_or_turned_units() -> None:
    m, site = tiny.model(), "resid_mid.1"
    units = RelP(Parts("resid_mid", ("position", "unit")))(m, TASK).values[1]
    eye_DD = torch.eye(tiny.WIDTH)
    found = feature_relevance(m, TASK, site, lambda x: x, eye_DD)
    torch.testing.assert_close(found, units, rtol=1e-4, atol=1e-6)
    turn_DD = torch.linalg.qr(tiny.uneven(tiny.WIDTH, tiny.WIDTH, seed=1)).Q
    turned = feature_relevance(m, TASK, site, lambda x: x @ turn_DD.mT, turn_DD)
    torch.testing.assert_close(turned.sum(-1), units.sum(-1), rtol=1e-3, atol=1e-5)
    relu = feature_relevance(m, TASK, site, torch.relu, eye_DD, "noise")
    assert (relu != 0).sum() < (turned != 0).sum()
    with pytest.raises(InputError, match=r"\(F, D\) = \(48, 48\), got \(48, 7\)"):
        feature_relevance(m, TASK, site, lambda x: x, torch.ones(48, 7))
