"""Swaps submodules for others and puts them back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from actkit.core.errors import SiteError


@contextmanager
def replaced(network: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let `modules` stand in for the submodules at their paths; put those back at the end.

    Raises:
        SiteError: A path is no submodule, or lies in another; nothing is swapped then.
    """
    spots = {}
    for path in modules:
        if not path:
            raise SiteError("only submodules can be replaced, got the network itself, path ''")
        if inside := [p for p in modules if p.startswith(f"{path}.")]:
            raise SiteError(
                f"paths to replace must not lie in one another, got {path}, {inside[0]}"
            )
        parent, _, name = path.rpartition(".")
        try:
            spots[path] = (network.get_submodule(parent), name, network.get_submodule(path))
        except AttributeError as error:
            raise SiteError(f"no module at {path!r} to replace: {error}") from error
    try:
        for path, module in modules.items():
            parent_module, name, _ = spots[path]
            setattr(parent_module, name, module)
        yield
    finally:
        for parent_module, name, old in spots.values():
            setattr(parent_module, name, old)
