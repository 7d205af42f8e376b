"""Which axis of a module's tensor counts samples, which are places and which holds units.

Axes are letters, one for each axis of the tensor: B samples; T tokens or time; Z, Y, X places of
an image; C or D units, H and K heads and their widths. They are told by the user, proven by the
module that made the tensor, or unknown, and then refused where somebody asks for rows. A number of
axes proves nothing: an image may be (B, C, Y, X) or (B, Y, X, C), a text (B, T, D) or (T, B, D).

What proves them:

- A module of torch, whose documentation says where its units are: a convolution, BatchNorm or a
  pool, behind the samples; Linear, LayerNorm or an embedding, on the last axis; recurrent networks
  and attention with their `batch_first`.
- A module that has such modules inside: the one axis that is as wide as one of them. If two axes
  are, or none is, the kind of all the modules inside decides, if they are of one kind. Three axes
  of which none tells are (B, T, D) in a network where no module has its units in the middle.
- A module without weights (ReLU, dropout): in a `Sequential` what stands before it, else the
  module that it is in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor, nn

from actkit.core.errors import SiteError
from actkit.core.sites.reach import submodule

PLACES, UNITS = "TZYX", "CDHK"

_RECURRENT = (nn.RNNBase,)
_SEQUENCE = (
    nn.RNNBase, nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder,
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip
_LAST = ("Linear", "Bilinear", "Embedding", "EmbeddingBag", "LayerNorm", "RMSNorm", "LSTMCell",
         "GRUCell", "RNNCell")  # fmt: skip
_FIRST = ("GroupNorm", "LocalResponseNorm", "CrossMapLRN2d", "Upsample", "FeatureAlphaDropout")


@dataclass(frozen=True)
class Axes:
    """What is known of the axes of one module's tensors before they are seen.

    Attributes:
        name: Of the site, for messages.
        told: The axes, as the user told them; "" if he did not.
        fixed: "first" or "last", where a module of torch has its units; "" if none says.
        places: How many axes of places the module of torch takes; 0 if any number.
        kinds: "first" and "last", as the modules inside have their units, with their places.
        widths: Numbers of units of the modules inside.
        time_first: Whether the module has (T, B, D); None if that is not known.
        beside_first: Some module of the network has its units behind the samples.
        state: The tensor is a recurrent network's state, (layers, B, D).
    """

    name: str
    told: str = ""
    fixed: str = ""
    places: int = 0
    kinds: frozenset[tuple[str, int]] = frozenset()
    widths: frozenset[int] = frozenset()
    time_first: bool | None = False
    beside_first: bool = True
    state: bool = False

    def of(self, x: Tensor) -> str:
        """Return the axes of a tensor.

        Raises:
            SiteError: They are not known, or it has others than were told.
        """
        if self.told:
            if len(self.told) != x.dim():
                raise SiteError(
                    f"{self.name} was told to have the axes {self.told}, got shape {tuple(x.shape)}"
                )
            return self.told
        if x.dim() < 2 or x.dim() > 6:
            raise self._unknown(x, "rows need an axis of samples and one of units")
        if x.dim() == 2:
            return "BD"
        if self.state:
            return "TBD" if x.dim() == 3 else _letters("last", x.dim())
        side = self.fixed or self._by_width(x)
        if self.fixed and self.places and x.dim() != self.places + 2:
            raise self._unknown(x, f"with {self.places + 2} axes it would have samples")
        if side == "first" or x.dim() > 3:
            return _letters(side, x.dim())
        if self.time_first is None:
            raise self._unknown(x, "a module beside it reads (token, sample, width)")
        return "TBD" if self.time_first else "BTD"

    def check_samples(self, x: Tensor, axes: str, batch: int) -> None:
        """Refuse rows of a tensor whose samples are not those of the batch.

        Windows of an image, tokens that were flattened into the samples, or a batch of another
        order would be counted as samples of their own.

        Args:
            x: The tensor.
            axes: Its axes.
            batch: Number of samples of the running pass; 0 if it is not known.
        """
        found = x.shape[axes.index("B")]
        counted_by_tokens = self.time_first is not False or "T" in axes[:1]
        if self.told or counted_by_tokens or not batch or found == batch:
            return
        raise SiteError(
            f"rows of {self.name} need an axis that counts the {batch} samples, got {found} on "
            f"axis {axes.index('B')} of shape {tuple(x.shape)}: read a module before they were "
            "regrouped"
        )

    def _by_width(self, x: Tensor) -> str:
        """Return where the units are, by the widths and kinds of the modules inside."""
        first, last = x.shape[1] in self.widths, x.shape[-1] in self.widths
        fitting = {side for side, places in self.kinds if places in (0, x.dim() - 2)}
        whole = len({side for side, _ in self.kinds}) == 1 and len(fitting) == 1
        if first != last and not (whole and fitting != {"first" if first else "last"}):
            return "first" if first else "last"
        if first == last and whole:
            return fitting.pop()
        if x.dim() == 3 and not (first or last or self.beside_first):
            return "last"
        asked = "several axes could hold its units" if first or last else "no axis is as wide as"
        inside = " a module inside" if not (first or last) else ""
        raise self._unknown(x, asked + inside)

    def _unknown(self, x: Tensor, reason: str) -> SiteError:
        return SiteError(
            f"which axes of {self.name} are samples, places and units is not known for shape "
            f"{tuple(x.shape)}: {reason}; say it, as in ak.open(net, axes={{{self.name!r}: "
            f"{'BYXC' if x.dim() == 4 else 'BTD'!r}}})"
        )


class AxesByModule:
    """Finds what is known of the axes of a network's modules.

    Args:
        module: The network.
        told: Axes by site name or pattern, the first that fits counts.

    Raises:
        SiteError: What was told is no axes.
    """

    def __init__(self, module: nn.Module, told: Mapping[str, str] | None = None) -> None:
        """Check what was told."""
        self._module, self._told = module, dict(told or {})
        self._known: dict[str, tuple[frozenset[tuple[str, int]], frozenset[int]]] = {}
        for name, axes in self._told.items():
            _check_told(name, axes)

    def at(self, name: str, path: str, item: tuple[int | str, ...]) -> Axes:
        """Return what is known of the tensors of a module, or of an item of what it returns."""
        told = next((a for pattern, a in self._told.items() if fnmatchcase(name, pattern)), "")
        module = submodule(self._module, path)
        state = isinstance(module, _RECURRENT) and bool(item) and item[0] == 1
        fixed, places = _fixed(module)
        kinds, widths = (frozenset(), frozenset()) if fixed else self._nearest(path)
        time_first = self._is_time_first(path)
        beside_first = any(side == "first" for side, _ in self._inside("")[0])
        return Axes(name, told, fixed, places, kinds, widths, time_first, beside_first, state)

    def _nearest(self, path: str) -> tuple[frozenset[tuple[str, int]], frozenset[int]]:
        """Return kinds and widths inside a module, else before it or around it."""
        while True:
            found = self._inside(path)
            if found[1] or found[0]:
                return found
            before = self._before(path)
            if before is not None:
                return before
            if not path:
                return frozenset(), frozenset()
            path = path.rpartition(".")[0]

    def _inside(self, path: str) -> tuple[frozenset[tuple[str, int]], frozenset[int]]:
        if path not in self._known:
            self._known[path] = _evidence(submodule(self._module, path))
        return self._known[path]

    def _before(self, path: str) -> tuple[frozenset[tuple[str, int]], frozenset[int]] | None:
        """Return the same of what stands before a module without weights in a `Sequential`."""
        base, _, own = path.rpartition(".")
        parent = submodule(self._module, base)
        if not path or not isinstance(parent, nn.Sequential):
            return None
        names = [name for name, _ in parent.named_children()]
        for name in reversed(names[: names.index(own) + 1]):
            child = submodule(parent, name)
            found = self._inside(f"{base}.{name}".lstrip("."))
            if found[0] or found[1]:
                return found
            if not _is_elementwise(child):
                return None
        return None

    def _is_time_first(self, path: str) -> bool | None:
        """Return whether a module has (T, B, D); None where others of the network do, unclear."""
        parts = path.split(".") if path else []
        for end in range(len(parts), -1, -1):
            module = submodule(self._module, ".".join(parts[:end]))
            if isinstance(module, _SEQUENCE):
                return not _batch_first(module)
        return self._elsewhere

    @cached_property
    def _elsewhere(self) -> bool | None:
        """Return None if some module of the network has (T, B, D), else False."""
        sequences = (m for m in self._module.modules() if isinstance(m, _SEQUENCE))
        return None if any(not _batch_first(m) for m in sequences) else False


def _check_told(name: str, axes: str) -> None:
    letters = [*axes]
    units = [a for a in letters if a in UNITS]
    places = [a for a in letters if a in PLACES]
    known = len(units) + len(places) + 1 == len(letters) and letters.count("B") == 1
    if not known or len({*letters}) != len(letters) or not units or {"C", "D"} <= {*units}:
        raise SiteError(
            "axes are letters, one for each axis: B, then any of T, Z, Y, X for places, and D (or "
            f"C, or H and K) for units, in the tensor's order, got {axes!r} for {name!r}"
        )


def _letters(side: str, num_axes: int) -> str:
    places = PLACES[-(num_axes - 2) :] if num_axes > 3 else "T"
    return f"BC{places}" if side == "first" else f"B{places}C"


def _batch_first(module: nn.Module) -> bool:
    """Return a sequence module's own `batch_first`, or that of the first one inside."""
    own = (getattr(m, "batch_first", None) for m in module.modules())
    return bool(next((b for b in own if b is not None), True))


