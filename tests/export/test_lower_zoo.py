"""What is baked survives `save_pretrained`, in many classes, or is refused; never lost."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.edits.where import Where
from actkit.core.errors import EditError
from actkit.export.lower import bake, save_peft
from actkit.model import Model
from tests.core import tiny, tiny_zoo
from tests.core.tiny_zoo import HEAD, HIDDEN, VOCAB, WIDTH, ZOO

V, W = tiny.uneven(WIDTH), tiny.uneven(WIDTH, seed=1)
M = torch.eye(WIDTH) + 0.2 * tiny.uneven(WIDTH, WIDTH, seed=6)
K = tiny.uneven(HEAD, seed=4)
TOKENS = torch.tensor([[7, 3, 11, 2, 5], [30, 4, 9, 8, 1]])


def edits(stack: str, width: int) -> dict[str, list[ak.Edit]]:
    """Edits of a stack; `width` is that of the MLP inside."""
    hidden = torch.linspace(0.1, 1, width)

    def of(make: Any, point: str, *args: Any, **more: Any) -> ak.Edit:
        edit: ak.Edit = make(f"{stack}{point}", *args, **more)
        return edit

    return {
        "add embeddings": [of(ak.add, "embeddings", V)],
        "add resid_pre.0": [of(ak.add, "resid_pre.0", V)],
        "add resid_pre.1": [of(ak.add, "resid_pre.1", V)],
        "add resid_post.0": [of(ak.add, "resid_post.0", V)],
        "add attn_out": [of(ak.add, "attn_out.1", V)],
        "add mlp_out": [of(ak.add, "mlp_out.*", V, 0.3)],
        "add attn_in": [of(ak.add, "attn_in.1", V)],
        "add mlp_in": [of(ak.add, "mlp_in.1", V)],
        "add one head's q": [of(ak.add, "q.1.2", K)],
        "add all heads' v": [of(ak.add, "v.0", K)],
        "add one head's z": [of(ak.add, "z.1.3", K)],
        "add mlp_hidden": [of(ak.add, "mlp_hidden.1", hidden)],
        "add logits": [of(ak.add, "logits", torch.linspace(-1, 2, VOCAB))],
        "ablate a head": [of(ak.scale, "z.1", 0.0, where=Where(heads=2))],
        "scale attn_out": [of(ak.scale, "attn_out.1", 0.5)],
        "scale units": [of(ak.scale, "mlp_out.1", V), of(ak.scale, "mlp_out.0", 2.0, EVERY_THIRD)],
        "scale logits": [of(ak.scale, "logits", 0.5)],
        "affine z": [of(ak.affine, "z.0.1", M[:HEAD, :HEAD])],
        "affine embeddings": [of(ak.affine, "embeddings", M, V)],
        "project attn_out and mlp_in": [
            of(ak.project_out, "attn_out.*", torch.stack([V, W])),
            of(ak.project_out, "mlp_in.1", W),
        ],
        "project one point": [of(ak.project_out, "resid_post.0", V)],
        "project the stream": [
            of(ak.project_out, p, V) for p in ("resid_pre.0", "resid_mid.*", "resid_post.*")
        ],
    }


EVERY_THIRD = Where(units=slice(0, None, 3))
NO_BIAS = {
    "add resid_pre.1",
    "add resid_post.0",
    "add attn_out",
    "add mlp_out",
    "add mlp_in",
    "add mlp_hidden",
}
"""What maps without biases, or norms without them, cannot take."""
NO_BIAS_IN_ATTENTION = {"add attn_in", "add one head's q", "add all heads' v", "add one head's z"}
NEVER = {"add logits", "project one point"}
POST_NORM = {"project attn_out and mlp_in", "project the stream"}
REFUSED: dict[str, set[str]] = {
    "llama": NEVER,
    "llama tied": NEVER,
    "mistral": NEVER | NO_BIAS | NO_BIAS_IN_ATTENTION,
    "qwen2": NEVER | NO_BIAS | {"add one head's z"},
    "qwen3": NEVER | (NO_BIAS - {"add attn_out"}),
    "gemma2": NEVER | NO_BIAS | POST_NORM | {"scale logits"},
    "gemma3": NEVER | NO_BIAS | POST_NORM,
    "phi3": NEVER | NO_BIAS | NO_BIAS_IN_ATTENTION,
    "olmo2": NEVER | NO_BIAS | POST_NORM,
    "gpt2": NEVER,
    "gpt_neox": NEVER,
    "opt": NEVER,
    "bert": {"project one point", "project the stream"},
    "t5": NEVER | NO_BIAS | NO_BIAS_IN_ATTENTION | {"project the stream"},
}
"""What no weight of the class can hold exactly: all else must bake."""


def inputs(name: str) -> dict[str, Tensor]:
    ids = {"input_ids": TOKENS}
    return {**ids, "decoder_input_ids": TOKENS.flip(0)[:, :3]} if name == "t5" else ids


def reopened(module: Any, folder: Path) -> Any:
    module.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return type(module).from_pretrained(folder).eval()


@pytest.mark.parametrize("name", ZOO)
def test_what_is_saved_is_the_edited_network_or_nothing(name: str, tmp_path: Path) -> None:
    net = tiny_zoo.network(name)
    model, stack = Model(net, name=name), "decoder." if name == "t5" else ""
    before = {k: v.clone() for k, v in net.state_dict().items()}
    config, plain = net.config.to_dict(), net(**inputs(name)).logits
    width = (model.sites(f"{stack}mlp_hidden.1")[0].shape or (0,))[-1]
    assert width in (HIDDEN, 4 * WIDTH)
    refused = set()
    own = edits(stack, int(width))
    if name == "gpt_neox":  # attention and MLP side by side: the stream has no middle
        own["project the stream"] = [e for e in own["project the stream"] if "mid" not in e.site]
    for label, some in own.items():
        expected = model.run(inputs(name), edits=some).output.logits
        assert (expected - plain).abs().max() > 1e-2, label
        try:
            baked = bake(model, some)
        except EditError:
            refused.add(label)
            continue
        again = reopened(baked.module, tmp_path / label.replace(" ", "-"))
        for module in (baked.module, again):
            with torch.no_grad():
                got = module(**inputs(name)).logits
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5, msg=label)
    assert refused == REFUSED[name]
    assert net.config.to_dict() == config
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def by_hand(net: Any, path: str, kind: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the logits with a hook of plain torch."""
    module = net.get_submodule(path)

    def after(_: Any, __: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    def before(_: Any, args: Any) -> Any:
        return (change(args[0]), *args[1:])

    hook = module.register_forward_hook if kind == "out" else module.register_forward_pre_hook
    handle = hook(after if kind == "out" else before)
    try:
        with torch.no_grad():
            logits: Tensor = net(input_ids=TOKENS).logits
    finally:
        handle.remove()
    return logits


def without(x: Tensor) -> Tensor:
    x = x.clone()
    x[..., HEAD : 2 * HEAD] = 0
    return x


HOOKS: list[tuple[str, ak.Edit, str, str, Callable[[Tensor], Tensor]]] = [
    ("llama", ak.add("resid_post.0", V, 2.0), "model.layers.0", "out", lambda x: x + 2 * V),
    ("gpt2", ak.add("resid_post.0", V), "transformer.h.0", "out", lambda x: x + V),
    ("gpt_neox", ak.add("resid_post.0", V), "gpt_neox.layers.0", "out", lambda x: x + V),
    ("opt", ak.add("resid_post.0", V), "model.decoder.layers.0", "out", lambda x: x + V),
    ("bert", ak.add("resid_post.0", V), "bert.encoder.layer.0", "out", lambda x: x + V),
    (
        "mistral",
        ak.scale("z.1.1", 0.0),
        "model.layers.1.self_attn.o_proj",
        "in",
        without,
    ),
    ("gemma3", ak.add("embeddings", V), "model.embed_tokens", "out", lambda x: x + V),
    ("phi3", ak.affine("mlp_out.1", M), "model.layers.1.mlp", "out", lambda x: x @ M.T),
    (
        "olmo2",
        ak.scale("attn_out.0", V),
        "model.layers.0.post_attention_layernorm",
        "out",
        lambda x: V * x,
    ),
]


@pytest.mark.parametrize(
    ("name", "edit", "path", "kind", "change"), HOOKS, ids=[h[0] for h in HOOKS]
)
def test_against_a_hook_by_hand_after_it_was_opened_again(
    name: str,
    edit: ak.Edit,
    path: str,
    kind: str,
    change: Callable[[Tensor], Tensor],
    tmp_path: Path,
) -> None:
    net = tiny_zoo.network(name)
    expected = by_hand(net, path, kind, change)
    again = reopened(bake(Model(net), [edit]).module, tmp_path)
    with torch.no_grad():
        got, plain = again(input_ids=TOKENS).logits, net(input_ids=TOKENS).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)
    assert (got - plain).abs().max() > 0.1


