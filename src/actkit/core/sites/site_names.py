"""From what a user calls a site to the site: names, patterns, heads, aliases and module paths."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from torch import nn

from actkit.core.errors import SiteError
from actkit.core.sites.axes import AxesByModule
from actkit.core.sites.layout import Layout
from actkit.core.sites.reach import reached_modules, submodule, why_not_reached
from actkit.core.sites.site import POINTS, Place, Site, Sites

ALIASES = {
    "hook_embed": ("embeddings",),
    "ln_final.hook_out": ("final_norm",),
    "unembed.hook_out": ("logits",),
    "hook_resid_pre": ("resid_pre",),
    "hook_resid_mid": ("resid_mid",),
    "hook_resid_post": ("resid_post",),
    "hook_attn_in": ("attn_in",),
    "hook_mlp_in": ("mlp_in",),
    "hook_attn_out": ("attn_out",),
    "hook_mlp_out": ("mlp_out",),
    "attn.hook_q": ("q",),
    "attn.hook_k": ("k",),
    "attn.hook_v": ("v",),
    "attn.hook_z": ("z",),
    "attn.hook_attn_scores": ("attn_scores",),
    "attn.hook_pattern": ("attn_probs",),
    "mlp.hook_pre": ("mlp_gate", "mlp_pre"),
    "mlp.hook_pre_linear": ("mlp_pre",),
    "mlp.hook_post": ("mlp_hidden",),
}
"""TransformerLens names; where two are given, the first that the network has."""

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_BLOCKS = re.compile(r"blocks\.([^.]+)\.(.+)")
_LAYER = re.compile(r"(?:[^.:]+\.)*?(?P<point>[a-z_]+)\.(?P<layer>\d+)(?:\.\d+)?")
_HEAD = re.compile(r"(.+\.\d+)\.(\d+)")
_NAMED = re.compile(r"((?:.+\.)?([a-z_]+))\.(\d+)(\.\d+)?")
_SUFFIX = re.compile(r"(.*:(?:in|out))((?:\.\w+)*(?:#\d+)?)")
_PATH = re.compile(r"(?P<path>[^:]*):(?P<side>in|out)(?P<items>(\.\w+)*)(#(?P<call>\d+))?")


def plain_name(name: str) -> str:
    """Return actkit's own name for an alias that means one point in every network, else `name`.

    Example:
        >>> plain_name("blocks.3.hook_resid_post"), plain_name("resid_post.3")
        ('resid_post.3', 'resid_post.3')
    """
    match = _BLOCK.fullmatch(name)
    points = ALIASES.get(match[2] if match else name, ())
    if len(points) != 1:
        return name
    return f"{points[0]}.{match[1]}" if match else points[0]


def layer_of(name: str) -> int:
    """Return the block that the name of a point speaks of, an alias included.

    Raises:
        SiteError: The name is no point of one block.

    Example:
        >>> layer_of("encoder.z.4.1"), layer_of("blocks.3.mlp.hook_pre")
        (4, 3)
    """
    match = _BLOCK.fullmatch(name)
    if match is not None and match[2] in ALIASES:
        return int(match[1])
    found = _LAYER.fullmatch(name)
    if found is None or found["point"] not in POINTS:
        raise SiteError(f"a point of one block is needed, such as resid_post.3, got {name!r}")
    return int(found["layer"])


def points_of(name: str) -> tuple[str, ...]:
    """Return the points that a site's name can mean, with its stack: several for some aliases.

    What is no whole point of a block, such as a single head, has none.

    Example:
        >>> points_of("encoder.z.3"), points_of("blocks.3.mlp.hook_pre"), points_of("z.3.7")
        (('encoder.z',), ('mlp_gate', 'mlp_pre'), ())
    """
    alias, found = _BLOCK.fullmatch(name), _NAMED.fullmatch(name)
    if alias is not None:
        return ALIASES.get(alias[2], ())
    return (found[1],) if found is not None and found[2] in POINTS and not found[4] else ()


class SiteNames:
    """All sites of one network, found by what users write."""

    def __init__(
        self,
        module: nn.Module,
        sites: Iterable[Site],
        prefixes: Iterable[str],
        axes: Mapping[str, str] | None = None,
        tokens_first: Iterable[str] = (),
    ) -> None:
        """Index the sites of the network's tables; `prefixes` may stand in front of their names.

        Args:
            module: The network.
            sites: All sites of its tables.
            prefixes: What may stand in front of their names.
            axes: What the user told of the axes of modules' tensors, by site name or pattern.
            tokens_first: Paths below which tensors are (token, batch, ...).
        """
        self._tokens_first = tuple(f"{p}." for p in tokens_first)
        self._module, self._axes = module, AxesByModule(module, axes)
        self._sites = {s.name: s for s in sites}
        self._prefixes = tuple(f"{p}." for p in prefixes if p)

    def listed(self, pattern: str | None, refused: bool) -> Sites:
        """Return the sites that match a pattern; all if it is None."""
        if pattern is not None and not refused:
            return Sites(self.find(pattern))
        known = [
            s
            for s in self._sites.values()
            if (refused or not s.refused) and (pattern is None or fnmatchcase(s.name, pattern))
        ]
        return Sites(known if self._sites else self._modules("*:out"))

    def find(self, names: str | Site | Sequence[str | Site]) -> list[Site]:
        """Return the sites that names and patterns mean, in their order, each once."""
        found: dict[str, Site] = {}
        for name in _names(names):
            for site in self._find(name):
                found.setdefault(site.name, site)
        for site in found.values():
            if reason := why_not_reached(self._module, site.place.path):
                raise SiteError(f"{site.name} cannot be met: {reason}")
        return list(found.values())

    def _find(self, name: str) -> list[Site]:
        if any(c in name for c in "*?["):
            return self._matching(name)
        site = self._sites.get(name) or self._renamed(name) or self._head(name)
        if site is None and ":" in name:
            site = self._path(name)
        if site is None:
            raise SiteError(self._unknown(name))
        if site.refused:
            raise SiteError(f"this network has no {name}: {site.refused}")
        return [site]

    def _matching(self, pattern: str) -> list[Site]:
        prefix = next((p for p in self._prefixes if pattern.startswith(p)), "")
        bare = pattern.removeprefix(prefix)
        every = [s for s in self._sites.values() if fnmatchcase(s.name, bare)]
        found = self._candidates(pattern, bare, every)
        if every and not found:
            raise SiteError(f"this network has no {pattern}: {every[0].refused}")
        if not found:
            raise SiteError(self._unknown(pattern))
        return [replace(s, name=prefix + s.name) for s in found] if prefix else found

    def _candidates(self, pattern: str, bare: str, every: list[Site]) -> list[Site]:
        """Return what a pattern could mean: modules by path, else sites, single heads, aliases."""
        own = [s for s in every if not s.refused]
        found = self._modules(pattern) if ":" in pattern else own
        return found or self._heads(bare) or self._aliased(bare)

    def _heads(self, pattern: str) -> list[Site]:
        """Return single heads, `z.10.*` or `z.*.3`."""
        base, _, head = pattern.rpartition(".")
        return [
            self._one_head(site, h)
            for site in self._sites.values()
            if fnmatchcase(site.name, base) and not site.refused and len(site.shape or ()) == 4
            for h in range(_num_heads(site))
            if fnmatchcase(str(h), head)
        ]

    def _aliased(self, pattern: str) -> list[Site]:
        """Return the sites of an alias in several blocks, `blocks.*.hook_resid_post`."""
        match = _BLOCKS.fullmatch(pattern)
        layers = [s.rpartition(".")[2] for s in self._sites if s.startswith("resid_post.")]
        found = [
            self._renamed(f"blocks.{layer}.{match[2]}")
            for layer in layers
            if match is not None and fnmatchcase(layer, match[1])
        ]
        return [s for s in found if s is not None and not s.refused]

    def _head(self, name: str) -> Site | None:
        match = _HEAD.fullmatch(name)
        site = self._sites.get(match[1]) if match else None
        if match is None or site is None or site.refused or len(site.shape or ()) != 4:
            return None
        if int(match[2]) >= _num_heads(site):
            raise SiteError(f"{site.name} has heads 0 to {_num_heads(site) - 1}, got {match[2]}")
        return self._one_head(site, int(match[2]))

    def _one_head(self, site: Site, head: int) -> Site:
        shape = site.shape or ()
        axis = 1 if "S" in site.axes else 2
        return replace(
            site, name=f"{site.name}.{head}", head=head, shape=shape[:axis] + shape[axis + 1 :]
        )

    def _renamed(self, name: str) -> Site | None:
        """Return the site behind a prefix that may be left out, or behind an alias."""
        for prefix in self._prefixes:
            if name.startswith(prefix):
                bare = name.removeprefix(prefix)
                site = self._sites.get(bare) or self._head(bare)
                return None if site is None else replace(site, name=name)
        match = _BLOCK.fullmatch(name)
        layer, hook = (f".{match[1]}", match[2]) if match else ("", name)
        sites = [self._sites.get(f"{p}{layer}") for p in ALIASES.get(hook, ())]
        known = [s for s in sites if s is not None]
        had = [s for s in known if not s.refused] or known
        return replace(had[0], name=name) if had else None

    def _path(self, name: str) -> Site:
        """Return the site of a module path with a side."""
        match = _PATH.fullmatch(name)
        if match is None:
            raise SiteError(
                f"a module's site is written path:in or path:out, with .i for an item of a tuple "
                f"and #n for its n-th call, got {name!r}"
            )
        try:
            submodule(self._module, match["path"])
        except AttributeError as error:
            raise SiteError(self._unknown(name)) from error
        items = tuple(int(i) if i.isdigit() else i for i in match["items"].split(".")[1:])
        call = None if match["call"] is None else int(match["call"])
        layout = Layout(tokens_first=match["path"].startswith(self._tokens_first))
        place = Place(match["path"], match["side"], items, layout, call=call, overwritten=True)
        known, own = self._axes.at(name, place.path, items), place.path
        others = tuple(p for p in self._paths[id(submodule(self._module, own))] if p != own)
        return Site(name, None, name, place=place, known=known, others=others)

    @cached_property
    def _paths(self) -> dict[int, list[str]]:
        """Return all paths of each module, by its identity."""
        found = defaultdict[int, list[str]](list)
        for path, module in self._module.named_modules(remove_duplicate=False):
            found[id(module)].append(path)
        return found

    def _modules(self, pattern: str) -> list[Site]:
        """Return the sites of the modules that match; lists and the like never run."""
        match = _SUFFIX.fullmatch(pattern)
        bare, suffix = match.groups() if match else (pattern, "")
        names = [
            f"{path}:{side}"
            for path, module in reached_modules(self._module)
            if path and type(module).forward is not nn.Module.forward
            for side in ("in", "out")
        ]
        return [self._path(n + suffix) for n in names if fnmatchcase(n, bare)]

    def _unknown(self, name: str) -> str:
        paths = [path for path, _ in self._module.named_modules() if path]
        bare = name.partition(":")[0]
        if bare in paths and ":" not in name:
            return f"unknown site {name!r}: a module's tensors are {name}:in and {name}:out"
        known = [n for n, s in self._sites.items() if not s.refused]
        near = get_close_matches(name, [*known, *(f"{p}:out" for p in paths)], n=3, cutoff=0.5)
        point = name.partition(".")[0]
        if point in POINTS and (same := [n for n in known if n.split(".")[0] == point]):
            return f"unknown site {name!r}; this network has {same[0]} to {same[-1]}"
        return f"unknown site {name!r}; nearest: {', '.join(near) or 'none is close'}"


def _num_heads(site: Site) -> int:
    number = (site.shape or ())[1 if "S" in site.axes else 2]
    return int(number)


def _names(given: Any) -> list[str]:
    """Return names as a list; a site is named by itself."""
    listed = [given] if isinstance(given, str | Site) or not isinstance(given, Iterable) else given
    names = [each.name if isinstance(each, Site) else each for each in listed]
    for name in names:
        if not isinstance(name, str):
            raise SiteError(f"sites are asked for by name or pattern, got {type(name).__name__}")
    return names
