"""Lowers edits: into the weights and biases of a copy, or into a LoRA-shaped adapter.

An edit can be lowered if what it does to a tensor y is M y + c, for all rows and tokens: `add`,
`scale`, `project_out` and `affine`, also of chosen heads and units, and any operation that says so
by its `affine_form`. It goes into weights that the
network's class loads again, or is refused. Every lowering is checked against the edits in a run,
on the copy, on what its class builds from the saved config and weights, and on what PEFT opens.

Shapes: D width of the output, I of the input, R rank.
"""

import copy
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.edits.edit import Edit, as_edits
from actkit.core.errors import EditError
from actkit.core.sealed_file import write_sealed
from actkit.core.sites.site import Site
from actkit.export.reopening import Flag, bias_flags, is_reopened, reopened, set_flag, untie
from actkit.export.weight_places import (
    STREAM,
    Places,
    Target,
    Weights,
    form_of,
    is_map,
    is_turned,
    refusal,
)
from actkit.model import Model

TOLERANCE = 1e-4
"""How far outputs of the lowered network may be from the edited one's, of the largest."""
SHARE = 0.25
"""How far they may be of what the edits change, unless that is as small as rounding."""


def bake(model: Model, edits: Sequence[Edit], inputs: Any = None) -> Model:
    """Return a copy of the network that does by itself what the edits do to this one.

    What the copy's `save_pretrained` writes does the same when it is opened again: weights change
    only where the network's class has them. Where a setting of the config gives biases
    (`mlp_bias`, `attention_bias`, ...), it is set and the other maps that it speaks of get zeros;
    an output head that shares the embedding's weights gets weights of its own.

    Args:
        model: The network; it stays as it is.
        edits: `add`, `scale`, `project_out` or `affine` everywhere, or of some heads or units,
            where a linear map writes or reads the site, an embedding writes it, or, for `add` and
            `scale`, a norm. In the stream `add`, into what wrote to it last; and `project_out`
            of the same directions at all its points from `resid_pre.0` to any later one.
        inputs: What the copy is checked on; a few tokens if None.

    Raises:
        EditError: An edit cannot be baked, or the copy's outputs are others than the edited ones.
    """
    edits = as_edits(edits)
    _check_unwrapped(model.module)
    changes = _Changes(model, edits, inputs, bias_flags(model.module))
    module = copy.deepcopy(model.module)
    for flag in changes.flags:
        set_flag(module, flag)
    for path, weights in changes.weights.items():
        _rewrite(module, path, weights)
    baked = Model(module, model.tokenizer, model.processor, f"{model.name} with baked edits")
    check = _Check(model, edits, inputs)
    check(baked.module)
    if is_reopened(module) and not hasattr(module, "hf_device_map"):
        check(reopened(module), "a baked network, saved and opened again,")
    return baked


def save_peft(
    path: str | PathLike[str], model: Model, edits: Sequence[Edit], inputs: Any = None
) -> None:
    """Write edits as a LoRA adapter that `peft.PeftModel.from_pretrained` opens.

    Vectors become biases of the adapter (`lora_bias`), maps its two factors. An adapter with
    biases steers, but PEFT cannot merge it into maps without one: `bake` can.

    Args:
        path: Folder of the adapter.
        model: The network, without an adapter of its own.
        edits: As in `bake`, where linear maps write or read the sites.
        inputs: As in `bake`.

    Raises:
        EditError: As in `bake`; nothing is written then.
    """
    from peft import PeftModel

    edits = as_edits(edits)
    _check_unwrapped(model.module)
    changes = _Changes(model, edits, inputs, None)
    with tempfile.TemporaryDirectory() as folder:
        _write_adapter(Path(folder), model, changes.weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PEFT, on how transformers spells its settings
            adapted = PeftModel.from_pretrained(copy.deepcopy(model.module), folder)
        adapted.train(model.module.training)
        _Check(model, edits, inputs)(adapted, "an adapter")
        Path(path).mkdir(parents=True, exist_ok=True)
        for file in sorted(Path(folder).iterdir()):
            (Path(path) / file.name).write_bytes(file.read_bytes())


def _write_adapter(folder: Path, model: Model, changes: Mapping[str, Weights]) -> None:
    from peft import LoraConfig

    factors = {path: _factors(weights) for path, weights in changes.items()}
    rank = max(down_RI.shape[0] for down_RI, _, _ in factors.values())
    biased = any(bool(bias_D.any()) for _, _, bias_D in factors.values())
    tensors: dict[str, Tensor] = {}
    for name, (down_RI, up_DR, bias_D) in factors.items():
        pad = rank - down_RI.shape[0]
        own = f"base_model.model.{name}"
        tensors[f"{own}.lora_A.weight"] = nn.functional.pad(down_RI, (0, 0, 0, pad))
        tensors[f"{own}.lora_B.weight"] = nn.functional.pad(up_DR, (0, pad))
        if biased:
            tensors[f"{own}.lora_B.bias"] = bias_D
    config: Any = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(changes),
        lora_bias=biased,
        fan_in_fan_out=any(is_turned(w.module) for w in changes.values()),
        base_model_name_or_path=_base_name(model),
        inference_mode=True,
    )
    metadata = {"format": "pt"}
    write_sealed(folder / "adapter_model.safetensors", tensors, metadata, "an adapter's file")
    config.save_pretrained(str(folder))


