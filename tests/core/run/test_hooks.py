"""Nothing stays behind, whatever happens; contexts nest; modules of any shape are hooked.

Shapes: B batch, T tokens, D width.
"""

import gc
import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import actkit as ak
from actkit.core.errors import EditError, SiteError
from actkit.model import Model
from tests.core import tiny

VECTOR = tiny.uneven(tiny.WIDTH)
NAMES = ["resid_post.*", "attn_probs.*", "attn_scores.1", "z.1.3", "resid_mid.0", "q.0"]


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


# ---- nothing stays behind ------------------------------------------------------------------


def explode(error: type[BaseException]) -> Callable[[Tensor], Tensor]:
    def fn(x: Tensor) -> Tensor:
        raise error("on purpose")

    return fn


class Broken(nn.Module):
    """Fails as soon as it is called."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def forward(self, *_: Any, **__: Any) -> Tensor:
        raise self.error("on purpose")


ERRORS = [ValueError, RuntimeError, KeyboardInterrupt, SystemExit]


@pytest.mark.parametrize(
    "site", ["resid_post.1", "attn_probs.1", "attn_scores.0", "z.2", "resid_mid.1"]
)
@pytest.mark.parametrize("error", ERRORS)
def test_after_an_error_in_an_edit(m: Model, site: str, error: type[BaseException]) -> None:
    edit = ak.apply(site, explode(error))
    with tiny.untouched(m.module):
        with pytest.raises(error, match="on purpose"):
            m.run(tiny.PROMPTS, record=NAMES, edits=[edit])
        with pytest.raises(error, match="on purpose"):
            m.generate(tiny.PROMPTS, [edit], max_new_tokens=2)
        with pytest.raises(error, match="on purpose"):
            m.sweep(tiny.PROMPTS, [[edit]], lambda x: x[:, 0, 0])
    assert_close(m.run(tiny.PROMPTS, logits=True).logits, m.run(tiny.PROMPTS).output.logits)


@pytest.mark.parametrize(
    "path", ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp", "lm_head"]
)
@pytest.mark.parametrize("error", ERRORS)
def test_after_an_error_in_the_network(m: Model, path: str, error: type[BaseException]) -> None:
    edits = [ak.scale("attn_probs.1", 0.5), ak.add("resid_post.0", VECTOR)]
    with tiny.untouched(m.module):
        with m.replaced({path: Broken(error)}), pytest.raises(error, match="on purpose"):
            m.run(tiny.PROMPTS, record=NAMES, edits=edits, logits=True)
        with m.replaced({path: Broken(error)}), pytest.raises(error, match="on purpose"):
            m.generate(tiny.PROMPTS, edits, max_new_tokens=2)


def test_after_an_error_in_the_users_own_loop(m: Model) -> None:
    edits = [ak.scale("attn_probs.1", 0.5), ak.add("resid_post.0", VECTOR)]
    with tiny.untouched(m.module), pytest.raises(ZeroDivisionError), m.edited(edits):
        1 / 0  # noqa: B018


def test_after_success_and_refusals(m: Model) -> None:
    edits = [ak.scale("attn_probs.1", 0.5), ak.add("resid_post.0", VECTOR)]
    with tiny.untouched(m.module):
        m.run(tiny.PROMPTS, record=NAMES, edits=edits)
        m.run(tiny.PROMPTS, record=NAMES, edits=edits, logits=True, grad=True)
        m.generate(tiny.PROMPTS, edits, max_new_tokens=2)
        m.sweep(tiny.PROMPTS, [edits, edits], lambda x: x[:, 0, 0])
        with pytest.raises(SiteError):
            m.run(tiny.PROMPTS, record=[*NAMES, "nothing"])
        with pytest.raises(SiteError):
            m.run(tiny.PROMPTS, edits=[*edits, ak.set("nothing", 0.0)])


def test_a_hook_that_cannot_be_set_takes_the_others_back(
    m: Model,
) -> None:
    """An interrupt while the hooks are being set."""

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    last: Any = m.module.get_submodule("model.layers.2")
    with tiny.untouched(m.module):
        last.register_forward_hook = interrupted
        with pytest.raises(KeyboardInterrupt):
            m.run(tiny.PROMPTS, record=NAMES)
        del last.register_forward_hook


def test_a_recording_does_not_keep_the_network_alive() -> None:
    own = tiny.model()
    rec, gone = own.run("w1 w2", record=NAMES), weakref.ref(own.module)
    del own
    gc.collect()
    assert gone() is None and rec["resid_post.1"].shape == (1, 2, tiny.WIDTH)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_configured_attention_is_in_place_afterwards(attention: str) -> None:
    own = tiny.model(attn_implementation=attention)
    config: Any = own.module.config
    own.encode(tiny.PROMPTS)  # the side of padding is proven
    seen: list[str] = []
    inner: Any = own.module.get_submodule("model.layers.2.self_attn.q_proj")
    handle = inner.register_forward_hook(lambda *_: seen.append(config._attn_implementation))
    own.run(tiny.PROMPTS, record="attn_probs.0", logits=True)
    handle.remove()
    assert seen == [attention]  # another layer runs as configured while one is recorded
    assert config._attn_implementation == attention


# ---- contexts nest -------------------------------------------------------------------------


def test_contexts_nest_and_the_outer_one_acts_first(m: Model) -> None:
    site, plain = "resid_post.1", m.run(tiny.PROMPTS, record="resid_post.1")["resid_post.1"]
    with tiny.untouched(m.module), m.edited([ak.add(site, VECTOR)]):
        with m.edited([ak.scale(site, 2.0)]):
            both = m.run(tiny.PROMPTS, record=site)[site]
        outer = m.run(tiny.PROMPTS, record=site, edits=[ak.scale(site, 3.0)])[site]
    assert_close(both, (plain + VECTOR) * 2)
    assert_close(outer, (plain + VECTOR) * 3)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("attn_probs.1", "attn_probs.1"),
        ("attn_scores.1", "attn_scores.1"),
        ("attn_scores.1", "attn_probs.1"),
        ("attn_probs.1", "attn_scores.1"),
        ("attn_probs.1", "z.1"),
    ],
)
def test_contexts_at_attention_nest(m: Model, outer: str, inner: str) -> None:
    """The same edits give the same numbers in one run and in nested contexts."""
    edits = [ak.scale(outer, 0.5), ak.scale(inner, 0.7)]
    want = m.run(tiny.PROMPTS, record=[outer, inner, "attn_probs.1"], edits=edits, logits=True)
    with m.edited(edits[:1]):
        got = m.run(
            tiny.PROMPTS, record=[outer, inner, "attn_probs.1"], edits=edits[1:], logits=True
        )
        with m.edited(edits[1:]):
            seen = m.run(tiny.PROMPTS, record="attn_probs.1", logits=True)
    for other in (got, seen):
        assert torch.equal(other.logits, want.logits)
        for site in other:
            assert torch.equal(other[site], want[site])


def test_an_edited_context_whose_site_never_runs_is_an_error(m: Model) -> None:
    never = pytest.raises(EditError, match=r"an edit must act, but resid_post\.1 never ran")
    with never, m.edited([ak.add("resid_post.1", VECTOR)]):
        pass


# ---- modules of any shape ------------------------------------------------------------------


class Point(NamedTuple):
    """A tuple with names."""

    x: Tensor
    y: Tensor


@dataclass
class Held:
    """An object with fields."""

    value: Tensor
    other: Tensor


Loose = namedtuple("Loose", ["a", "b"])
SHAPES: dict[str, tuple[Callable[[Tensor], Any], str, Callable[[Any], Tensor]]] = {
    "tuple": (lambda x: (x, x + 1), "f:out.1", lambda o: o[1]),
    "list": (lambda x: [x, x + 1], "f:out.1", lambda o: o[1]),
    "named tuple": (lambda x: Point(x, x + 1), "f:out.y", lambda o: o.y),
    "named tuple by index": (lambda x: Loose(x, x + 1), "f:out.1", lambda o: o.b),
    "dict": (lambda x: {"a": x, "b": x + 1}, "f:out.b", lambda o: o["b"]),
    "ordered dict": (lambda x: OrderedDict(a=x, b=x + 1), "f:out.b", lambda o: o["b"]),
    "object": (lambda x: Held(x, x + 1), "f:out.other", lambda o: o.other),
    "nested": (lambda x: {"a": [x, (x, x + 1)]}, "f:out.a.1.1", lambda o: o["a"][1][1]),
    "structure": (lambda x: torch.max(x, -1, keepdim=True), "f:out.values", lambda o: o.values),
}


class Shaped(nn.Module):
    """Returns what its inner module returns."""

    def __init__(self, fn: Callable[[Tensor], Any]) -> None:
        super().__init__()

        class Inner(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return fn(x)

        self.f = Inner()

    def forward(self, x: Tensor) -> Any:
        return self.f(x)


@pytest.mark.parametrize("name", SHAPES)
def test_items_of_outputs_are_read_and_written(name: str) -> None:
    fn, site, pick = SHAPES[name]
    m, x = Model(Shaped(fn)), tiny.uneven(3, 4)
    want = pick(fn(x))
    assert torch.equal(m.run(x, record=site)[site], want)
    out = m.run(x, edits=[ak.scale(site, 3.0)]).output
    assert type(out) is type(fn(x))
    assert_close(pick(out), 3 * want)


def test_what_a_module_keeps_is_not_written_into() -> None:
    """A dict that a module returns and keeps must stay as it is."""
    kept: dict[str, Tensor] = {}

    def fn(x: Tensor) -> dict[str, Tensor]:
        kept["a"] = x
        return kept

    x = tiny.uneven(2, 3)
    out = Model(Shaped(fn)).run(x, edits=[ak.set("f:out.a", 0.0)]).output
    assert torch.equal(kept["a"], x) and not out["a"].any()


def test_inputs_by_position_and_by_name() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = nn.Bilinear(3, 3, 2)

        def forward(self, x: Tensor, scale: float, y: Tensor) -> Tensor:
            return torch.as_tensor(self.pair(x * scale, input2=y))

    net = Outer()
    m, x, y = Model(net), tiny.uneven(4, 3), tiny.uneven(4, 3, seed=1)
    call = ak.Call(x, 2.0, y=y)
    rec = m.run(call, record=["pair:in", "pair:in.0", "pair:in.input2"])
    assert torch.equal(rec["pair:in"], 2 * x) and torch.equal(rec["pair:in.input2"], y)
    out = m.run(call, edits=[ak.set("pair:in.input2", 1.0), ak.scale("pair:in", 0.5)]).output
    assert_close(out, net.pair(x, torch.ones(4, 3)))
    with pytest.raises(SiteError, match="pair:in has no item 1 in dict"):
        m.run(call, record="pair:in.1")


def test_a_module_without_a_tensor_to_read_is_refused() -> None:
    class Numbers(nn.Module):
        def forward(self, x: int) -> tuple[()]:
            return ()

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Numbers()

        def forward(self, x: Tensor) -> Tensor:
            self.inner(3)
            return x

    m, x = Model(Outer()), torch.ones(1, 2)
    with tiny.untouched(m.module):
        with pytest.raises(SiteError, match="inner:in needs an input that is a tensor"):
            m.run(x, record="inner:in")
        with pytest.raises(SiteError, match="inner:out must be a tensor to be read, got tuple"):
            m.run(x, record="inner:out")


def test_one_module_at_two_paths() -> None:
    """A module that two names share runs twice; each name counts its calls."""
    shared = nn.Linear(3, 3)
    m, x = Model(nn.Sequential(shared, nn.Tanh(), shared)), tiny.uneven(2, 3)
    with torch.no_grad():
        one = shared(x)
        two = shared(torch.tanh(one))
    rec = m.run(x, record=["0:out#0", "2:out#1", "0:out#1"])
    assert torch.equal(rec["0:out#0"], one)
    assert torch.equal(rec["2:out#1"], two) and torch.equal(rec["0:out#1"], two)


def test_replaced_modules_are_the_ones_that_are_hooked(m: Model) -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    with m.replaced({"model.layers.1.mlp": Zero()}):
        rec = m.run(tiny.PROMPTS, record=["mlp_out.1", "resid_mid.1", "resid_post.1"])
    assert not rec["mlp_out.1"].any() and torch.equal(rec["resid_mid.1"], rec["resid_post.1"])
