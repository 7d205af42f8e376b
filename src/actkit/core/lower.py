"""Lowers edits: into the weights and biases of a copy, or into a LoRA-shaped adapter.

An edit can be lowered if what it does to a linear map's output y is M y + c, everywhere: `add`,
`scale`, `project_out` and `affine`. Every lowering is checked against the edits in a run.

Shapes: D width of the output, I of the input, R rank.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from actkit.core.edit import Edit, as_edits
from actkit.core.errors import EditError
from actkit.core.model import Model
from actkit.core.operations import Add, Affine, Operation, ProjectOut, Scale
from actkit.core.sites import Site

TOLERANCE = 1e-4
"""How far outputs of the lowered network may be from the edited one's, of the largest."""
STREAM_WRITERS = {"resid_post": "mlp_out", "resid_mid": "attn_out"}
"""What writes to the stream last before a point; a vector may be added there instead."""
BIAS_FLAGS = {"mlp_bias": "mlp", "attention_bias": "self_attn"}
"""Flags of configs that say whether the maps of a block's part have biases."""

_SHARED_AXES = {"vector": 1, "scale": 0, "factor": 1, "bias": 1}
"""How many axes a tensor has that is the same for all rows."""


@dataclass
class _Change:
    """What happens to a linear map's output: y becomes M y + c."""

    matrix_DD: Tensor
    bias_D: Tensor

    def then(self, operation: Operation, width: int) -> "_Change":
        matrix_DD, bias_D = _affine(operation, width)
        return _Change(matrix_DD @ self.matrix_DD, matrix_DD @ self.bias_D + bias_D)


def bake(model: Model, edits: Sequence[Edit], inputs: Any = None) -> Model:
    """Return a copy of the network that does by itself what the edits do to this one.

    Maps without a bias get one where it is needed. Where the config says that a block's part has
    none (`mlp_bias`, `attention_bias`), the flag is set and the part's other maps get zero
    biases, so that `save_pretrained` and `from_pretrained` keep them.

    Args:
        model: The network; it stays as it is.
        edits: `add`, `scale`, `project_out` or `affine` at the output of a linear map, everywhere;
            at `resid_post` and `resid_mid` `add` alone, since the stream comes by other ways, too.
        inputs: What the copy is checked on; a few tokens if None.

    Raises:
        EditError: An edit cannot be baked, or the copy's outputs are others than the edited ones.
    """
    edits = as_edits(edits)
    changes = _changes(model, edits, inputs)
    module = copy.deepcopy(model.module)
    for path, change in changes.items():
        _rewrite(module.get_submodule(path), change)
    _declare_biases(module)
    baked = Model(module, model.tokenizer, model.processor, f"{model.name} with baked edits")
    _check_equal(model, edits, baked, inputs)
    return baked


def save_peft(
    path: str | PathLike[str], model: Model, edits: Sequence[Edit], inputs: Any = None
) -> None:
    """Write edits as a LoRA adapter that `peft.PeftModel.from_pretrained` opens.

    Vectors become biases of the adapter (`lora_bias`), maps its two factors. An adapter with
    biases steers, but PEFT cannot merge it into maps without one: `bake` can.

    Args:
        path: Folder of the adapter.
        model: The network.
        edits: As in `bake`.
        inputs: As in `bake`.

    Raises:
        EditError: As in `bake`.
    """
    from peft import LoraConfig

    changes = _changes(model, as_edits(edits), inputs)
    factors = {p: _factors(model.module.get_submodule(p), c) for p, c in changes.items()}
    rank = max(down_RI.shape[0] for down_RI, _, _ in factors.values())
    biased = any(bool(bias_D.any()) for _, _, bias_D in factors.values())
    tensors: dict[str, Tensor] = {}
    for name, (down_RI, up_DR, bias_D) in factors.items():
        pad = rank - down_RI.shape[0]
        own = f"base_model.model.{name}"
        tensors[f"{own}.lora_A.weight"] = nn.functional.pad(down_RI, (0, 0, 0, pad)).contiguous()
        tensors[f"{own}.lora_B.weight"] = nn.functional.pad(up_DR, (0, pad)).contiguous()
        if biased:
            tensors[f"{own}.lora_B.bias"] = bias_D.contiguous()
    modules = [model.module.get_submodule(p) for p in changes]
    config: Any = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(changes),
        lora_bias=biased,
        fan_in_fan_out=not isinstance(modules[0], nn.Linear),
        base_model_name_or_path=model.name,
        inference_mode=True,
    )
    Path(path).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(path) / "adapter_model.safetensors")
    config.save_pretrained(str(path))