def test_a_projected_stream_has_nothing_along_the_direction_anywhere() -> None:
    """Taken out of all that writes to it, as heads and MLPs and embeddings are."""
    net = tiny_zoo.network("mistral")
    points = ("resid_pre.0", "resid_mid.*", "resid_post.*")
    baked = bake(Model(net), [ak.project_out(p, torch.stack([V, W])) for p in points])
    rec = baked.run({"input_ids": TOKENS}, record=["resid_pre.*", "resid_mid.*", "resid_post.*"])
    for x in rec.values():
        assert (x @ torch.stack([V, W]).T).abs().max() < 1e-4 * x.norm(dim=-1).max()
    upto = [ak.project_out(p, V) for p in ("resid_pre.0", "resid_mid.0", "resid_post.0")]
    some = bake(Model(net), upto).run({"input_ids": TOKENS}, record=["resid_post.0", "resid_mid.1"])
    assert (some["resid_post.0"] @ V).abs().max() < 1e-4
    assert (some["resid_mid.1"] @ V).abs().max() > 0.1
    with pytest.raises(EditError, match=r"all points of the stream from resid_pre\.0 on"):
        bake(Model(net), upto[1:])
    other = [upto[0], ak.project_out("resid_mid.0", W)]
    with pytest.raises(EditError, match=r"all points of the stream from resid_pre\.0 on"):
        bake(Model(net), other)