def _is_torch_own(module: nn.Module) -> bool:
    """Say whether a module computes what torch's class of its name does."""
    return _home(module).startswith("torch.")


def _home(module: nn.Module) -> str:
    """Return where a module's `forward` is written; "" for scripted ones, which hide it."""
    if isinstance(module, torch.jit.ScriptModule):
        return ""
    return str(type(module).forward.__module__)


def _fixed(module: nn.Module) -> tuple[str, int]:
    """Return where a module of torch has its units, and how many places it takes (0: any)."""
    if not _is_torch_own(module):
        return "", 0
    own = [c.__name__ for c in type(module).__mro__ if c.__module__.startswith("torch.")]
    for name in own:
        if name[-2:] in ("1d", "2d", "3d"):
            pair = name == "BatchNorm1d"  # it takes (B, C), too
            return "first", 0 if pair else int(name[-2])
        if name in _FIRST:
            return "first", 0
        if name in _LAST:
            shape = getattr(module, "normalized_shape", (0,))
            return ("last", 0) if len(shape) == 1 else ("", 0)
    return ("last", 0) if isinstance(module, _SEQUENCE) else ("", 0)


def _evidence(module: nn.Module) -> tuple[frozenset[tuple[str, int]], frozenset[int]]:
    """Return kinds and widths of all modules inside, the module itself among them."""
    kinds: set[tuple[str, int]] = set()
    widths: set[int] = set()
    for inner in module.modules():
        fixed = _fixed(inner)
        if fixed[0]:
            kinds.add(fixed)
            widths |= _widths(inner)
        else:
            # what torch does not document may hold its units on either side
            widths |= {n for p in inner.parameters(recurse=False) for n in p.shape}
    return frozenset(kinds), frozenset(widths - {0, 1})


def _widths(module: nn.Module) -> set[int]:
    names = ("in_channels", "out_channels", "num_features", "num_channels", "in_features",
             "out_features", "embedding_dim", "input_size", "hidden_size", "embed_dim")  # fmt: skip
    found = {n for name in names if isinstance(n := getattr(module, name, None), int)}
    return found | {*(getattr(module, "normalized_shape", None) or ())}


def _is_elementwise(module: nn.Module) -> bool:
    return _home(module) in (
        "torch.nn.modules.activation",
        "torch.nn.modules.dropout",
    ) or isinstance(module, nn.Identity)
