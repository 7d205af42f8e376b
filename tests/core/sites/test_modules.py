"""Modules that hooks do not reach, or that torch computes otherwise: said, or right.

Shapes: B batch, T tokens, D width.
"""

import threading
import warnings
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import actkit as ak
from actkit.core.errors import ModelError, SiteError
from actkit.core.provenance import stamp
from actkit.core.run.fast_path import without_fast_path
from tests.core import tiny

ROWS = tiny.uneven(5, 3)


# of torch itself, on an early patch release of Python
pytestmark = pytest.mark.filterwarnings("ignore:Guards may run slower on Python:RuntimeWarning")


def small() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


# -- compiled and scripted -----------------------------------------------------------------------


def compiled() -> nn.Module:
    net: Any = torch.compile(small(), backend="eager")
    assert isinstance(net, nn.Module)
    return net


def compiled_in_place() -> nn.Module:
    net = small()
    net.compile(backend="eager")
    return net


def compiled_inside() -> nn.Module:
    net = nn.Sequential(small(), nn.Tanh())
    net[0].compile(backend="eager")
    return net


@pytest.mark.parametrize(
    ("network", "site", "name"),
    [
        (compiled, "_orig_mod.1:out", "the network"),
        (compiled, "_orig_mod:out", "the network"),
        (compiled_in_place, "1:in", "the network"),
        (compiled_inside, "0.1:out", "'0'"),
        (compiled_inside, "0:out", "'0'"),
    ],
)
@pytest.mark.parametrize("warm", [True, False])
def test_what_is_compiled_is_refused_with_the_reason(
    network: Any, site: str, name: str, warm: bool
) -> None:
    net = network()
    if warm:
        net(ROWS)
    m = ak.open(net)
    reason = rf"{site} cannot be met: {name} is compiled \(torch\.compile\)"
    with pytest.raises(SiteError, match=reason):
        m.run(ROWS, record=site)
    with pytest.raises(SiteError, match=reason):
        m.run(ROWS, edits=[ak.set(site, 0.0)])
    with pytest.raises(SiteError, match=reason), m.edited([ak.set(site, 0.0)]):
        pass
    with pytest.raises(SiteError, match=reason):
        m.observe([ROWS], {site: []})


def test_what_stands_beside_compiled_modules_is_read() -> None:
    net = compiled_inside()
    with torch.no_grad():
        want = net(ROWS)
    assert torch.equal(ak.open(net).run(ROWS, record="1:out")["1:out"], want)


def test_points_of_a_compiled_transformer_are_refused_too() -> None:
    net = tiny.llama()
    net.compile(backend="eager")
    try:
        net(torch.tensor([[1, 2, 3]]))
    except NameError:
        pytest.skip("torch 2.6 cannot compile what transformers 5.16 decorates")
    m = ak.open(net, tokenizer=tiny.tokenizer())
    with pytest.raises(SiteError, match=r"resid_post\.1 cannot be met: the network is compiled"):
        m.run(tiny.PROMPTS, record="resid_post.1")


