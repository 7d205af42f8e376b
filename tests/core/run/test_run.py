"""A run: the user's own numbers, what is recorded, where it stops, gradients.

Shapes: B batch, T tokens, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import actkit as ak
from actkit.core.edits.edit import Edit
from actkit.core.errors import EditError, InputError, SiteError
from actkit.model import Model
from tests.core import tiny

EVERYTHING = [
    "embeddings", "resid_pre.*", "attn_in.*", "q.*", "k.*", "v.*", "attn_scores.*", "attn_probs.*",
    "z.*", "attn_out.*", "resid_mid.*", "mlp_in.*", "mlp_pre.*", "mlp_gate.*", "mlp_hidden.*",
    "mlp_out.*", "resid_post.*", "final_norm", "logits", "z.1.3", "blocks.0.attn.hook_z",
    "model.layers.*:in", "model.layers.*:out", "model.layers.1.self_attn:out.0",
]  # fmt: skip
SITE = "resid_post.1"


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


def inputs_of(m: Model) -> dict[str, Any]:
    return m.encode(tiny.PROMPTS).kwargs


def own_logits(m: Model) -> Tensor:
    """Return what the user's own call gives."""
    with torch.no_grad():
        return torch.as_tensor(m.module(**inputs_of(m)).logits)


# ---- the user's own numbers ----------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_outputs_keep_every_bit_whatever_is_recorded(
    attention: str, dtype: torch.dtype, grad: bool
) -> None:
    m = tiny.model(dtype, attn_implementation=attention)
    want = own_logits(m)
    with tiny.untouched(m.module):
        rec = m.run(tiny.PROMPTS, record=EVERYTHING, logits=True, grad=grad)
    assert torch.equal(rec.logits, want)
    assert torch.equal(rec["logits"], want)
    for name in EVERYTHING:
        for site in m.sites(name):
            one = m.run(tiny.PROMPTS, record=site.name, logits=True, grad=grad)
            assert torch.equal(one.logits, want), site.name


def test_another_networks_outputs_keep_every_bit() -> None:
    net, x = tiny.Cnn().eval(), tiny.uneven(2, 3, 8, 9)
    with torch.no_grad():
        want = net(x)
    m = Model(net)
    for names in (["*:in"], ["*:out"], ["*:in", "*:out"], []):
        rec = m.run(x, record=names, logits=True)
        assert torch.equal(rec.logits, want)
    grads = m.run(x, record=["conv?:out", "bn:out", "relu:out"], logits=True, grad=True)
    assert torch.equal(grads.logits, want)


def test_recorded_states_equal_the_networks_own(m: Model) -> None:
    with torch.no_grad():
        own = m.module(**inputs_of(m), output_hidden_states=True)
    rec = m.run(tiny.PROMPTS, record=["embeddings", "resid_post.*", "final_norm"])
    for i, state in enumerate(own.hidden_states[:-1]):
        assert torch.equal(rec[f"resid_post.{i - 1}"] if i else rec["embeddings"], state)
    assert torch.equal(rec["final_norm"], own.hidden_states[-1])


def test_a_batch_reads_like_single_prompts(m: Model) -> None:
    names = ["resid_post.*", "z.1"]
    batch = m.run(tiny.PROMPTS, record=names)
    for i, prompt in enumerate(tiny.PROMPTS):
        one = m.run(prompt, record=names)
        for site in one:
            length = one[site].shape[1]
            scale = float(one[site].abs().max())
            assert_close(batch[site][i, -length:], one[site][0], rtol=0, atol=1e-5 * scale)


def test_absolute_positions_do_not_see_the_padding() -> None:
    m = Model(tiny.gpt2(), tiny.tokenizer())
    module_path = "transformer.h.1:out"
    batch = m.run(tiny.PROMPTS, record=module_path)[module_path]
    for wrapped in (False, True):
        if wrapped:
            m = Model(tiny.Wrapper(tiny.gpt2(), delegate=False), tiny.tokenizer())
            module_path = f"inner.{module_path}"
            batch = m.run(tiny.PROMPTS, record=module_path)[module_path]
        for i, prompt in enumerate(tiny.PROMPTS):
            one = m.run(prompt, record=module_path)[module_path][0]
            assert_close(batch[i, -len(one) :], one, rtol=0, atol=1e-4)


# ---- what is recorded ----------------------------------------------------------------------


