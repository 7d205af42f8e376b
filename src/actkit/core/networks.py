"""Finds a network's stacks: by its architecture's table, else by structure, else none.

`find` looks below wrappers (PEFT, a user's own module) for the network of transformers inside.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from actkit.core.architectures import tables
from actkit.core.sites import Site, Stack, stack_sites
from actkit.core.structure import found_stack

REFUSALS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
"""What a network of which nothing is known may raise when it is handed two rows of tokens."""


@dataclass(frozen=True)
class Network:
    """What is known of a network's structure.

    Attributes:
        sites: All sites of its stacks, refused ones included.
        roots: Path of each stack's module, by the stack's name.
        prefixes: Prefixes that may be left out, since there is one stack.
        note: How the points were found.
    """

    sites: tuple[Site, ...] = ()
    roots: dict[str, str] | None = None
    prefixes: tuple[str, ...] = ()
    note: str = "no table for this network: sites are module paths, path:in and path:out"


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
    """Return what a network without a table shows of its structure when it reads tokens."""
    lists = _block_lists(network)
    if not lists or not _takes_tokens(network):
        return Network()
    path = max(lists, key=lambda p: len(lists[p]))
    number, kind = len(lists[path]), type(lists[path][0]).__name__
    try:
        stack = found_stack(network, f"{path}.{{}}", number)
    except REFUSALS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Network(note=f"{Network.note}; found no points by structure: {reason}")
    sites = tuple(stack_sites(stack, base))
    points = ", ".join(dict.fromkeys(s.name.partition(".")[0] for s in sites if not s.refused))
    note = f"found by structure: {number} blocks of {kind} at {base}{path} with {points}"
    return Network(sites, {"": base.rstrip(".")}, (), note)


def _block_lists(network: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the lists of blocks of one class, outermost ones only, by path.

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


def _are_blocks(modules: nn.ModuleList) -> bool:
    """Say whether a list holds modules of one class that have children."""
    return len({type(m) for m in modules}) == 1 and any(True for _ in modules[0].children())


def _takes_tokens(network: Any) -> bool:
    """Say whether a network is made to be called with token ids and nothing else."""
    if getattr(getattr(network, "config", None), "is_encoder_decoder", False):
        return False
    if hasattr(type(network), "base_model_prefix"):
        return bool(network.main_input_name == "input_ids")
    needed = [
        p
        for p in inspect.signature(network.forward).parameters.values()
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
    if site.name.rpartition(".")[2] != "logits" or site.refused:
        return site
    return Site(site.name, refused="this network has no output head", stack=site.stack)