def scripted(net: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
        warnings.filterwarnings("ignore", r".*torch\.jit", FutureWarning)
        return torch.jit.script(net)


def test_scripted_networks_are_refused_with_the_reason() -> None:
    reason = r"a scripted network \(torch\.jit\) runs where no hook can stand"
    with pytest.raises(ModelError, match=reason):
        ak.open(scripted(small()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
        warnings.filterwarnings("ignore", r".*torch\.jit", FutureWarning)
        trace: Any = torch.jit.trace
        traced = trace(small(), ROWS)
    with pytest.raises(ModelError, match=reason):
        ak.open(traced)


def test_a_scripted_module_inside_is_refused_and_its_neighbours_are_read() -> None:
    net = nn.Sequential(scripted(small()), nn.Tanh())
    m = ak.open(net)
    assert [s.name for s in m.sites()] == ["1:out"]
    for site in ("0:out", "0.1:out"):
        with pytest.raises(SiteError, match=rf"{site} cannot be met: '0' is scripted"):
            m.run(ROWS, record=site)
    with torch.no_grad():
        assert torch.equal(m.run(ROWS, record="1:in")["1:in"], net[0](ROWS))


# -- offloaded and quantised ---------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["table", "module paths"])
def test_offloaded_weights_run_as_they_do_in_memory(architecture: str) -> None:
    if architecture == "table":
        net, site, inputs = tiny.llama(), "resid_post.1", torch.tensor([[5, 7, 11, 3]])
    else:
        net, site, inputs = small(), "1:out", ROWS
    plain = ak.open(net)
    want, edit = plain.run(inputs, record=site)[site], ak.scale(site, 0.5)
    moved = plain.run(inputs, edits=[edit]).output
    accelerate.cpu_offload(net, execution_device=torch.device("cpu"))
    assert all(p.is_meta for p in net.parameters())
    m = ak.open(net)
    rec = m.run(inputs, record=site)
    assert torch.equal(rec[site], want) and rec.rows_of(site).valid.all()
    got = m.run(inputs, edits=[edit]).output
    assert torch.equal(getattr(got, "logits", got), getattr(moved, "logits", moved))
    assert stamp(m)["weights"] is None


# earlier than 5.24, transformers says so of every offloaded network
@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
def test_an_offloaded_language_model_generates_and_sweeps() -> None:
    net, edit = tiny.llama(), ak.scale("resid_post.1", 1.1)
    plain = ak.open(net, tokenizer=tiny.tokenizer())
    prompts = tiny.PROMPTS[:2]

    def third(logits_BPV: Tensor) -> Tensor:
        return logits_BPV[:, -1, 3]

    texts = plain.generate(prompts, [edit], max_new_tokens=4)
    values = plain.sweep(prompts, [[], [edit]], third)
    accelerate.cpu_offload(net, execution_device=torch.device("cpu"))
    m = ak.open(net, tokenizer=tiny.tokenizer())
    assert m.generate(prompts, [edit], max_new_tokens=4) == texts
    assert_close(m.sweep(prompts, [[], [edit]], third), values)


def test_an_offloaded_decoder_without_a_table_is_found_by_structure() -> None:
    import transformers

    config = transformers.StableLmConfig(
        vocab_size=19, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4,
    )  # fmt: skip
    net: Any = transformers.StableLmForCausalLM(config)
    net.eval()
    note = ak.open(net).note
    accelerate.cpu_offload(net, execution_device=torch.device("cpu"))
    assert ak.open(net).note == note and note.startswith("found by structure")


def test_int8_modules_open_and_are_read_and_edited(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is to move elsewhere
        quantization = pytest.importorskip("torch.ao.quantization", reason="torch gave it up")
        net: Any = quantization.quantize_dynamic(small(), {nn.Linear}, dtype=torch.qint8)
    m, v = ak.open(net), torch.linspace(-1, 2, 4)
    with torch.no_grad():
        first = net[0](ROWS)
        want = net[2](net[1](first + v))
    rec = m.run(ROWS, record=["0:out", "2:out"])
    assert torch.equal(rec.flat("0:out")[0], first)
    assert torch.equal(rec["2:out"], net(ROWS))
    assert torch.equal(m.run(ROWS, edits=[ak.add("0:out", v)]).output, want)
    store = m.harvest([ROWS], ["0:out"], tmp_path / "store", dtype="float32")
    assert torch.equal(torch.as_tensor(store["0:out"][:]), first)


# -- torch's fused attention ---------------------------------------------------------------------

PADDING = torch.tensor([[False] * 6, [False] * 4 + [True] * 2, [False] * 3 + [True] * 3])
SITES = ["layers.0:out", "layers.1:in", "layers.0.linear1:out", "layers.1.self_attn:out",
         "layers.1.norm1:in"]  # fmt: skip


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(4)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


def by_hand(net: nn.Module, call: ak.Call) -> tuple[dict[str, Tensor], Tensor]:
    """What flows, by hooks, as torch computes it with gradients enabled: never fused."""
    found: dict[str, Tensor] = {}
    handles = []
    for site in SITES:
        path, _, side = site.partition(":")

        def keep(*given: Any, site: str = site, at: int = 1 if side == "in" else 2) -> None:
            value = given[at]
            found[site] = (value[0] if isinstance(value, tuple) else value).detach()

        module = net.get_submodule(path)
        add = module.register_forward_pre_hook if side == "in" else module.register_forward_hook
        handles.append(add(keep))
    with torch.enable_grad():
        out = net(*call.args, **call.kwargs).detach()
    for handle in handles:
        handle.remove()
    return found, out


@pytest.mark.parametrize("mask", [None, PADDING])
def test_an_encoder_with_a_padding_mask_reads_as_with_gradients_enabled(mask: Any) -> None:
    net, x = encoder(), tiny.uneven(3, 6, 8)
    call = ak.Call(x) if mask is None else ak.Call(x, src_key_padding_mask=mask)
    want, out = by_hand(net, call)
    m = ak.open(net)
    for record in (SITES, *([s] for s in SITES), []):
        rec = m.run(call, record=record, logits=True)
        assert torch.equal(rec.logits, out)
        for site in record:
            assert torch.equal(rec[site], want[site])


def test_an_edit_in_an_encoder_with_a_padding_mask_is_that_of_a_hook_by_hand() -> None:
    net, x, v = encoder(), tiny.uneven(3, 6, 8), torch.linspace(-1, 2, 12)
    call = ak.Call(x, src_key_padding_mask=PADDING)
    handle = net.get_submodule("layers.0.linear1").register_forward_hook(lambda *a: a[2] + v)
    want = net(x, src_key_padding_mask=PADDING).detach()
    handle.remove()
    got = ak.open(net).run(call, edits=[ak.add("layers.0.linear1:out", v)]).output
    assert torch.equal(got, want)


def test_the_switch_of_the_fused_path_is_put_back() -> None:
    net, x = encoder(), tiny.uneven(3, 6, 8)
    switch = torch.backends.mha
    assert switch.get_fastpath_enabled()
    ak.open(net).run(x, record="layers.0:out")
    assert switch.get_fastpath_enabled()
    with pytest.raises(SiteError):
        ak.open(net).run(x, record="layers.0.dropout7:out")
    with pytest.raises(AssertionError, match="embedding dimension"):  # torch's own
        ak.open(net).run(torch.ones(3, 6, 9), record="layers.1:out")
    assert switch.get_fastpath_enabled()
    switch.set_fastpath_enabled(False)
    try:
        ak.open(net).run(x, record="layers.0:out")
        assert not switch.get_fastpath_enabled()
    finally:
        switch.set_fastpath_enabled(True)


def test_the_switch_is_put_back_when_runs_overlap() -> None:
    net, entered, leave = encoder(), threading.Event(), threading.Event()

    def other() -> None:
        with without_fast_path(net):
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=other)
    with without_fast_path(net):
        thread.start()
        entered.wait(5)
    assert not torch.backends.mha.get_fastpath_enabled()  # the other one is still inside
    leave.set()
    thread.join()
    assert torch.backends.mha.get_fastpath_enabled()