def test_a_recording_shows_what_flows_on_after_the_edits(m: Model) -> None:
    vector = tiny.uneven(tiny.WIDTH)
    for site in ("embeddings", "resid_pre.1", "resid_mid.1", "attn_out.1", "mlp_in.0", SITE):
        plain = m.run(tiny.PROMPTS, record=site)[site]
        rec = m.run(tiny.PROMPTS, record=site, edits=[ak.add(site, vector)])
        assert_close(rec[site], plain + vector)


def test_an_edit_of_the_middle_of_the_stream_stays_in_the_stream(m: Model) -> None:
    """resid_mid feeds the MLP and is added on: both must see the edit."""
    names = ["resid_mid.1", "mlp_out.1", SITE]
    edit = ak.add("resid_mid.1", tiny.uneven(tiny.WIDTH))
    plain, rec = m.run(tiny.PROMPTS, record=names), m.run(tiny.PROMPTS, record=names, edits=[edit])
    assert_close(rec[SITE], rec["resid_mid.1"] + rec["mlp_out.1"])
    assert not torch.allclose(rec["mlp_out.1"], plain["mlp_out.1"])


def test_values_are_those_before_the_network_overwrites_them() -> None:
    net, x = tiny.Cnn().eval(), tiny.uneven(2, 3, 8, 9)
    with torch.no_grad():
        one = net.bn(net.conv1(x))
        two = net.conv2(one.relu())
    m = Model(net)
    for grad in (False, True):
        rec = m.run(x, record=["bn:out", "relu:out", "conv2:out"], grad=grad)
        assert torch.equal(rec["bn:out"], one)
        assert torch.equal(rec["relu:out"], one.relu())
        assert torch.equal(rec["conv2:out"], two)
    assert torch.equal(m.run(x, record="relu:in")["relu:in"], one)
    with pytest.raises(SiteError, match="the network overwrote relu:in: record the output of the"):
        m.run(x, record="relu:in", logits=True, grad=True)


def test_edits_reach_networks_that_overwrite_in_place() -> None:
    net, x, v = tiny.Cnn().eval(), tiny.uneven(2, 3, 8, 9), tiny.uneven(9, seed=1)
    with torch.no_grad():
        state = net.conv2(net.bn(net.conv1(x)).relu()) + v[:, None, None]
        want = net.head((state + 0.5).relu().mean((2, 3)))
    m, value = Model(net), torch.zeros(2, 9, 6, 7)
    assert_close(m.run(x, edits=[ak.add("conv2:out", v)]).output, want)
    m.run(x, edits=[ak.set("conv2:out", 1.0)])
    other = m.run(x, record="conv2:out")
    kept = other["conv2:out"].clone()
    m.run(x * 2, edits=[ak.swap("conv2:out", other)])
    assert torch.equal(other["conv2:out"], kept)
    assert torch.equal(value, torch.zeros_like(value))


def test_nothing_to_record_returns_the_networks_output(m: Model) -> None:
    rec = m.run(tiny.PROMPTS)
    assert len(rec) == 0 and not rec.has_logits
    assert torch.equal(rec.output.logits, own_logits(m))
    assert m.run(tiny.PROMPTS, record=SITE).output is None
    assert rec.rows.valid.sum() == 15


def test_recurrent_networks_and_their_tuples() -> None:
    net, x = tiny.Recurrent().eval(), tiny.uneven(3, 4, 5)
    with torch.no_grad():
        out, (h, c) = net.lstm(x)
        want = net(x)
    m = Model(net)
    rec = m.run(x, record=["lstm:out", "lstm:out.0", "lstm:out.1.0", "lstm:out.1.1", "gru:in"])
    assert torch.equal(rec["lstm:out"], out) and torch.equal(rec["lstm:out.0"], out)
    assert torch.equal(rec["lstm:out.1.0"], h) and torch.equal(rec["lstm:out.1.1"], c)
    assert torch.equal(rec["gru:in"], out + h[-1][:, None] + c[0][:, None])
    assert torch.equal(m.run(x).output, want)
    vector = tiny.uneven(6)
    with torch.no_grad():
        moved = net.gru(out + (h + vector)[-1][:, None] + c[0][:, None])[0]
    assert_close(m.run(x, edits=[ak.add("lstm:out.1.0", vector)]).output, moved)
    where = ak.Where(tokens=2, rows=1)
    got = m.run(x, record="lstm:out", edits=[ak.set("lstm:out", 9.0, where)])["lstm:out"]
    out[1, 2] = 9.0
    assert torch.equal(got, out)