def test_several_edits_in_and_behind_one_map_keep_their_order() -> None:
    net = tiny_zoo.network("gpt2")
    model = Model(net)
    hidden = tiny.uneven(4 * WIDTH, seed=9)
    some = [
        ak.scale("mlp_hidden.0", hidden),
        ak.add("mlp_out.0", V),
        ak.add("mlp_hidden.0", hidden, 0.2),
        ak.project_out("mlp_out.0", W),
        ak.affine("attn_in.1", M, V),
        ak.project_out("attn_in.1", V),
    ]
    expected = model.run({"input_ids": TOKENS}, edits=some).output.logits
    got = bake(model, some).module(input_ids=TOKENS).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)
    turned = model.run({"input_ids": TOKENS}, edits=some[::-1]).output.logits
    assert (turned - expected).abs().max() > 0.1


def test_names_of_transformer_lens() -> None:
    net = tiny_zoo.network("llama")
    model = Model(net)
    for alias, own in {
        "blocks.0.hook_resid_post": "resid_post.0",
        "blocks.1.hook_resid_mid": "resid_mid.1",
        "blocks.1.attn.hook_z": "z.1",
        "blocks.*.hook_mlp_out": "mlp_out.*",
        "hook_embed": "embeddings",
    }.items():
        v = K if ".attn." in alias else V
        one, two = (bake(model, [ak.add(name, v)]).module.state_dict() for name in (alias, own))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) for k in one), alias


def test_a_network_of_ones_own_takes_only_biases_that_it_has() -> None:
    layers = [torch.nn.Linear(5, 7, bias=False), torch.nn.Tanh(), torch.nn.Linear(7, 3)]
    net = torch.nn.Sequential(*layers)
    x = tiny.uneven(4, 5)
    with pytest.raises(EditError, match=r"0 \(Linear\) has no bias that would be saved"):
        bake(ak.open(net), [ak.add("0:out", torch.ones(7))], x)
    baked = bake(ak.open(net), [ak.scale("0:out", 2.0), ak.add("2:in", torch.ones(7))], x)
    want = layers[2](torch.tanh(2 * layers[0](x)) + 1)
    torch.testing.assert_close(baked.module(x), want)
    net.load_state_dict(baked.module.state_dict())
    torch.testing.assert_close(net(x), want)


def test_a_small_effect_is_not_taken_for_rounding() -> None:
    """An edit that changes 1 in 10,000 is baked, and a copy that lacks it would be refused."""
    from actkit.export.lower import _Check

    net = tiny_zoo.network("llama")
    model, some = Model(net), [ak.add("resid_post.0", V, 3e-4)]
    bake(model, some)
    with pytest.raises(EditError, match="must do what the edits do"):
        _Check(model, some, None)(net)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "bert", "mistral", "phi3"])
def test_adapters_of_other_classes(name: str, tmp_path: Path) -> None:
    """Turned, fused and flattened maps, biases where there are none, and heads."""
    peft = pytest.importorskip("peft")
    model = Model(tiny_zoo.network(name), name=name)
    some = [
        ak.add("mlp_out.0", V, 0.5),
        ak.add("q.1.2", K),
        ak.add("z.1", K),
        ak.project_out("attn_out.1", W),
        ak.scale("mlp_pre.0", 0.5),
    ]
    save_peft(tmp_path, model, some)
    expected = model.run({"input_ids": TOKENS}, edits=some).output.logits
    adapted = peft.PeftModel.from_pretrained(tiny_zoo.network(name), tmp_path)
    with torch.no_grad():
        got, plain = adapted(input_ids=TOKENS).logits, model.module(input_ids=TOKENS).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)
    assert (got - plain).abs().max() > 0.1
