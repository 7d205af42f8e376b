"""Finds a network's stacks: by its architecture's table, else by structure, else none.

`find` looks below wrappers (PEFT, a user's own module) for the network of transformers inside.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from actkit.core.run.context import ForwardContext
from actkit.core.run.taps import Tap
from actkit.core.sites.architectures import tables
from actkit.core.sites.dry_run import watched
from actkit.core.sites.infer import found_stack
from actkit.core.sites.readable import tokens
from actkit.core.sites.site import Place, Site, Stack, stack_sites

REFUSALS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
"""What a network of which nothing is known may raise when it is handed two rows of tokens."""

INPUTS = ("input_ids", "pixel_values", "input_values", "input_features")
"""Main inputs of which two rows can be made up."""

MOST_KINDS = 3
"""Classes of blocks that one stack may have: hybrids have two."""

MOST_TRIED = 3
"""Lists of blocks in which a stream is looked for, the longest first."""


@dataclass(frozen=True)
class Network:
    """What is known of a network's structure.

    Attributes:
        sites: All sites of its stacks, refused ones included.
        roots: Path of each stack's module, by the stack's name.
        prefixes: Prefixes that may be left out, since there is one stack.
        note: How the points were found.
        tokens_first: Paths of the lists of blocks below which tensors are (token, batch, ...).
    """

    sites: tuple[Site, ...] = ()
    roots: dict[str, str] | None = None
    prefixes: tuple[str, ...] = ()
    note: str = "no table for this network: sites are module paths, path:in and path:out"
    tokens_first: tuple[str, ...] = ()


def find(module: nn.Module) -> Network:
    """Return what is known of a network's structure."""
    named = ((p, m) for p, m in module.named_modules() if hasattr(type(m), "base_model_prefix"))
    path, inner = next(named, ("", module))
    config: Any = getattr(inner, "config", None)
    table = tables().get(str(getattr(config, "model_type", "")))
    above = f"{path}." if path else ""
    if table is None:
        return _by_structure(inner, above)
    base, stacks = _stacks(module, inner, above, table(config))
    if not stacks:
        return Network()
    has_head = _has_head(inner)
    sites = tuple(site for s in stacks for site in stack_sites(s, base))
    if not has_head:
        sites = tuple(_headless(s) for s in sites)
    roots = {s.name: f"{base}{s.root}".rstrip(".") for s in stacks}
    prefixes = tuple(s.alias for s in stacks if s.alias)
    return Network(sites, roots, prefixes, f"points from the table of {config.model_type}")


def _stacks(
    module: nn.Module, inner: nn.Module, above: str, told: Sequence[Stack]
) -> tuple[str, list[Stack]]:
    """Return the base model's path, and those of a table's stacks that it has.

    Mostly the base model is the child that the network's prefix names. But a base model may have a
    child of that name itself (DINOv3), or be a child of another name (Llama 4's language model).
    """
    prefix = getattr(inner, "base_model_prefix", "")
    named = [prefix] if prefix and hasattr(inner, prefix) else []
    children = [name for name, _ in inner.named_children()]
    for base in (*(f"{above}{n}." for n in named), above, *(f"{above}{n}." for n in children)):
        stacks = [s for s in told if _present(module, f"{base}{s.root}".rstrip("."), s)]
        if stacks:
            return base, stacks
    return above, []


def _by_structure(network: nn.Module, base: str) -> Network:
    """Return what a network without a table shows of its structure when it reads two rows."""
    lists = _block_lists(network) if _reads(network) else {}
    reason = ""
    for path in sorted(lists, key=lambda p: -len(lists[p]))[:MOST_TRIED]:
        number = len(lists[path])
        try:
            stack = found_stack(network, f"{path}.{{}}", number)
        except REFUSALS as error:
            reason = reason or (str(error) or type(error).__name__).splitlines()[0]
            continue
        if others := _alike(lists, path):
            kind = type(lists[path][0]).__name__
            reason = reason or f"{kind}s stand at {path} and at {', '.join(others)}"
            continue
        sites = tuple(stack_sites(stack, base))
        points = ", ".join(dict.fromkeys(s.point for s in sites if not s.refused))
        kinds = " and ".join(dict.fromkeys(type(m).__name__ for m in lists[path]))
        note = f"found by structure: {number} blocks of {kinds} at {base}{path} with {points}"
        return Network(sites, {"": base.rstrip(".")}, (), note)
    note = f"{Network.note}; found no points by structure: {reason}" if reason else Network.note
    turned = tuple(f"{base}{p}" for p in _tokens_first(network))
    return Network(note=note, tokens_first=turned)