def test_tuples_dicts_and_several_calls() -> None:
    net, x = tiny.Loop().eval(), tiny.uneven(3, 4)
    with torch.no_grad():
        calls = [x]
        for _ in range(3):
            calls.append(torch.tanh(net.step(calls[-1])))
        steps = [net.step(c) for c in calls[:3]]
        y = calls[-1]
    m = Model(net)
    names = [
        "step:out#0", "step:out#1", "step:out#2", "step:in#2", "pair:out.0",
        "pair:out.1.1", "named:out.difference", "named:out", "named:in", "named:in.1", "named:in.b",
    ]  # fmt: skip
    names.remove("named:in.1")
    rec = m.run(x, record=names)
    for i in range(3):
        assert torch.equal(rec[f"step:out#{i}"], steps[i])
    assert torch.equal(rec["step:in#2"], calls[2])
    assert torch.equal(rec["pair:out.1.1"], 3 * y)
    assert torch.equal(rec["named:out.difference"], y * 0.5 + 2 * y - 3 * y)
    assert torch.equal(rec["named:out"], y * 0.5 + 2 * y + 3 * y)
    assert torch.equal(rec["named:in"], y * 0.5 + 2 * y)
    assert torch.equal(rec["named:in.b"], 3 * y)
    changed = m.run(x, edits=[ak.set("named:in.b", 1.0), ak.scale("pair:out.0", 2.0)]).output
    assert_close(changed, (3 * y + 1.0) * (3 * y - 1.0))
    changed = m.run(x, edits=[ak.set("named:out.difference", 2.0)]).output
    assert_close(changed, (y * 0.5 + 2 * y + 3 * y) * 2)


def test_an_edit_acts_on_the_call_it_is_meant_for() -> None:
    net, x, v = tiny.Loop().eval(), tiny.uneven(3, 4), tiny.uneven(4, seed=1)
    m = Model(net)
    for call, site in [(0, "step:out#0"), (2, "step:out#2"), (None, "step:out")]:
        with torch.no_grad():
            y = x
            for i in range(3):
                y = torch.tanh(net.step(y) + (v if call in (None, i) else 0))
        rec = m.run(x, record="pair:in", edits=[ak.add(site, v)])
        assert_close(rec["pair:in"], y)


# ---- where it stops ------------------------------------------------------------------------


def test_a_run_stops_after_the_last_site(m: Model) -> None:
    later, remove = tiny.counted(m.module, "model.layers.2.self_attn")
    head, remove_head = tiny.counted(m.module, "lm_head")
    try:
        m.run(tiny.PROMPTS, record=["resid_post.0", SITE, "z.0"])
        assert not later and not head
        m.run(tiny.PROMPTS, record=SITE, edits=[ak.scale("resid_post.2", 2.0)])
        assert not later and not head
        m.run(tiny.PROMPTS, record="attn_probs.2")
        assert len(later) == 1 and not head
        m.run(tiny.PROMPTS, record=SITE, logits=True)
        assert len(head) == 1
        m.run(tiny.PROMPTS)
        assert len(head) == 2
    finally:
        remove()
        remove_head()


def test_an_edit_of_a_module_is_waited_for() -> None:
    """Where the order of modules is not known, a stop must not skip an edit."""
    m, x = Model(tiny.Loop().eval()), tiny.uneven(3, 4)
    m.run(x, record="step:out#0", edits=[ak.scale("named:out", 2.0)])
    with pytest.raises(EditError, match="an edit must act, but unused:out never ran"):
        m.run(x, record="step:out#0", edits=[ak.scale("unused:out", 2.0)])


# ---- gradients -----------------------------------------------------------------------------


@contextmanager
def exact(frozen: bool = False) -> Iterator[tuple[Model, Tensor]]:
    """A float64 network whose norms do not round to float32, and a weight for valid logits."""
    m = tiny.model(torch.float64)
    norms = {p: n for p, n in m.module.named_modules() if p.endswith("norm")}
    double = {p: nn.RMSNorm(tiny.WIDTH, eps=1e-6, dtype=torch.float64) for p in norms}
    valid_BT = m.encode(tiny.PROMPTS).valid
    assert valid_BT is not None and len(double) == 7
    target = tiny.uneven(3, 7, tiny.WORDS, seed=3, dtype=torch.float64) * valid_BT[..., None]
    with m.replaced(double):
        m.module.requires_grad_(not frozen)
        yield m, target


def loss(m: Model, target: Tensor, edits: list[Edit]) -> Tensor:
    found = m.run(tiny.PROMPTS, edits=edits, logits=True, grad=True).logits
    assert found is not None
    return (found * target).sum()