def _changes(model: Model, edits: Sequence[Edit], inputs: Any) -> dict[str, _Change]:
    """Return what happens to each linear map, by its path."""
    changes: dict[str, _Change] = {}
    for edit in edits:
        for site in model.sites(edit.site):
            _check_lowerable(edit, site)
            if edit.operation.neutral:
                continue
            path, width = _linear(model, edit, site, inputs)
            before = changes.get(path) or _Change(
                torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
            )
            changes[path] = before.then(edit.operation, width)
    if not changes:
        raise EditError(f"lowering needs an edit that changes something, got {len(edits)}")
    return changes


def _check_lowerable(edit: Edit, site: Site) -> None:
    """Refuse edits that no weight can stand for."""
    if not isinstance(edit.operation, Add | Affine | ProjectOut | Scale):
        raise EditError(
            f"only add, scale, project_out and affine can be lowered, got {edit.operation.name} "
            f"at {site.name}"
        )
    if not edit.where.everywhere:
        raise EditError(
            f"weights act everywhere, so an edit must, to be lowered: {edit.operation.name} at "
            f"{site.name} acts where {edit.where}"
        )
    tensors = edit.operation.tensors()
    rows = [k for k, axes in _SHARED_AXES.items() if k in tensors and tensors[k].dim() > axes]
    if rows:
        raise EditError(
            f"weights are the same for all rows: {', '.join(rows)} of the edit at {site.name} "
            "differs by row"
        )
    if _point(site) in STREAM_WRITERS and not isinstance(edit.operation, Add):
        raise EditError(
            f"the stream at {site.name} comes by other ways than one map, so only add can be "
            f"lowered there, got {edit.operation.name}; edit attn_out and mlp_out instead"
        )


def _point(site: Site) -> str:
    return site.name.rpartition(".")[0].rpartition(".")[2]


