"""Finds a network's stacks: by its architecture's table, else by structure, else none.

`find` looks below wrappers (PEFT, a user's own module) for the network of transformers inside.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from actkit.core.architectures import tables
from actkit.core.sites import Site, Stack, stack_sites


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
    prefix = getattr(inner, "base_model_prefix", "")
    base = f"{path}." if path else ""
    base += f"{prefix}." if prefix and hasattr(inner, prefix) else ""
    if table is None:
        return Network()
    stacks = [s for s in table(config) if _present(module, f"{base}{s.root}".rstrip("."), s)]
    if not stacks:
        return Network()
    has_head = _has_head(inner)
    sites = tuple(site for s in stacks for site in stack_sites(s, base))
    if not has_head:
        sites = tuple(_headless(s) for s in sites)
    roots = {s.name: f"{base}{s.root}".rstrip(".") for s in stacks}
    prefixes = tuple(s.alias for s in stacks if s.alias)
    return Network(sites, roots, prefixes, f"points from the table of {config.model_type}")


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
