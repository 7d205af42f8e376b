"""Derivatives of a run by the strength of its edits.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from actkit.core.edits.edit import Edit
from actkit.core.errors import EditError, ModelError

if TYPE_CHECKING:
    from actkit.core.run.runner import Runner

Strengthened = Callable[[Tensor], Sequence[Edit]]
"""From (B,) strengths to edits, such as a fitted steerer's `edits`."""


def derivative(
    model: "Runner", inputs: Any, edits: Strengthened, site: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return a tensor of the bare run, and its derivative by the edits' strength at 0.

    One forward pass carries both, J v for the vector v that is added. Attention runs in its plain
    form meanwhile, since the fused kernels have no forward derivative.

    Args:
        model: The network.
        inputs: As in `Model.run`.
        edits: Gives edits, all of them `add`, of (B,) strengths.
        site: What to differentiate, (B, T, D) for example; the (B, T, V) logits if None.

    Raises:
        EditError: An edit adds nothing that is proportional to the strength.
        ModelError: The network's attention has no forward derivative.

    Example:
        >>> import actkit as ak
        >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Tanh())
        >>> m, x = ak.open(net), torch.zeros(1, 1, 2)
        >>> value, slope = derivative(m, x, lambda s: [ak.add("0:out", torch.ones(2) * 3, s)])
        >>> slope.tolist()  # tanh'(0) = 1
        [[[3.0, 3.0]]]
    """
    batch = model.encode(inputs)
    with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        added = edits(_dual_zeros(batch.num_samples))
        if other := [e.operation.name for e in added if not e.operation.only_adds]:
            raise EditError(f"a derivative by the strength needs edits that add, got {other[0]}")
        try:
            pair: Any = forward_ad.unpack_dual(_read(model, batch, added, site))  # type: ignore[no-untyped-call]
        except NotImplementedError as error:
            kind = getattr(getattr(model.module, "config", None), "_attn_implementation", None)
            raise ModelError(
                f"forward derivatives need attention 'eager' or 'sdpa', got {kind!r}: {error}"
            ) from error
    slope = torch.zeros_like(pair.primal) if pair.tangent is None else pair.tangent
    return pair.primal.detach(), slope


def _dual_zeros(size: int) -> Tensor:
    """Return zeros whose tangent is one."""
    # a strength that asks for gradients is not taken for a mere zero
    zero_B, one_B = torch.zeros(size, requires_grad=True), torch.ones(size)
    with catch_warnings():
        simplefilter("ignore", DeprecationWarning)  # of torch about itself, at the first call
        dual: Tensor = forward_ad.make_dual(zero_B, one_B)  # type: ignore[no-untyped-call]
    return dual


def _read(model: "Runner", batch: Any, edits: Sequence[Edit], site: str | None) -> Tensor:
    """Return a tensor with its tangent; what a recording holds has lost it."""
    if site is None:
        return model.run(batch, edits=edits, logits=True).logits
    found: list[Tensor] = []
    model.stream(batch, model.sites(site), lambda _, x, __: found.append(x), edits)
    return found[0]
