"""Score neurons, heads and sublayers by what they write along a direction, and pick a circuit.

Shapes: N prompts, L layers, F neurons, H heads, K head width, T tokens, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import add
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import last_tokens
from actkit.model import Model
from actkit.trace._base import Analysis

ALPHAS = (0.1, 0.3, 0.5, 0.7)
KINDS = ("attn", "mlp")


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each component writes along the directions at the last token, mean over prompts.

    Attributes:
        neurons: (L, F), each neuron's activation times what it writes.
        heads: (L, H), by how much the MLP's input falls if the head is zero.
        sublayers: (L, 2), what reaches the end of what is put in after attention and MLP; each
            unit along a direction gives so much along the reference.
    """

    neurons: Tensor
    heads: Tensor
    sublayers: Tensor

    def top(self, kind: str, num: int) -> list[tuple[int, int]]:
        """Return the (layer, index) of the largest "neurons" or "heads" of all layers."""
        scores_LN = _named(self, kind)
        return [divmod(int(i), scores_LN.shape[1]) for i in _largest(scores_LN.flatten(), num)]

    def circuit(self, kind: str, num: int) -> list[tuple[int, int]]:
        """Return the largest of each layer, `num` in all, shared out by the sublayers' scores.

        Layers whose sublayer hinders get none.
        """
        scores_LN = _named(self, kind)
        parts = shared_out(
            self.sublayers[:, KINDS.index("attn" if kind == "heads" else "mlp")],
            num,
            scores_LN.shape[1],
        )
        return [(n, i) for n, part in enumerate(parts) for i in _largest(scores_LN[n], part)]


@method(source="Wang et al. 2025, arXiv:2510.11328", interface=Analysis)
def component_contrib(
    model: Model,
    prompts: Sequence[Any],
    directions: Mapping[str, Tensor],
    late: slice = slice(-5, None),
    alphas: Sequence[float] = ALPHAS,
    batch_size: int = 8,
) -> Contributions:
    """Return what neurons, heads and sublayers do along a concept's directions.

    With v the direction after a sublayer: a neuron's score is a_n <W_n, v>, a head's the drop of
    <h, v> in the stream that the MLP reads, and a sublayer's I = d<h_final, v_ref> / (alpha
    sigma) for alpha sigma v put into its output, sigma the stream's root mean square there, v_ref
    the mean direction over late layers; mean over `alphas`. As in the paper; the drop of a
    zeroed head is linear in its output, so it is read off one run.

    Args:
        model: The network.
        prompts: That show the concept.
        directions: (D,) at each `resid_mid.*` and `resid_post.*`, as `centered_directions` gives.
        late: Which layers' `resid_post` directions are the reference.
        alphas: Sizes of what is put in, in shares of the stream's root mean square.
        batch_size: How many prompts to run at once.

    Raises:
        InputError: A layer has no direction, there are no prompts or sizes, or what a part writes
            is not linear in it, as with a norm between MLP and stream.

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.worlds import reader
        >>> v_D = torch.eye(60)[17]  # where head 1.1 writes that the first token is a 3
        >>> everywhere = {f"resid_{x}.{n}": v_D for x in ("mid", "post") for n in range(2)}
        >>> component_contrib(Model(reader(at=(1, 1))), [[3, 1]], everywhere).heads
        tensor([[0., 0., 0.],
                [0., 1., 0.]])
    """
    names = [[f"resid_{x}.{n}" for x in ("mid", "post")] for n in range(_depth(model))]
    if lacking := [name for pair in names for name in pair if name not in directions]:
        raise InputError(f"directions must be given at all sublayers, lacking {lacking[:3]}")
    if not len(prompts) or not len(alphas) or not all(alphas):
        raise InputError(f"need prompts and sizes other than 0, got {len(prompts)} and {alphas}")
    v_L2D = torch.stack([torch.stack([directions[s].float() for s in pair]) for pair in names])
    groups = [list(prompts[i : i + batch_size]) for i in range(0, len(prompts), batch_size)]
    summed: Any = [0.0, 0.0, 0.0]
    for group in track(groups, "tracing components"):
        neurons_LF, heads_LH = _written(model, group, v_L2D)
        parts = (neurons_LF, heads_LH, _carried(model, group, v_L2D, late, alphas))
        summed = [total + len(group) * part for total, part in zip(summed, parts, strict=True)]
    return Contributions(*(total / len(prompts) for total in summed))


