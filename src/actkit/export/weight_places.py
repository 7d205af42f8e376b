"""Which weights stand behind a site: the module that writes its tensor, or those that read it.

What an edit does to a tensor y, M y + c, is put into the weights W, b of a map that writes it,
M W and M b + c, or that reads it, W M and b + W c; into the gain and bias of a norm that writes
it, if M is diagonal; or into the rows of an embedding.

Shapes: N rows, D width of an output, I of an input, F entries of a site's rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from actkit.core.edits.edit import Edit
from actkit.core.edits.operation import AffineForm
from actkit.core.edits.where import Where
from actkit.core.errors import EditError
from actkit.core.run.context import ForwardContext
from actkit.core.sites.site import Place, Site
from actkit.model import Model

STREAM = ("resid_pre", "resid_mid", "resid_post")
NORMS = ("LayerNorm", "RMSNorm")
"""How the names of norms' classes end."""
_LOOK_UP = nn.Embedding.forward


@dataclass(frozen=True)
class Target:
    """A module whose weights an edit of a site goes into.

    Attributes:
        path: Of the module.
        side: "out" if the module writes the site, "in" if it reads it.
        index: (F,) which of its outputs or inputs the site's entries are.
        factor: What the module multiplies its rows by, if it is an embedding.
    """

    path: str
    side: Literal["in", "out"]
    index: Tensor
    factor: float = 1.0


@dataclass
class Weights:
    """A module's weights in float64, while edits are put into them.

    Attributes:
        module: The module; it stays as it is.
        weight: (D, I) of a map, (V, D) of an embedding, (D,) of a norm.
        bias: (D,); zeros where it has none.
        changed: Whether weight, and whether bias, are others than the module's.
    """

    module: Any
    weight: Tensor
    bias: Tensor
    changed: tuple[bool, bool] = (False, False)

    @classmethod
    def of(cls, module: Any) -> "Weights":
        """Copy a module's weights.

        Raises:
            EditError: They are not here, or are no floating-point numbers.
        """
        own: Tensor = module.weight
        if own.is_meta or not own.is_floating_point():
            raise EditError(
                f"weights to be changed must be plain numbers in memory, {type(module).__name__} "
                f"has {own.dtype} on {own.device}"
            )
        weight = own.detach().double().cpu()
        weight = weight.mT if is_turned(module) else weight
        width = weight.shape[-1] if isinstance(module, nn.Embedding) else weight.shape[0]
        bias = getattr(module, "bias", None)
        zeros = torch.zeros(width, dtype=torch.float64)
        return cls(module, weight, zeros if bias is None else bias.detach().double().cpu())

    def put(self, target: Target, edit: Edit, unit: tuple[int, ...]) -> None:
        """Change the weights as the edit changes the site."""
        if isinstance(self.module, nn.Embedding):
            self._into_rows(target.factor, edit, unit)
        elif self.weight.dim() == 1:
            self._into_norm(edit, unit)
        elif target.side == "out":
            self._behind(target.index, edit, unit)
        else:
            self._before(target.index, edit, unit)

    def _behind(self, index: Tensor, edit: Edit, unit: tuple[int, ...]) -> None:
        """Put in W' = M W and b' = M b + c."""
        weight_DI, bias_D = self.weight, self.bias.clone()
        if form_of(edit).linear != "identity":
            weight_DI = weight_DI.clone()
            weight_DI[index] = _linear(edit, weight_DI[index].mT, unit).mT
        bias_D[index] = _of(edit, bias_D[index][None], unit)[0]
        self._keep(weight_DI, bias_D)

    def _before(self, index: Tensor, edit: Edit, unit: tuple[int, ...]) -> None:
        """Put in W' = W M and b' = b + W c."""
        weight_DI = self.weight
        constant_F = _of(edit, torch.zeros(1, len(index), dtype=torch.float64), unit)[0]
        bias_D = self.bias + weight_DI[:, index] @ constant_F
        if form_of(edit).linear != "identity":
            weight_DI = weight_DI.clone()
            weight_DI[:, index] = _linear(_turned(edit), weight_DI[:, index], unit)
        self._keep(weight_DI, bias_D)

    def _into_norm(self, edit: Edit, unit: tuple[int, ...]) -> None:
        """Put in g' = M g and b' = M b + c, where M is diagonal; g is the weight, or 1 more."""
        less = _gain_offset(self.module)
        gain_D = self.weight + less
        weight_D = _linear(edit, gain_D[None], unit)[0] - less
        self._keep(weight_D, _of(edit, self.bias[None], unit)[0])

    def _into_rows(self, factor: float, edit: Edit, unit: tuple[int, ...]) -> None:
        """Put in E' = E M^T + c / factor, since the rows are multiplied by it afterwards."""
        self._keep(_of(edit, self.weight * factor, unit) / factor, self.bias)

    def _keep(self, weight: Tensor, bias: Tensor) -> None:
        """Take new weights, and note what is new."""
        weight_new, bias_new = self.changed
        same = weight is self.weight or torch.equal(weight, self.weight)
        weight_new = weight_new or not same
        bias_new = bias_new or not torch.equal(bias, self.bias)
        self.weight, self.bias, self.changed = weight, bias, (weight_new, bias_new)


