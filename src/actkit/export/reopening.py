"""What a class of transformers builds again from a config and a state dict: all that a save keeps.

A parameter that the class has no place for is dropped when it is loaded, without an error. So
weights are changed only where the class, built anew from the config, has them, and what it then
computes is compared.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.errors import EditError

TIED = "tie_word_embeddings"
_Shapes = dict[str, tuple[int, ...]]


def is_reopened(module: nn.Module) -> bool:
    """Say whether a network is of a class that is built from its config and loads its weights."""
    return hasattr(type(module), "from_pretrained") and hasattr(type(module), "config_class")


@dataclass(frozen=True)
class Flag:
    """A setting of a config that gives maps their biases.

    Attributes:
        part: The config inside the config that has it, "" for the config itself.
        name: Its name.
        biases: The biases that the class has with it and not without it.
    """

    part: str
    name: str
    biases: frozenset[str]


def bias_flags(module: nn.Module) -> list[Flag]:
    """Return the settings, now off, that give a network biases and change nothing else."""
    if not is_reopened(module):
        return []
    bare = _shapes(_empty(module, module.config))
    found = []
    for part, name in _off(module.config):
        config = copy.deepcopy(module.config)
        setattr(_part(config, part), name, True)
        given = _shapes(_empty(module, config))
        new = given.keys() - bare.keys()
        unchanged = all(given.get(key) == shape for key, shape in bare.items())
        if new and unchanged and all(key.rpartition(".")[2] == "bias" for key in new):
            found.append(Flag(part, name, frozenset(new)))
    return found


def set_flag(module: nn.Module, flag: Flag) -> None:
    """Set a flag in the network's config, and give the maps without a bias one of zeros."""
    setattr(_part(module.config, flag.part), flag.name, True)
    for key in flag.biases:
        owner: Any = module.get_submodule(key.rpartition(".")[0])
        if owner.bias is None:
            rows = owner.weight.shape[0 if isinstance(owner, nn.Linear) else -1]
            zeros = owner.weight.new_zeros(rows)
            owner.bias = nn.Parameter(zeros, owner.weight.requires_grad)


def untie(module: nn.Module) -> None:
    """Say in the config that the output head has weights of its own, and give it them.

    All that the class no longer shares gets tensors of its own: of shared ones only one is saved.
    """
    for part in _parts(getattr(module, "config", None)):
        if getattr(_part(module.config, part), TIED, False):
            setattr(_part(module.config, part), TIED, False)
    if not is_reopened(module):
        return
    allowed = _ties(_empty(module, module.config))
    for group in _groups(module):
        stay = set(allowed.get(group[0], group[:1]))
        for name in group:
            if name not in stay:
                own = allowed.get(name, [name])
                _own(module, own)
                stay |= set(own)


def reopened(module: nn.Module) -> nn.Module:
    """Return the network as its class builds it from its config and its state dict.

    Tensors are shared. Buffers that are not saved are taken over.

    Raises:
        EditError: The class has no place for a weight, or one more than there are.
    """
    state = module.state_dict()
    fresh = _empty(module, module.config)
    ties = _ties(fresh)
    for names in _groups(module):
        if any(ties.get(name) != ties.get(names[0]) for name in names):
            raise EditError(f"of weights that are shared one is saved, got {names}")
    if _forgotten(fresh):  # plain tensors are built with numbers in them, and not loaded
        fresh = type(module)(copy.deepcopy(module.config))
    loaded = fresh.load_state_dict(state, strict=False, assign=True)
    if loaded.unexpected_keys or loaded.missing_keys:
        lost, more = loaded.unexpected_keys, loaded.missing_keys
        raise EditError(
            f"baked weights must be loaded again, but {type(module).__name__} has no place for "
            f"{lost[:3]} and asks for {more[:3]}"
        )
    for name, buffer in module.named_buffers():
        owner, _, own = name.rpartition(".")
        target = fresh.get_submodule(owner)
        if name not in state and own in target._buffers:
            target._buffers[own] = buffer
    fresh.tie_weights()
    network: nn.Module = fresh.train(module.training)
    return network


def _empty(module: nn.Module, config: Any) -> Any:
    """Return the class built from a config, without memory for its weights."""
    with torch.device("meta"):
        return type(module)(copy.deepcopy(config))


def _forgotten(module: nn.Module) -> bool:
    """Say whether tensors that are neither weights nor buffers have no numbers."""
    values = (v for m in module.modules() for v in vars(m).values())
    return any(isinstance(v, Tensor) and v.is_meta for v in values)


def _groups(module: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, own in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(own), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _ties(module: nn.Module) -> dict[str, list[str]]:
    """Return all names of each shared parameter by each of them."""
    return {name: group for group in _groups(module) for name in group}


def _own(module: nn.Module, names: Sequence[str]) -> None:
    """Give some names of a parameter one of their own, with the same numbers."""
    old = module.get_parameter(names[0])
    new = nn.Parameter(old.detach().clone(), old.requires_grad)
    for name in names:
        path, _, own = name.rpartition(".")
        setattr(module.get_submodule(path), own, new)


def _shapes(module: nn.Module) -> _Shapes:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def _off(config: Any) -> Iterator[tuple[str, str]]:
    """Yield the settings about biases that are off, with the part of the config they are in."""
    for part in _parts(config):
        for name, value in vars(_part(config, part)).items():
            if "bias" in name and value is False:
                yield part, name


def _parts(config: Any) -> Iterable[str]:
    """Return "" and the names of the configs inside a config."""
    inner = vars(config).items() if hasattr(config, "to_dict") else ()
    return ["", *(name for name, value in inner if hasattr(value, "to_dict"))]


def _part(config: Any, part: str) -> Any:
    return getattr(config, part) if part else config