def _written(model: Model, prompts: list[Any], v_L2D: Tensor) -> tuple[Tensor, Tensor]:
    """Return (L, F) and (L, H) of what is written along v, as activation times slope."""
    points = ("mlp_hidden", "mlp_out", "z", "attn_out")
    rec = model.run(prompts, [f"{p}.*" for p in points], grad=True)
    neurons, heads = [], []
    for layer, (mid_D, post_D) in enumerate(v_L2D):
        hidden, out, z, attn = (rec[f"{p}.{layer}"] for p in points)
        products = []
        for x, y, v_D in ((hidden, out, post_D), (z, attn, mid_D)):
            (slope,) = torch.autograd.grad((y @ v_D.to(y)).sum(), x, retain_graph=True)
            rows = rec.rows_of(f"mlp_out.{layer}")
            _check_linear(slope[rows.valid], layer)
            products.append(last_tokens((x * slope).detach().float(), rows).mean(0))
        neurons.append(products[0])
        heads.append(products[1].sum(-1))
    return torch.stack(neurons).cpu(), torch.stack(heads).cpu()


def _check_linear(slope_NX: Tensor, layer: int) -> None:
    """Raise InputError unless what a layer writes has one slope at all N tokens."""
    off = float((slope_NX - slope_NX[:1]).abs().max())
    size = float(slope_NX.abs().max())
    if off > size * max(1e-3, 8 * torch.finfo(slope_NX.dtype).eps):
        raise InputError(
            f"what a part writes must be linear in it, in layer {layer} its slope differs by "
            f"{off:.2g} between tokens on a size of {size:.2g}: contributions are for networks "
            "without norms or factors between parts and stream"
        )


def _carried(
    model: Model, prompts: list[Any], v_L2D: Tensor, late: slice, alphas: Sequence[float]
) -> Tensor:
    """Return (L, 2) of how much of what is put in after each sublayer reaches the end."""
    end = f"resid_post.{len(v_L2D) - 1}"
    v_ref_D = v_L2D[late, 1].mean(0)

    def final(edits: Any = ()) -> Tensor:
        rec = model.run(prompts, end, edits)
        return last_tokens(rec[end].float(), rec.rows_of(end)).cpu() @ v_ref_D

    bare_N, carried = final(), torch.zeros(v_L2D.shape[:2])
    stream = model.run(prompts, ["resid_mid.*", "resid_post.*"])
    for layer, part in torch.cartesian_prod(*map(torch.arange, carried.shape)).tolist():
        site = f"resid_{('mid', 'post')[part]}.{layer}"
        x_ND = last_tokens(stream[site].float(), stream.rows_of(site))
        sigma_N = x_ND.square().mean(-1).sqrt()
        for alpha in alphas:
            edit = add(
                f"{KINDS[part]}_out.{layer}",
                v_L2D[layer, part],
                alpha * sigma_N,
                Where(tokens="last"),
            )
            share_N = (final([edit]) - bare_N) / (alpha * sigma_N.cpu())
            carried[layer, part] += share_N.mean() / len(alphas)
    return carried


def shared_out(scores_L: Tensor, num: int, most: int) -> list[int]:
    """Return how many of `num` each layer gets, in proportion to positive scores, `most` each.

    Raises:
        InputError: There are not so many, or no score is positive.

    Example:
        >>> import torch
        >>> shared_out(torch.tensor([1.0, 3.0, -2.0]), 6, 4)
        [2, 4, 0]
    """
    weight_L = scores_L.double().clamp_min(0)
    if not 0 < num <= most * int((weight_L > 0).sum()):
        raise InputError(
            f"num must lie in 1..{most * int((weight_L > 0).sum())}, {most} in each layer whose "
            f"score is positive, got {num}"
        )
    parts = [0] * len(weight_L)
    for _ in range(num):  # each goes where the share is furthest behind
        behind_L = num * weight_L / weight_L.sum() - torch.tensor(parts)
        full_L = torch.tensor(parts) >= most
        parts[int(behind_L.masked_fill(full_L | (weight_L == 0), -torch.inf).argmax())] += 1
    return parts


def _named(scores: Contributions, kind: str) -> Tensor:
    if kind not in ("neurons", "heads"):
        raise InputError(f"components are 'neurons' or 'heads', got {kind!r}")
    return scores.neurons if kind == "neurons" else scores.heads


def _largest(scores_N: Tensor, num: int) -> list[int]:
    if num > len(scores_N):
        raise InputError(f"there are {len(scores_N)} components, got num={num}")
    return [int(i) for i in scores_N.topk(num).indices]


def _depth(model: Model) -> int:
    return len(model.sites("resid_post.*"))
