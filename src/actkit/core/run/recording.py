"""Recordings, and the rows that their vectors belong to.

Shapes: B batch, T tokens, N rows, D width, H heads, S keys.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import InputError, SiteError
from actkit.core.sites.layout import rows_first

FACTS = ("sample", "position", "token")
"""The fields of `Rows` that tell rows apart."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What each activation vector belongs to; the four tensors share one shape, (B, T) or (N,).

    Args:
        valid: bool; False on padding.
        sample: int64; the index of the sample in its data.
        position: int64; 0 is the sample's first valid token. For images y * width + x.
        token: int64; the token's id, -1 where there is none.
        grid: (height, width) for images, else None.
    """

    valid: Tensor
    sample: Tensor
    position: Tensor
    token: Tensor
    grid: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Return the number of samples (B, T) or of rows (N,)."""
        return len(self.valid)

    def __getitem__(self, index: Any) -> "Rows":
        """Select rows, as indexing a tensor does."""
        return Rows(
            self.valid[index],
            self.sample[index],
            self.position[index],
            self.token[index],
            self.grid,
        )

    def flat(self) -> "Rows":
        """Return the valid rows only, shape (N,)."""
        return self[self.valid]

    def shifted(self, samples: int) -> "Rows":
        """Return the same rows with `samples` added to every sample's index."""
        return replace(self, sample=self.sample + samples)

    @classmethod
    def of(cls, valid: Tensor, token: Tensor | None = None) -> "Rows":
        """Build the rows of a (B, T) batch from its validity and its token ids."""
        position = (valid.long().cumsum(-1) - 1).clamp_min(0)
        sample = torch.arange(len(valid), device=valid.device)[:, None].expand_as(valid)
        token = torch.full_like(position, -1) if token is None else token
        return cls(valid, sample, position, token)

    @classmethod
    def image(
        cls, num_images: int, height: int, width: int, device: torch.device | None = None
    ) -> "Rows":
        """Build the (B, height * width) rows of a batch of images, on the CPU if not told where."""
        sample = torch.arange(num_images, device=device)[:, None].expand(-1, height * width)
        position = torch.arange(height * width, device=device).expand(num_images, -1)
        valid = torch.ones_like(sample, dtype=torch.bool)
        return cls(valid, sample, position, torch.full_like(sample, -1), (height, width))


class Recording(Mapping[str, Tensor]):
    """Tensors read at sites in one run, by site name, with the rows they belong to.

    Attributes:
        rows: (B, T) rows of the run's main stack; `rows_of(site)` gives any site's own.
        output: What the network returned, None if the run stopped after the last site.
    """

    def __init__(
        self,
        values: dict[str, Tensor],
        rows: Mapping[str, Rows | SiteError],
        main: Rows,
        logits: Tensor | None = None,
        output: Any = None,
        axes: Mapping[str, str] | None = None,
    ) -> None:
        """Hold the tensors, and rows and axes of each site, or why they are not known."""
        self._values, self._rows, self._axes = values, rows, axes or {}
        self.rows, self._logits, self.output = main, logits, output

    def __getitem__(self, site: str) -> Tensor:
        """Return what was read at a site, for example (B, T, D)."""
        if site not in self._values:
            recorded = ", ".join(self._values) or "nothing"
            raise SiteError(f"site {site!r} was not recorded; recorded: {recorded}")
        return self._values[site]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the sites in the order in which they were asked."""
        return iter(self._values)

    def __len__(self) -> int:
        """Return the number of recorded sites."""
        return len(self._values)

    def __repr__(self) -> str:
        """Return the sites and shapes, one a line."""
        lines = [f"  {k}: {tuple(v.shape)} {str(v.dtype)[6:]}" for k, v in self.items()]
        return "\n".join([f"Recording of {len(self)} sites", *lines])

    @property
    def logits(self) -> Tensor:
        """Return the network's logits, for example (B, T, V).

        Raises:
            InputError: They were not asked for.
        """
        if self._logits is None:
            raise InputError("logits are kept where they are asked for: run with logits=True")
        return self._logits

    @property
    def has_logits(self) -> bool:
        """Say whether logits were asked for."""
        return self._logits is not None

    @property
    def axes(self) -> Mapping[str, str]:
        """Return the axes of the sites whose shape does not tell them."""
        return self._axes

    def rows_of(self, site: str) -> Rows:
        """Return the rows of one site, (B, T) for text, (B, height * width) for images.

        Raises:
            SiteError: Which axes of the tensor are samples, places and units is not known.
        """
        self[site]
        rows = self._rows[site]
        if isinstance(rows, SiteError):
            raise rows
        return rows

    def flat(self, site: str) -> tuple[Tensor, Rows]:
        """Return a site's valid rows and what they belong to, as `valid_rows` does."""
        x, rows = self[site], self.rows_of(site)
        return valid_rows(x, self._axes[site], rows)

    def axes_of(self, site: str) -> str:
        """Return the axes' letters of a site's tensor: BTD, BHTS, BCYX."""
        self.rows_of(site)
        return self._axes[site]

    def rows_first(self, site: str) -> Tensor:
        """Return what was read at a site as (B, T, ...), so that each [b, t] is one row."""
        x, _ = self[site], self.rows_of(site)
        return rows_first(x, self._axes[site])


def valid_rows(x: Tensor, axes: str, rows: Rows) -> tuple[Tensor, Rows]:
    """Return valid rows as (N, ...), attention as (N, H, S), and their (N,) rows.

    Key 0 of an attention row is its sample's first valid token, however the batch was padded.
    """
    if axes == "BTS":
        x, axes = x[:, None], "BHTS"
    acts = rows_first(x, axes)
    if rows.valid.all():
        return acts.flatten(0, 1), rows.flat()
    if axes == "BHTS":
        acts = _aligned(acts, rows.valid)
    return acts[rows.valid], rows.flat()


def last_tokens(x_BTD: Tensor, rows: Rows) -> Tensor:
    """Return the (B, D) values of each row's last valid token."""
    order_T = torch.arange(rows.valid.shape[1], device=rows.valid.device)
    last_B = torch.where(rows.valid, order_T, -1).amax(-1).to(x_BTD.device)
    return x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), last_B]


def _aligned(probs_BTHS: Tensor, valid_BT: Tensor) -> Tensor:
    """Shift the keys so that index 0 is each sample's first valid token; zeros fill the end."""
    first_B = valid_BT.long().argmax(-1)
    keys_S = torch.arange(probs_BTHS.shape[-1], device=probs_BTHS.device)
    source_BS = first_B[:, None] + keys_S
    inside_BS = source_BS < probs_BTHS.shape[-1]
    index = source_BS.clamp_max(probs_BTHS.shape[-1] - 1)[:, None, None].expand_as(probs_BTHS)
    return probs_BTHS.gather(-1, index) * inside_BS[:, None, None]
