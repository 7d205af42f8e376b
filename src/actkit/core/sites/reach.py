"""Whether hooks reach a module: compiled and scripted code runs without asking for them."""

from collections.abc import Iterator

import torch
from torch import nn


def why_not_reached(network: nn.Module, path: str) -> str:
    """Return why no hook on a module would run; "" if it would.

    Args:
        network: The network.
        path: The module's path.

    Raises:
        AttributeError: The network has no such module.
    """
    for around, module in _from_the_network(network, path):
        inside = around != path
        name = repr(around) if around else "the network"
        if isinstance(module, torch.jit.ScriptModule):
            return (
                f"{name} is scripted (torch.jit) and runs where no hook can stand: put the module "
                "that it was made from in its place, or read what runs before and behind it"
            )
        # what torch.compile returns is called from outside; a module compiled in place is not
        if inside and hasattr(module, "_torchdynamo_orig_callable"):
            return _compiled(name)
        if getattr(module, "_compiled_call_impl", None) is not None:
            return _compiled(name)
    return ""


def reached_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return all modules by path, without scripted ones."""
    closed: list[str] = []
    for path, module in network.named_modules():
        if any(path.startswith(own) for own in closed):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            closed.append(f"{path}." if path else "")
            continue
        yield path, module


def submodule(network: nn.Module, path: str) -> nn.Module:
    """Return the module at a path; scripted modules do not know `get_submodule`.

    Raises:
        AttributeError: There is none.
    """
    *_, (_, module) = _from_the_network(network, path)
    return module


def _from_the_network(network: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Return the network and the modules on the way to a path, by their own paths."""
    yield "", network
    module, walked = network, list[str]()
    for part in path.split(".") if path else []:
        walked.append(part)
        child = getattr(module, part, None)
        if not isinstance(child, nn.Module):
            kind = type(module).__name__
            raise AttributeError(f"{kind} has no module {part!r} on the way to {path!r}")
        module = child
        yield ".".join(walked), module


def _compiled(name: str) -> str:
    return (
        f"{name} is compiled (torch.compile), and compiled code asks for no hook: open the network "
        "before it is compiled, net._orig_mod of what torch.compile(net) returned"
    )