def _linear(model: Model, edit: Edit, site: Site, inputs: Any) -> tuple[str, int]:
    """Return the path of the linear map whose output is the site's tensor, and its width."""
    number = site.name.rpartition(".")[2]
    stack = site.name.rpartition(".")[0].rpartition(".")[0]
    if _point(site) in STREAM_WRITERS:
        name = f"{STREAM_WRITERS[_point(site)]}.{number}"
        site = model.sites(f"{stack}.{name}" if stack else name)[0]
    inside = model.module.get_submodule(site.place.path) if site.place.side == "out" else None
    maps = [
        f"{site.place.path}.{name}".strip(".")
        for name, module in (inside.named_modules() if inside is not None else ())
        if _is_linear(module)
    ]
    if maps:
        rec = model.run(_probe(model, inputs), record=[site.name, *(f"{p}:out" for p in maps)])
        flat = rec[site.name].flatten(2)
        for path in maps:
            own = rec[f"{path}:out"]
            if own.shape == flat.shape and torch.equal(own, flat):
                return path, own.shape[-1]
    raise EditError(
        f"an edit is lowered into the linear map that writes its site: {site.name} is written by "
        f"none of {maps or 'no map'} alone"
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _probe(model: Model, inputs: Any) -> Any:
    return [[5, 3, 8, 2, 7, 4], [6, 1, 9]] if inputs is None else inputs


def _affine(operation: Operation, width: int) -> tuple[Tensor, Tensor]:
    """Return M and c of an operation, M y + c, in float64."""
    eye_DD = torch.eye(width, dtype=torch.float64)
    zero_D = torch.zeros(width, dtype=torch.float64)
    if isinstance(operation, Add):
        return eye_DD, zero_D + operation.scale * operation.vector.double().cpu()
    if isinstance(operation, Scale):
        factor = torch.as_tensor(operation.factor, dtype=torch.float64).cpu()
        return eye_DD * factor, zero_D
    if isinstance(operation, ProjectOut):
        basis_JD = operation.basis_JD.double().cpu()
        return eye_DD - basis_JD.mT @ basis_JD, zero_D
    if isinstance(operation, Affine):
        bias = zero_D if operation.bias is None else operation.bias.double().cpu()
        return operation.matrix.double().cpu(), bias
    raise EditError(f"{operation.name} is no affine map of its input")


def _weight(module: Any) -> Tensor:
    """Return the (D, I) weight in float64; transformers' Conv1D keeps it turned."""
    weight: Tensor = module.weight.detach().double().cpu()
    return weight if isinstance(module, nn.Linear) else weight.mT


def _rewrite(module: Any, change: _Change) -> None:
    """Put W' = M W and b' = M b + c into a linear map."""
    weight_DI = change.matrix_DD @ _weight(module)
    own = module.bias
    bias_D = change.bias_D
    if own is not None:
        bias_D = bias_D + change.matrix_DD @ own.detach().double().cpu()
    old = module.weight
    new = weight_DI if isinstance(module, nn.Linear) else weight_DI.mT
    module.weight = nn.Parameter(new.to(old).contiguous(), old.requires_grad)
    if own is not None or bias_D.any():
        module.bias = nn.Parameter(bias_D.to(old), old.requires_grad)


def _declare_biases(module: nn.Module) -> None:
    """Give all maps of a block's part a bias where one has got one that the config denies."""
    config = getattr(module, "config", None)
    for flag, part in BIAS_FLAGS.items():
        parts = [own for name, own in module.named_modules() if name.endswith(f".{part}")]
        maps = [m for own in parts for m in own.modules() if isinstance(m, nn.Linear)]
        if getattr(config, flag, None) is False and any(m.bias is not None for m in maps):
            setattr(config, flag, True)
            for own in (m for m in maps if m.bias is None):
                zeros = own.weight.new_zeros(own.out_features)
                own.bias = nn.Parameter(zeros, own.weight.requires_grad)


def _factors(module: Any, change: _Change) -> tuple[Tensor, Tensor, Tensor]:
    """Return (R, I), (D, R) and (D,) such that W' x + b' = W x + b + up down x + bias."""
    less_DD = change.matrix_DD - torch.eye(len(change.bias_D), dtype=torch.float64)
    u_DD, s_D, v_DD = torch.linalg.svd(less_DD)
    rank = max(1, int((s_D > 1e-9 * s_D.max().clamp_min(1e-30)).sum()) if s_D.any() else 1)
    down_RI = v_DD[:rank] @ _weight(module)
    up_DR = u_DD[:, :rank] * s_D[:rank]
    bias_D = change.bias_D
    if module.bias is not None:
        bias_D = bias_D + less_DD @ module.bias.detach().double().cpu()
    like = module.weight
    return down_RI.to("cpu", like.dtype), up_DR.to("cpu", like.dtype), bias_D.to("cpu", like.dtype)


def _check_equal(model: Model, edits: Sequence[Edit], baked: Model, inputs: Any) -> None:
    """Refuse a copy whose outputs are not those of the edited network."""
    probe = _probe(model, inputs)
    edited = _output(model.run(probe, edits=edits).output)
    own = _output(baked.run(probe).output)
    error = (edited - own).abs().max() / edited.abs().max().clamp_min(1e-30)
    dtype = next(model.module.parameters()).dtype
    allowed = max(TOLERANCE, 30 * torch.finfo(dtype).eps)
    if not error <= allowed:
        raise EditError(
            f"a baked network must do what the edits do, its output is {error.item():.2g} of "
            f"the largest value off (allowed {allowed:.2g})"
        )


def _output(output: Any) -> Tensor:
    found = getattr(output, "logits", output)
    found = found[0] if isinstance(found, tuple | list) else found
    if not isinstance(found, Tensor):
        raise EditError(f"baking is checked on a tensor, the output is {type(found).__name__}")
    return found.float()
