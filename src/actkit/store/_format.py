"""A shard as bytes: safetensors with one tensor for each site and one for each row fact.

Shapes: N rows, D elements of one row.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import StoreError
from actkit.core.run.recording import FACTS, Rows

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3": torch.float8_e4m3fn,
    "int8": torch.int8,
}
CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.int64: "I64",
}
SCALE = ".scale"
"""Ending of the tensor that holds an int8 site's scales, float32, one for each row."""

PAGE = 4096
"""Tensor data begin at a multiple of this, so that they are aligned in memory."""

MOST_ROWS = 10**12
"""Room for offsets is kept in the header for this many rows."""


@dataclass(frozen=True, slots=True)
class Column:
    """One tensor of a shard: its name, its dtype and the shape of one row."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Return the size of one row in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_dtype(dtype: str) -> None:
    """Refuse a dtype that a store does not know.

    Raises:
        StoreError: It is unknown.
    """
    if dtype not in DTYPES:
        raise StoreError(f"a store's dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")


def columns_of(sites: Mapping[str, Sequence[int]], dtype: str) -> list[Column]:
    """Return a shard's columns in file order, wide elements first so that all stay aligned.

    Raises:
        StoreError: An unknown dtype, no site, a row without elements, or two equal names.
    """
    check_dtype(dtype)
    if not sites:
        raise StoreError("a store needs at least one site, got none")
    for site, shape in sites.items():
        if not all(isinstance(n, int) and n > 0 for n in shape):
            raise StoreError(f"a row must have elements, got shape {tuple(shape)} at {site}")
    columns = [Column(name, torch.int64) for name in FACTS]
    if dtype == "int8":
        columns += [Column(site + SCALE, torch.float32) for site in sites]
    columns += [Column(site, DTYPES[dtype], tuple(shape)) for site, shape in sites.items()]
    names = [column.name for column in columns]
    if twice := {name for name in names if names.count(name) > 1}:
        raise StoreError(f"a store keeps {', '.join(sorted(twice))} for itself, got it as a site")
    return columns


def head(columns: Iterable[Column], rows: int, about: dict[str, str]) -> bytes:
    """Return what precedes a shard's data; its length does not depend on the number of rows."""
    columns = list(columns)
    room = len(_header(columns, MOST_ROWS, about)) + 8
    length = -(-room // PAGE) * PAGE - 8
    return length.to_bytes(8, "little") + _header(columns, rows, about).ljust(length)


def _header(columns: Sequence[Column], rows: int, about: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": about}
    for column, start in zip(columns, starts(columns, rows), strict=True):
        header[column.name] = {
            "dtype": CODES[column.dtype],
            "shape": [rows, *column.shape],
            "data_offsets": [start, start + rows * column.row_bytes],
        }
    return json.dumps(header, separators=(",", ":")).encode()


def starts(columns: Iterable[Column], rows: int) -> list[int]:
    """Return where each column begins, in bytes after the head."""
    found, start = [], 0
    for column in columns:
        found.append(start)
        start += rows * column.row_bytes
    return found


def encode_rows(rows: Rows) -> dict[str, Tensor]:
    """Return the facts of (N,) rows as they are stored.

    Raises:
        StoreError: The rows are not flat, or some are padding.
    """
    if rows.valid.dim() != 1 or not bool(rows.valid.all()):
        shape, num_invalid = tuple(rows.valid.shape), int((~rows.valid).sum())
        raise StoreError(
            f"a store takes (N,) valid rows, got shape {shape} with {num_invalid} of padding"
        )
    return {name: getattr(rows, name).to(torch.int64) for name in FACTS}


def encode(site: str, acts: Tensor, shape: tuple[int, ...], dtype: str) -> dict[str, Tensor]:
    """Return what is stored for a site's (N, ...) activations: the tensor, and int8's scales.

    Values are rounded to the dtype; NaN and infinity are kept where the dtype has them.

    Raises:
        StoreError: Another shape, no floating dtype, or a value that the dtype cannot hold.
    """
    if tuple(acts.shape[1:]) != shape:
        raise StoreError(f"rows at {site} must have shape {shape}, got {tuple(acts.shape[1:])}")
    if not acts.is_floating_point():
        raise StoreError(f"activations must be floating, got {acts.dtype} at {site}")
    acts = acts.detach()
    if dtype == "int8":
        return _quantise(site, acts)
    target = DTYPES[dtype]
    if torch.finfo(acts.dtype).max > torch.finfo(target).max:
        _check_range(site, acts, dtype)
    return {site: acts.to(target)}


def decode(raw: Tensor, scale_N: Tensor | None = None) -> Tensor:
    """Return stored rows as values: int8 times its scales and float8 as float32, others as is."""
    if raw.dtype is torch.float8_e4m3fn:
        return raw.float()
    if scale_N is None:
        return raw
    return raw.float().mul_(scale_N.view(-1, *[1] * (raw.dim() - 1)))


def _check_range(site: str, acts: Tensor, dtype: str) -> None:
    limit = torch.finfo(DTYPES[dtype]).max
    low, high = torch.aminmax(acts) if acts.numel() else (torch.zeros(1), torch.zeros(1))
    if bool(low >= -limit) and bool(high <= limit):
        return
    has_inf = dtype != "float8_e4m3"
    held = acts.isnan() | (acts.isinf() if has_inf else False)
    worst = acts.abs().double().masked_fill(held, 0).max().item()
    if worst > limit:
        raise StoreError(
            f"{dtype} holds values up to {limit:g}, got {worst:g} at {site}; "
            "store it in bfloat16 or float32"
        )


def _quantise(site: str, acts: Tensor) -> dict[str, Tensor]:
    """Scale each row so that its largest value becomes 127, and round."""
    flat_ND = acts.float().reshape(len(acts), math.prod(acts.shape[1:]))
    most_N = flat_ND.abs().amax(1)
    if not bool(most_N.isfinite().all()):
        row = int((~most_N.isfinite()).nonzero()[0])
        raise StoreError(
            f"int8 holds finite values only, got {most_N[row]:g} at {site} in row {row}"
        )
    # A subnormal scale would be rounded so coarsely that a value could exceed 127.
    scale_N = (most_N / 127).clamp_min(torch.finfo(torch.float32).tiny)
    raw_ND = (flat_ND / scale_N[:, None]).round().to(torch.int8)
    return {site: raw_ND.view(acts.shape), site + SCALE: scale_N}
