"""Permutations of hidden units under which two sequential MLPs compute alike.

Shapes: N rows, D width.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.errors import InputError
from actkit.model import Model

FIXED = -1
Axes = Mapping[str, tuple[int, ...]]
"""For each tensor the hidden layer that each of its axes belongs to, FIXED if to none."""


def hidden_axes(network: nn.Module) -> Axes:
    """Return where the hidden units of a sequential MLP lie in its parameters and buffers.

    Modules without weights (activations, dropout) must treat all units alike.

    Raises:
        InputError: The network is no `nn.Sequential` of linear layers and modules that have one
            number per unit (batch and layer normalisation, PReLU).
    """
    modules = list(network.named_modules())
    leaves = [(path, m) for path, m in modules if not list(m.children())]
    if not all(isinstance(m, nn.Sequential) for _, m in modules if list(m.children())):
        raise InputError(f"alignment needs an nn.Sequential, got {type(network).__name__}")
    num_hidden = sum(isinstance(m, nn.Linear) for _, m in leaves) - 1
    axes: dict[str, tuple[int, ...]] = {}
    layer, width = FIXED, 0
    for path, module in leaves:
        if isinstance(module, nn.Linear):
            before, layer, width = layer, layer + 1, module.out_features
            layer = layer if layer < num_hidden else FIXED
            axes |= {f"{path}.weight": (layer, before), f"{path}.bias": (layer,)}
            continue
        for name, value in module.state_dict().items():
            if value.numel() > 1 and value.shape != (width,):
                raise InputError(
                    f"alignment needs one number per unit outside linear layers, got {path}.{name} "
                    f"of shape {tuple(value.shape)} after {width} units"
                )
            axes[f"{path}.{name}"] = (layer if value.numel() > 1 else FIXED,) * value.dim()
    return axes


def permuted(network: nn.Module, orders: Sequence[Tensor]) -> nn.Module:
    """Return a copy whose hidden unit i of layer k is the network's unit `orders[k][i]`."""
    axes = hidden_axes(network)
    state = {name: _ordered(x, axes[name], orders) for name, x in network.state_dict().items()}
    twin = copy.deepcopy(network)
    twin.load_state_dict(state)
    return twin


def _ordered(
    x: Tensor, layers: Sequence[int], orders: Sequence[Tensor], but: int = FIXED
) -> Tensor:
    for axis, layer in enumerate(layers):
        if layer not in (FIXED, but):
            x = x.index_select(axis, orders[layer].to(x.device))
    return x


def match_weights(one: nn.Module, other: nn.Module) -> list[Tensor]:
    """Return the order of the other's units that brings its weights closest to the first's.

    Layer by layer the assignment is solved that maximises the inner product of all weights at a
    layer's units, the other layers held, until no layer gains (Ainsworth et al. 2023,
    weight matching). The product never falls, so it ends; the optimum is local.
    """
    axes = hidden_axes(one)
    ours, theirs = ({n: p.detach().double() for n, p in m.named_parameters()} for m in (one, other))
    sizes = {k: ours[n].shape[i] for n, a in axes.items() if n in ours for i, k in enumerate(a)}
    orders = [torch.arange(sizes[k]) for k in range(max(sizes, default=FIXED) + 1)]

    def products(layer: int) -> Tensor:
        total = torch.zeros(sizes[layer], sizes[layer], dtype=torch.float64)
        for name in ours:
            if layer in axes[name]:
                axis = axes[name].index(layer)
                moved = _ordered(theirs[name], axes[name], orders, but=layer)
                pair = (
                    x.movedim(axis, 0).reshape(len(total), -1).cpu() for x in (ours[name], moved)
                )
                total += next(pair) @ next(pair).T
        return total

    gained = True
    while gained:
        gained = False
        for layer in range(len(orders)):
            product_DD = products(layer)
            order = _assigned(product_DD)
            gain = _total(product_DD, order) - _total(product_DD, orders[layer])
            if gain > 1e-9 * product_DD.abs().sum():
                orders[layer], gained = order, True
    return orders


def match_activations(one: nn.Module, other: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the order of the other's units that correlates most with the first's on the inputs.

    Each layer's assignment maximises the sum of Pearson correlations between units; a constant
    unit correlates with none.
    """
    axes = hidden_axes(one)
    sites = [f"{n.rpartition('.')[0]}:in" for n, a in axes.items() if len(a) == 2 and a[1] != FIXED]
    read = [Model(m).run(inputs, record=sites) for m in (one, other)]
    return [
        _assigned(_standard(read[0].flat(s)[0]).T @ _standard(read[1].flat(s)[0])) for s in sites
    ]


def _standard(acts_ND: Tensor) -> Tensor:
    off_ND = acts_ND.detach().double().cpu()
    off_ND = off_ND - off_ND.mean(0)
    length_D = off_ND.norm(dim=0)
    unit_ND: Tensor = off_ND / length_D.where(length_D > 0, torch.inf)
    return unit_ND


def _assigned(score_DD: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    return torch.as_tensor(linear_sum_assignment(score_DD.numpy(), maximize=True)[1])


def _total(score_DD: Tensor, order_D: Tensor) -> float:
    return float(score_DD.gather(1, order_D[:, None]).sum())


ALIGNMENTS: Mapping[str, Callable[[nn.Module, nn.Module, Any], list[Tensor]]] = {
    "weights": lambda one, other, _: match_weights(one, other),
    "activations": match_activations,
}
"""The ways of alignment by name; each takes two networks and a batch of inputs."""