class Places:
    """Finds the modules behind the sites of a network, in one run of it."""

    def __init__(self, model: Model, inputs: Any) -> None:
        """Read what flows at every point, and what every map, norm and embedding handles."""
        self._model = model
        named = model.module.named_modules()
        self.modules = {p: m for p, m in named if p and is_holder(m)}
        self._values: dict[str, Tensor] = {}
        self._batch = model.encode(inputs)
        sites = [
            Site(f"{path}:{side}", place=Place(path, side))
            for path in self.modules
            for side in ("in", "out")
        ]
        self._read([*sites, *(s for s in model.sites() if s.place.side in ("in", "out"))])

    def options(self, site: Site, edit: Edit) -> Iterator[list[Target]]:
        """Yield sets of modules that an edit of a site may go into, likelier ones first."""
        if site.place.side not in ("in", "out"):
            return
        stream = site.point in STREAM
        if site.place.side == "out" or stream:
            yield from ([t] for t in self._writers(site))
        if site.point == "resid_pre" and site.layer == 0 and not form_of(edit).constant:
            yield from self._summands(site)
        if stream and form_of(edit).linear == "identity":
            for before in self.before(site):
                yield from self.options(before, edit)
        if not stream and (readers := self._readers(site)):
            yield readers
        if site.place.side == "in" and not stream:
            yield from ([t] for t in self._writers(site))

    def before(self, site: Site) -> list[Site]:
        """Return the sites that are added to the stream last before a point of it."""
        points = {"resid_post": ("mlp_out", "attn_out"), "resid_mid": ("attn_out",)}
        layer = site.layer or 0
        if site.point == "resid_pre":
            found = [self.at(site, f"resid_post.{layer - 1}" if layer else "embeddings")]
        else:
            found = [self.at(site, f"{point}.{layer}") for point in points[site.point]]
        between = self.at(site, f"resid_mid.{layer}")
        if site.point == "resid_post" and between is not None:
            found = found[:1]  # the MLP reads what attention has added
        return [s for s in found if s is not None]

    def at(self, site: Site, name: str) -> Site | None:
        """Return another site of the same stack, None if the network lacks it."""
        stack = site.stack.name if site.stack is not None else ""
        full = f"{stack}.{name}" if stack else name
        found = [s for s in self._model.sites(full, refused=True) if not s.refused]
        return found[0] if found else None

    def _writers(self, site: Site) -> list[Target]:
        """Return the modules that return the site's tensor, the site's own first."""
        own = self.modules.get(site.place.path)
        if own is not None and site.place.side == "out":
            index = _index(site, self._width(site.place.path, "out"))
            return [] if index is None else [self._writer(site.place.path, index)]
        same = (path for path in self.modules if self._same(site, f"{path}:out"))
        return [self._writer(path) for path in same]

    def _writer(self, path: str, index: Tensor | None = None) -> Target:
        """Return a module as the one that writes a site, with all its outputs if none are told."""
        index = torch.arange(self._width(path, "out")) if index is None else index
        module = self.modules[path]
        scaled = isinstance(module, nn.Embedding) and type(module).forward is not _LOOK_UP
        return Target(path, "out", index, self._row_factor(path) if scaled else 1.0)

    def _row_factor(self, path: str) -> float:
        """Return how much longer a row is that an embedding of another kind returned."""
        rows_VD = self.modules[path].weight.detach().double().cpu()
        returned_D = self._values[f"{path}:out"].flatten(0, -2)[0].double().cpu()
        lengths_V = rows_VD.norm(dim=-1)
        nearest = int((rows_VD @ returned_D / lengths_V.clamp_min(1e-30)).argmax())
        return float(returned_D.norm() / lengths_V[nearest])

    def _summands(self, site: Site) -> Iterator[list[Target]]:
        """Yield the embeddings, of words and positions, whose sum the stream begins with."""
        tables = [p for p, m in self.modules.items() if isinstance(m, nn.Embedding)]
        values = [self._values[f"{p}:out"] for p in tables if f"{p}:out" in self._values]
        x = self._values.get(site.canonical)
        fits = x is not None and values and all(v.shape[-1] == x.shape[-1] for v in values)
        if not fits or x is None or any(v.dim() > x.dim() for v in values):
            return
        whole = torch.zeros_like(x)
        for value in values:
            whole = whole + value
        if torch.allclose(whole, x, rtol=1e-5, atol=1e-6):
            yield [self._writer(p) for p in tables]

    def _readers(self, site: Site) -> list[Target]:
        """Return the maps inside the site's module that read its tensor; all that do."""
        path = site.place.path
        if site.place.side == "out":
            inside = [p for p in self.modules if is_map(self.modules[p])]
        elif path in self.modules:
            index = _index(site, self._width(path, "in"))
            fits = index is not None and is_map(self.modules[path])
            return [Target(path, "in", index)] if fits and index is not None else []
        else:
            inside = [p for p in self.modules if p.startswith(f"{path}." if path else "")]
        return [
            Target(p, "in", torch.arange(self._width(p, "in")))
            for p in inside
            if is_map(self.modules[p]) and self._same(site, f"{p}:in")
        ]

    def _same(self, site: Site, name: str) -> bool:
        """Say whether a module's tensor is the site's, bit by bit."""
        if site.canonical not in self._values:
            self._read([site])
        x, own = self._values.get(site.canonical), self._values.get(name)
        if x is None or own is None or x.numel() != own.numel() or x.dim() < 2:
            return False
        fits = x.flatten(2).shape[-1] == own.shape[-1] if x.dim() > 2 else x.shape == own.shape
        return fits and torch.equal(x.reshape(-1), own.reshape(-1))

    def _width(self, path: str, side: str) -> int:
        found = self._values.get(f"{path}:{side}")
        return 0 if found is None else found.shape[-1]

    def _read(self, sites: list[Site]) -> None:
        def keep(site: Site, x: Tensor, _: ForwardContext) -> None:
            self._values[site.canonical] = x.detach().clone()

        self._model.stream(self._batch, sites, keep)