def _base_name(model: Model) -> str:
    """Return what the network can be opened by: a folder, a Hub id or a bundled name."""
    from actkit.opening.bundled import BUNDLED

    told = getattr(getattr(model.module, "config", None), "name_or_path", "")
    return model.name if model.name in BUNDLED or not told else str(told)


class _Changes:
    """What the edits make of the weights.

    Attributes:
        weights: New weights by the path of their module.
        flags: Settings of the config that the new biases need.
    """

    def __init__(
        self, model: Model, edits: list[Edit], inputs: Any, flags: list[Flag] | None
    ) -> None:
        """Put the edits into weights; `flags` None is an adapter, which has biases anywhere."""
        self.weights: dict[str, Weights] = {}
        self.flags: list[Flag] = []
        self._given = flags
        given = inputs is not None and model.encode(inputs).tokens is None
        self._places = Places(model, inputs if given else _probe(model, None))
        plan = [
            (edit, site, self._targets(edit, site))
            for edit, site in _sited(model, edits, self._places)
        ]
        if not plan:
            raise EditError(f"lowering needs an edit that changes something, got {len(edits)}")
        for edit, site, targets in plan:
            self._put(edit, site, [t for t in targets if t.side == "out"])
        for edit, site, targets in reversed(plan):  # what is read first stands nearest to W
            self._put(edit, site, [t for t in targets if t.side == "in"])
        for path, weights in self.weights.items():
            if weights.changed[1] and getattr(weights.module, "bias", None) is None:
                self._need(f"{path}.bias")

    def _targets(self, edit: Edit, site: Site) -> list[Target]:
        """Return the modules that an edit goes into, the likeliest ones that can take it."""
        reasons: list[str] = []
        for targets in self._places.options(site, edit):
            modules = [self._places.modules[t.path] for t in targets]
            found = [
                refusal(module, target, edit, self._may_have_bias)
                for module, target in zip(modules, targets, strict=True)
            ]
            if self._given is None:
                found += [f"{t.path} is no map" for t in targets if not self._is_map(t)]
            if not any(found):
                return targets
            reasons += [reason for reason in found if reason and reason not in reasons]
        told = "; ".join(reasons) or "it is written and read by none of the network's maps alone"
        raise EditError(f"{edit.operation.name} at {site.name} fits into no weight: {told}")

    def _put(self, edit: Edit, site: Site, targets: list[Target]) -> None:
        for target in targets:
            unit = site.unit_shape or (len(target.index),)
            module = self._places.modules[target.path]
            if target.path not in self.weights:
                self.weights[target.path] = Weights.of(module)
            self.weights[target.path].put(target, edit, unit)

    def _is_map(self, target: Target) -> bool:
        return is_map(self._places.modules[target.path])

    def _may_have_bias(self, path: str) -> bool:
        if self._given is None:
            return True
        return any(f"{path}.bias" in flag.biases for flag in self._given)

    def _need(self, key: str) -> None:
        """Take the flag that gives a bias."""
        if not any(key in flag.biases for flag in self.flags):
            self.flags += [flag for flag in self._given or () if key in flag.biases][:1]


