"""Control vectors of other tools: GGUF files of llama.cpp and repeng, plain tensors by layer.

The vector of `direction.n` is added after block n, counted from 0: the site `resid_post.n`.
"""

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from actkit.core.edits.edit import Edit, add, as_edits
from actkit.core.edits.where import Where
from actkit.core.errors import DataError, EditError
from actkit.core.sites.site import Site
from actkit.core.sites.site_names import plain_name
from actkit.model import Model

ARCHITECTURE = "controlvector"
LAYER = re.compile(r"(?:direction|layers?|resid_post)?[._]?(\d+)")


def save_gguf(
    path: str | PathLike[str],
    model: Model,
    edits: Sequence[Edit],
    all_tokens: bool = False,
) -> None:
    """Write added vectors as a control vector that llama.cpp takes (`--control-vector`).

    Args:
        path: The file.
        model: The network; its architecture is the file's hint.
        edits: `add` at `resid_post.n`, n > 0; several at one layer are summed, and strengths are
            multiplied in.
        all_tokens: Let edits that choose tokens act on all of them, as llama.cpp does.

    Raises:
        EditError: An edit is of another kind, differs by row, or is at layer 0, for which
            llama.cpp has no place; or it chooses tokens and `all_tokens` is not set.
    """
    from gguf import GGUFWriter

    vectors: dict[int, Tensor] = {}
    edits = as_edits(edits)
    for edit in edits:
        for site in model.sites(edit.site):
            layer = _layer(edit, site, all_tokens)
            vectors[layer] = vectors.get(layer, 0) + _vector(edit, site.name)
    if not vectors:
        raise EditError(f"a control vector needs an added vector, got {len(edits)} edits")
    hint = getattr(getattr(model.module, "config", None), "model_type", model.name)
    writer = GGUFWriter(str(path), ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", hint)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(model.sites("resid_post.*")))
    for layer in sorted(vectors):
        writer.add_tensor(f"direction.{layer}", vectors[layer].numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_vectors(
    source: str | PathLike[str] | Mapping[Any, Tensor],
    scale: float = 1.0,
    where: Where | None = None,
) -> list[Edit]:
    """Read vectors of other tools as edits.

    Args:
        source: A GGUF control vector; a .safetensors or .pt file, or a mapping, of (D,) tensors
            by layer: 15, "15", "layer_15", "layers.15", "direction.15" or "resid_post.15".
        scale: Strength.
        where: As in `ak.add`; all tokens if None.

    Raises:
        DataError: The file is of another kind, or a name or a shape is.

    Example:
        >>> [edit.site for edit in load_vectors({15: torch.ones(4)}, scale=2.0)]
        ['resid_post.15']
    """
    named = source if isinstance(source, Mapping) else _file(Path(source))
    edits = []
    for name, vector in named.items():
        found = LAYER.fullmatch(plain_name(str(name)))
        if found is None or not isinstance(vector, Tensor) or vector.dim() != 1:
            got = f"shape {tuple(vector.shape)}" if isinstance(vector, Tensor) else type(vector)
            raise DataError(f"vectors must be (D,) tensors by layer, got {name!r}: {got}")
        edits.append(add(f"resid_post.{int(found[1])}", vector.float(), scale, where))
    if not edits:
        raise DataError(f"there must be a vector, {source} has none")
    return edits


def _layer(edit: Edit, site: Site, all_tokens: bool) -> int:
    """Return the layer of an edit that a control vector can hold."""
    layer = site.layer if site.canonical == f"resid_post.{site.layer}" else None
    if not edit.operation.only_adds or layer is None:
        raise EditError(
            f"a control vector holds add at resid_post.n, got {edit.operation.name} at {site.name}"
        )
    if layer == 0:
        raise EditError("llama.cpp has no place for a vector at layer 0, got resid_post.0")
    elsewhere = edit.where.rows is not None or edit.where.units is not None
    chooses = not edit.where.everywhere
    if elsewhere or edit.where.steps is not None or (chooses and not all_tokens):
        raise EditError(
            f"a control vector acts on all tokens, the edit at {site.name} acts where "
            f"{edit.where}; all_tokens=True lets an edit that chooses tokens act on all"
        )
    return layer


def _vector(edit: Edit, site: str) -> Tensor:
    """Return the (D,) vector that an edit adds."""
    operation = edit.operation
    rows, tokens, width = operation.extent(3)
    if (rows, tokens) != (1, 1) or operation.width() is None:
        raise EditError(
            f"a control vector is the same for all rows, the edit at {site} adds "
            f"{operation.summary()}"
        )
    zeros = torch.zeros(1, 1, width)
    added: Tensor = operation.like(zeros, "BTD")(zeros)
    return added[0, 0].detach()


def _file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"a file of vectors must exist, there is none at {path}")
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if path.suffix in (".pt", ".pth"):
        found = torch.load(path, map_location="cpu", weights_only=True)
        return dict(found)
    if path.suffix != ".gguf":
        raise DataError(f"vectors are read from .gguf, .safetensors or .pt, got {path.name}")
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    kind = reader.get_field("general.architecture")
    own = kind.contents() if kind is not None else None
    if own != ARCHITECTURE:
        raise DataError(f"a control vector must be of architecture {ARCHITECTURE}, got {own!r}")
    return {t.name: torch.from_numpy(np.array(t.data, dtype=np.float32)) for t in reader.tensors}