def is_map(module: nn.Module) -> bool:
    """Say whether a module is a linear map: a Linear, or transformers' turned Conv1D."""
    return isinstance(module, nn.Linear) or is_turned(module)


def is_turned(module: nn.Module) -> bool:
    """Say whether a map keeps its weight as (I, D)."""
    return type(module).__name__ == "Conv1D" and not isinstance(module, nn.Conv1d)


def is_holder(module: nn.Module) -> bool:
    """Say whether a module has weights that an edit of what it writes may go into."""
    gain = getattr(module, "weight", None)
    norm = type(module).__name__.endswith(NORMS) and isinstance(gain, Tensor) and gain.dim() == 1
    return is_map(module) or norm or isinstance(module, nn.Embedding)


def refusal(module: Any, target: Target, edit: Edit, may_have_bias: Callable[[str], bool]) -> str:
    """Return why an edit cannot go into a module's weights, "" if it can."""
    kind, path, form = type(module).__name__, target.path, form_of(edit)
    if isinstance(module, nn.Embedding):
        return ""
    if not is_map(module) and form.linear not in ("identity", "diagonal"):
        return f"{path} is a norm ({kind}), whose weight can only scale single units"
    if form.constant and getattr(module, "bias", None) is None and not may_have_bias(path):
        return f"{path} ({kind}) has no bias that would be saved, and no setting gives it one"
    return ""


def form_of(edit: Edit, site: str | None = None) -> AffineForm:
    """Return the affine form of what an edit does.

    Args:
        edit: The edit.
        site: The name of the one of its sites that is spoken of.

    Raises:
        EditError: It does something else than M y + c.
    """
    form = edit.operation.affine_form()
    if form is None:
        raise EditError(
            f"only add, scale, project_out and affine can be lowered, got {edit.operation.name} "
            f"at {site or edit.site}"
        )
    return form


def _index(site: Site, width: int) -> Tensor | None:
    """Return which entries of a module's last axis the site's entries are, None if unknown."""
    layout = site.place.layout
    if layout.channels_first or not width:
        return None
    x = torch.arange(width)
    view = layout.get(x[None] if layout.flat else x[None, None], 1)
    return (view if site.head is None else view[:, :, site.head]).reshape(-1)


def _of(edit: Edit, x_NF: Tensor, unit: tuple[int, ...]) -> Tensor:
    """Return what an edit that acts everywhere makes of rows, (N, F)."""
    x = x_NF.reshape(1, len(x_NF), *unit)
    edit.check_width(x.shape[-1])
    where = Where(heads=edit.where.heads, units=edit.where.units)
    ready = Edit(edit.site, edit.operation.like(x, "BTD"), where)
    return ready.write(x, ForwardContext()).reshape(x_NF.shape)


def _linear(edit: Edit, x_NF: Tensor, unit: tuple[int, ...]) -> Tensor:
    """Return M x for rows x, without the constant."""
    if form_of(edit).linear == "identity":
        return x_NF
    return _of(edit, x_NF, unit) - _of(edit, torch.zeros_like(x_NF[:1]), unit)


def _turned(edit: Edit) -> Edit:
    """Return the edit whose M is the transpose."""
    turned = form_of(edit).transposed
    return edit if turned is None else replace(edit, operation=turned)


def _gain_offset(norm: Any) -> float:
    """Return what a norm adds to its weight: with a weight of zeros it returns zeros, or not."""
    weight = norm.weight
    x = torch.linspace(-1, 2, len(weight)).to(weight)[None, None]
    zeros = {"weight": torch.zeros_like(weight)}
    if getattr(norm, "bias", None) is not None:
        zeros["bias"] = torch.zeros_like(norm.bias)
    with torch.no_grad():
        returned = torch.func.functional_call(norm, zeros, (x,))
    return 1.0 if returned.any() else 0.0