def _sited(model: Model, edits: list[Edit], places: Places) -> list[tuple[Edit, Site]]:
    """Return the edits that change something with their sites, those of a whole stream moved.

    Projections of the stream go to what writes to it.
    """
    found = [(edit, site) for edit in edits for site in model.sites(edit.site)]
    for edit, site in found:
        _check_lowerable(edit, site)
    found = [(edit, site) for edit, site in found if not edit.operation.neutral]
    moved: list[tuple[Edit, Site]] = []
    for edit, site in found:
        if site.point in STREAM and form_of(edit).linear == "projection":
            moved += [(edit, writer) for writer in _stream_writers(edit, site, found, places)]
        else:
            moved.append((edit, site))
    return moved


def _stream_writers(
    edit: Edit, site: Site, found: list[tuple[Edit, Site]], places: Places
) -> list[Site]:
    """Return what writes to the stream just before a point of it, to be projected instead.

    Where all points so far lose the same directions, the stream that comes by already has.
    """
    writers = places.before(site)
    earlier = places.at(site, _point_before(site, places))
    if (site.point, site.layer) == ("resid_pre", 0):
        return [site]
    if site.point == "resid_pre":  # the same place as the end of the block before
        return _stream_writers(edit, writers[0], found, places)
    alike = [other.canonical for own, other in found if _does_the_same(own, edit)]
    same = () if earlier is None else (earlier.canonical, _same_place(earlier))
    if not any(name in alike for name in same):
        raise EditError(
            f"the stream at {site.name} comes by other ways than one map, so only add can be "
            f"lowered there, got {edit.operation.name}; edit attn_out and mlp_out instead, or all "
            "points of the stream from resid_pre.0 on"
        )
    return writers


def _point_before(site: Site, places: Places) -> str:
    """Return the stream's point before one in a block."""
    if site.point == "resid_mid" or places.at(site, f"resid_mid.{site.layer}") is None:
        return f"resid_pre.{site.layer}"
    return f"resid_mid.{site.layer}"


def _same_place(site: Site) -> str:
    """Return the name of resid_pre as the end of the block before."""
    if site.point != "resid_pre" or not site.layer:
        return site.canonical
    return site.canonical.replace(f"resid_pre.{site.layer}", f"resid_post.{site.layer - 1}")


def _does_the_same(one: Edit, other: Edit) -> bool:
    """Say whether two edits have the same operation with the same numbers."""
    if type(one.operation) is not type(other.operation):
        return False
    return all(
        _equal(getattr(one.operation, f.name), getattr(other.operation, f.name))
        for f in fields(one.operation)
    )