def _tokens_first(network: Any) -> list[str]:
    """Return the lists of modules whose items were seen to return (token, batch, ...) tensors."""
    if getattr(network, "main_input_name", "") != "input_ids":
        return []
    try:
        ids = tokens(network)
    except ValueError:
        return []  # its embeddings are of no known kind: nothing is claimed
    feed = {"input_ids": ids}
    if getattr(getattr(network, "config", None), "is_encoder_decoder", False):
        feed["decoder_input_ids"] = ids[:, 1:]
    shapes = {(x.shape[1], x.shape[0]) for x in feed.values()}
    found: dict[str, None] = {}

    def look(site: Site, x: Tensor, _: ForwardContext) -> None:
        if x.dim() == 3 and tuple(x.shape[:2]) in shapes:
            found[site.name] = None

    lists = [p for p, m in network.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    taps = [Tap(Site(p, place=Place(f"{p}.0", "out")), read=look) for p in lists]
    try:
        watched(network, taps, feed)
    except REFUSALS:
        return []  # it cannot be called so: nothing is claimed
    return [*found]


def _block_lists(network: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the lists of blocks, outermost ones only, by path.

    In a network of several kinds of inputs only those of its language model are looked at.
    """
    config: Any = getattr(network, "config", None)
    reader = getattr(config, "get_text_config", None)
    text = reader() if callable(reader) else config
    own = (p for p, m in network.named_modules() if getattr(m, "config", None) is text)
    start, found = next(own, ""), dict[str, nn.ModuleList]()
    for path, module in network.get_submodule(start).named_modules(prefix=start):
        inside = any(path.startswith(f"{p}.") for p in found)
        if isinstance(module, nn.ModuleList) and not inside and _are_blocks(module):
            found[path] = module
    return found


def _alike(lists: Mapping[str, nn.ModuleList], path: str) -> list[str]:
    """Return the other lists with blocks of a class that a list has.

    Of several stacks of one kind (BLT's patcher, encoder and decoder) none is known to be the one
    whose end the network returns.
    """
    own = {type(m) for m in lists[path]}
    return [p for p, blocks in lists.items() if p != path and own & {type(m) for m in blocks}]


def _are_blocks(modules: nn.ModuleList) -> bool:
    """Say whether a list holds modules that have children, of one class or a few."""
    few = len({type(m) for m in modules}) <= MOST_KINDS
    return few and len(modules) > 0 and all(any(True for _ in m.children()) for m in modules)


def _reads(network: Any) -> bool:
    """Say whether a network is made to be called with one of ids, images or sound alone."""
    taken = inspect.signature(network.forward).parameters
    config = getattr(network, "config", None)
    # DiffusionGemma is no encoder-decoder by its configuration, and makes up what its decoder reads
    if getattr(config, "is_encoder_decoder", False) or "decoder_input_ids" in taken:
        return False
    if hasattr(type(network), "base_model_prefix"):
        return network.main_input_name in INPUTS
    needed = [
        p
        for p in taken.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) == 1 and any(isinstance(m, nn.Embedding) for m in network.modules())


def _present(module: nn.Module, root: str, stack: Stack) -> bool:
    """Say whether the network has the stack (a text model of CLIP has no vision tower)."""
    try:
        module.get_submodule(".".join(filter(None, (root, stack.blocks.format(0)))))
    except AttributeError:
        return False
    return True


def _has_head(network: Any) -> bool:
    """Say whether the network has an output head; one for sound has no *input* embeddings."""
    found = getattr(network, "get_output_embeddings", lambda: None)()
    return found is not None or isinstance(getattr(network, "lm_head", None), nn.Module)


def _headless(site: Site) -> Site:
    if site.point != "logits" or site.refused:
        return site
    reason = "this network has no output head"
    return Site(site.name, refused=reason, stack=site.stack, point=site.point)