@pytest.mark.parametrize(
    "site", ["resid_post.0", "resid_mid.1", "z.1", "attn_scores.1", "attn_probs.1", "k.0.1"]
)
def test_gradients_of_an_edits_vector_equal_finite_differences(site: str) -> None:
    width = {"r": 48, "z": 8, "k": 8, "a": 7}[site[0]]
    where = ak.Where(tokens=slice(1, None))
    vector = (0.1 * tiny.uneven(width, dtype=torch.float64)).requires_grad_()
    with exact() as (m, target):
        (grad,) = torch.autograd.grad(loss(m, target, [ak.add(site, vector, 0.5, where)]), vector)
        for i in (0, width // 2, width - 1):
            step = torch.zeros(width, dtype=torch.float64)
            step[i] = 1e-5
            up, down = (
                loss(m, target, [ak.add(site, vector.detach() + s, 0.5, where)])
                for s in (step, -step)
            )
            assert_close(grad[i], (up - down) / 2e-5, rtol=1e-6, atol=1e-5)
    assert grad.abs().min() > 1e-4


def test_gradients_flow_through_every_operation() -> None:
    """With respect to directions, matrices and strengths, against finite differences."""
    site, v = "resid_post.0", tiny.uneven(tiny.WIDTH, seed=5, dtype=torch.float64)
    makers: dict[str, Callable[[Tensor], Edit]] = {
        "project_out": lambda t: ak.project_out(site, v * t),
        "project_out two": lambda t: ak.project_out(site, torch.stack([v.roll(5), v + 0.2 * t])),
        "clamp": lambda t: ak.clamp(site, -0.3, 0.3, v + 0.2 * t),
        "affine": lambda t: ak.affine(site, torch.diag(t), v),
        "scale": lambda t: ak.scale(site, t),
        "set": lambda t: ak.set(site, t, ak.Where(tokens=1)),
        "strengths": lambda t: ak.add(site, v, t[:3]),
    }
    start = tiny.uneven(tiny.WIDTH, seed=6, dtype=torch.float64)
    with exact() as (m, target):
        for name, make in makers.items():
            at = start.clone().requires_grad_()
            (grad,) = torch.autograd.grad(loss(m, target, [make(at)]), at)
            step = torch.zeros_like(start)
            step[1] = 1e-5
            up, down = (loss(m, target, [make(start + s)]) for s in (step, -step))
            assert_close(grad[1], (up - down) / 2e-5, rtol=1e-5, atol=1e-5, msg=name)


RECORDED = [
    "embeddings", "resid_pre.1", "attn_in.0", "q.1", "k.0", "v.1", "z.1", "attn_probs.1",
    "attn_scores.0", "attn_out.1", "resid_mid.1", "mlp_gate.1", "mlp_hidden.0", "mlp_out.2",
    "resid_post.1", "final_norm", "z.2.3", "model.layers.0.mlp:in", "model.layers.2:out",
]  # fmt: skip


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_with_respect_to_what_was_recorded(frozen: bool) -> None:
    """The gradient at a site equals that of a shift which is added there."""
    with exact(frozen) as (m, target):
        rec = m.run(tiny.PROMPTS, record=RECORDED, logits=True, grad=True)
        total = (rec.logits * target).sum()
        got = torch.autograd.grad(total, [rec[n] for n in RECORDED], retain_graph=True)
        for name, grad in zip(RECORDED, got, strict=True):
            alone = m.run(tiny.PROMPTS, record=name, logits=True, grad=True)
            (own,) = torch.autograd.grad((alone.logits * target).sum(), alone[name])
            shift = torch.zeros_like(rec[name]).requires_grad_()
            rows = shift.transpose(1, 2) if "attn_probs" in name or "attn_scores" in name else shift
            edit = ak.apply(name, partial(torch.add, rows))
            (want,) = torch.autograd.grad(loss(m, target, [edit]), shift)
            assert want.abs().max() > 1e-3
            for found in (grad, own):
                assert_close(found, want, rtol=1e-9, atol=1e-9, msg=name)
        assert all(p.grad is None for p in m.module.parameters())


def test_gradients_in_a_network_that_overwrites_in_place() -> None:
    net, x = tiny.Cnn().eval().double(), tiny.uneven(2, 3, 6, 7, dtype=torch.float64)
    m = Model(net)
    for frozen in (False, True):
        net.requires_grad_(not frozen)
        rec = m.run(x, record=["bn:out", "conv2:out"], logits=True, grad=True)
        got = torch.autograd.grad(rec.logits[:, 1].sum(), [rec["bn:out"], rec["conv2:out"]])
        state = rec["conv2:out"].detach().clone().requires_grad_()
        want = torch.autograd.grad(net.head((state + 0.5).relu().mean((2, 3)))[:, 1].sum(), state)
        assert_close(got[1], want[0])
        assert got[0].abs().max() > 0
    assert not x.requires_grad


def test_no_graph_is_kept_unless_asked(m: Model) -> None:
    rec = m.run(tiny.PROMPTS, record=["resid_post.*", "z.1"], logits=True)
    assert not rec.logits.requires_grad
    assert not any(v.requires_grad for v in rec.values())


# ---- wrappers ------------------------------------------------------------------------------


@pytest.mark.parametrize("delegate", [False, True])
def test_a_wrapped_network_keeps_its_points(m: Model, delegate: bool) -> None:
    wrapped = Model(tiny.Wrapper(m.module, delegate), tiny.tokenizer())
    assert {s.name for s in wrapped.sites()} == {s.name for s in m.sites()}
    names = ["resid_post.*", "z.1.3", "attn_probs.0"]
    mine, its = m.run(tiny.PROMPTS, record=names), wrapped.run(tiny.PROMPTS, record=names)
    for site in mine:
        assert torch.equal(mine[site], its[site])
    edit = ak.set(SITE, 1.0)
    mine, its = (n.run(tiny.PROMPTS, edits=[edit], logits=True) for n in (m, wrapped))
    assert torch.equal(mine.logits, its.logits)


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("resid_past.1", r"unknown site 'resid_past\.1'; nearest: resid_post\.1"),
        ("resid_post.3", r"this network has resid_post\.0 to resid_post\.2"),
        ("router_logits.0", r"no router_logits\.0: the MLP of this architecture has no experts"),
        ("router_*", "no experts"),
        ("nothing.*", r"unknown site 'nothing\.\*'"),
        ("z.1.6", r"z\.1 has heads 0 to 5, got 6"),
        ("model.layers.1", r"a module's tensors are model\.layers\.1:in and model\.layers\.1:out"),
        ("model.layers.7:out", r"unknown site 'model\.layers\.7:out'"),
        ("model.layers.1:side", "written path:in or path:out"),
        ("model.layers.0.mlp:out.3", r"model\.layers\.0\.mlp:out (has no item 3|must)"),
        ("model.layers.0.self_attn:out.5", "has no item 5 in tuple"),
        ("model.layers.0.self_attn:in.nothing", "has no item 'nothing'"),
        ("model.layers.0.mlp:out#4", r"must run to be recorded, but model\.layers\.0\.mlp:out#4"),
    ],
)
def test_sites_that_are_not_there(m: Model, record: str, message: str) -> None:
    with tiny.untouched(m.module), pytest.raises(SiteError, match=message):
        m.run(tiny.PROMPTS, record=record, logits=True)