def _equal(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return bool(a == b)
    return a.shape == b.shape and torch.equal(a, b)


def _check_lowerable(edit: Edit, site: Site) -> None:
    """Refuse edits that no weight can stand for."""
    form_of(edit, site.name)  # refused if it has none
    where = edit.where
    every = isinstance(where.tokens, str) and where.tokens == "all"
    chosen = (where.rows, where.steps, edit.batch_rows)
    if not every or any(choice is not None for choice in chosen):
        raise EditError(
            f"weights act everywhere, so an edit must, to be lowered: {edit.operation.name} at "
            f"{site.name} acts where {where}"
        )
    axes = 2 + len(site.unit_shape or (1,))
    if edit.operation.extent(axes)[:2] != (1, 1):
        tensors = ", ".join(f"{k} {tuple(v.shape)}" for k, v in edit.operation.tensors().items())
        raise EditError(
            f"weights are the same for all rows: the {edit.operation.name} at {site.name} "
            f"differs by row, it has {tensors}"
        )


def _check_unwrapped(module: nn.Module) -> None:
    """Refuse a network with an adapter: what is saved of it is the adapter alone."""
    adapters = (type(m) for m in module.modules() if type(m).__module__.startswith("peft."))
    if (kind := next(adapters, None)) is not None:
        raise EditError(
            f"a network with an adapter saves the adapter alone, so its edits would be lost, got "
            f"{kind.__name__}; merge it first: ak.open(m.module.merge_and_unload())"
        )


def _rewrite(network: nn.Module, path: str, weights: Weights) -> None:
    """Give a module of the copy its new weights; a weight that others share is untied."""
    module: Any = network.get_submodule(path)
    old = module.weight
    if weights.changed[0]:
        new = weights.weight.mT if is_turned(module) else weights.weight
        shared = sum(m is old for m in _weights_of(network)) > 1
        module.weight = nn.Parameter(new.to(old).contiguous(), old.requires_grad)
        if shared:
            untie(network)
    if weights.changed[1]:
        bias = nn.Parameter(weights.bias.to(old), old.requires_grad)
        _put_bias(network, module, bias)


def _put_bias(network: nn.Module, module: Any, bias: nn.Parameter) -> None:
    """Give a module a bias, also under the other names that the same one has (BERT's head)."""
    before = module.bias
    for owner in network.modules():
        for name, own in list(owner._parameters.items()):
            if own is before and before is not None:
                setattr(owner, name, bias)
    module.bias = bias


def _weights_of(network: nn.Module) -> list[Any]:
    return [p for _, p in network.named_parameters(remove_duplicate=False)]


def _factors(weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Return (R, I), (D, R) and (D,) such that W' x + b' = W x + b + up down x + bias."""
    before = Weights.of(weights.module)
    u_DR, s_R, down_RI = torch.linalg.svd(weights.weight - before.weight, full_matrices=False)
    # what edits of a few directions leave besides is rounding of float64
    rank = int((s_R > 1e-9 * s_R.max().clamp_min(1e-30)).sum()) if s_R.any() else 0
    rank = max(1, rank)
    like = weights.module.weight
    found = down_RI[:rank], u_DR[:, :rank] * s_R[:rank], weights.bias - before.bias
    down_RI, up_DR, bias_D = (x.to("cpu", like.dtype) for x in found)
    return down_RI, up_DR, bias_D


def _probe(model: Model, inputs: Any) -> Any:
    """Return the inputs of a check, two rows of tokens if none are given."""
    if inputs is not None:
        return inputs
    if getattr(getattr(model.module, "config", None), "is_encoder_decoder", False):
        rows = {"input_ids": [[5, 3, 8], [6, 1, 9]], "decoder_input_ids": [[2, 7], [4, 6]]}
        return {name: torch.tensor(ids) for name, ids in rows.items()}
    return [[5, 3, 8, 2, 7, 4], [6, 1, 9]]


class _Check:
    """Compares a lowered network with the edited one."""

    def __init__(self, model: Model, edits: list[Edit], inputs: Any) -> None:
        """Run the network with the edits and without."""
        probe = _probe(model, inputs)
        self._batch = model.encode(probe)
        self._edited = _output(model.run(probe, edits=edits).output)
        self._plain = _output(model.run(probe).output)
        self._eps = torch.finfo(next(model.module.parameters()).dtype).eps

    def __call__(self, module: nn.Module, what: str = "a baked network") -> None:
        """Refuse a network whose outputs are not those of the edited one."""
        with torch.no_grad():
            own = _output(module(*self._batch.args, **self._batch.kwargs))
        largest = self._edited.abs().max().clamp_min(1e-30)
        error = (self._edited - own).abs().max() / largest
        effect = (self._edited - self._plain).abs().max() / largest
        allowed = max(TOLERANCE, 30 * self._eps)
        rounding = (100 if self._eps < 1e-3 else 8) * self._eps
        allowed = min(allowed, max(SHARE * effect.item(), rounding))
        if not error <= allowed:
            raise EditError(
                f"{what} must do what the edits do, its output is {error.item():.2g} of "
                f"the largest value off (allowed {allowed:.2g})"
            )


def _output(output: Any) -> Tensor:
    found = getattr(output, "logits", output)
    while isinstance(found, Mapping | tuple | list) and len(found):
        found = next(iter(found.values())) if isinstance(found, Mapping) else found[0]
    if not isinstance(found, Tensor):
        raise EditError(f"baking is checked on a tensor, the output is {type(found).__name__}")
    return found.float()