def test_a_site_that_never_runs_is_refused() -> None:
    m, x = Model(tiny.Loop().eval()), tiny.uneven(3, 4)
    with pytest.raises(SiteError, match="must run to be recorded, but unused:out never ran"):
        m.run(x, record=["step:out#0", "unused:out"])
    with pytest.raises(EditError, match="an edit must act, but unused:in never ran"):
        m.run(x, edits=[ak.set("unused:in", 0.0)])
    with pytest.raises(SiteError, match="pair:out must be a tensor to be read, got int"):
        m.run(x, record="pair:out.2")


def test_a_pattern_acts_where_it_can() -> None:
    """Of the sites of a pattern, some may not run, and some may lack the tokens."""
    m, x = Model(tiny.Loop().eval()), tiny.uneven(3, 4)
    both, one = ak.scale("*e*:out", 0.5), ak.scale("step:out", 0.5)
    assert [s.name for s in m.sites("[su]*e*:out")] == ["step:out", "unused:out"]
    got = m.run(x, edits=[ak.scale("[su]*e*:out", 0.5)]).output
    assert torch.equal(got, m.run(x, edits=[one]).output)
    assert not torch.equal(got, m.run(x, edits=[both]).output)
    net, x = Model(tiny.Cnn().eval()), tiny.uneven(1, 3, 4, 4)  # 16 pixels, then 4
    rec = net.run(x, record="conv?:out", edits=[ak.set("conv?:out", 9.0, ak.Where(tokens=10))])
    assert (rec["conv1:out"] == 9).flatten(2)[0, 0].nonzero().tolist() == [[10]]
    assert not (rec["conv2:out"] == 9).any()


def test_logits_of_a_network_without_any_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, x]

    with pytest.raises(InputError, match="returns no logits but list"):
        Model(Two()).run(torch.ones(2, 3), logits=True)
