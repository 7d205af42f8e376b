"""What a network says about a concept, and what makes it say something else.

Shapes: N inputs, D width, K components, S places on a path, V vocabulary, A answers (the last
stands for all others, if there are others).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit, add
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.sweep.stream import batches
from actkit.maths.next_token import kl
from actkit.model import Model
from actkit.steer._rows import as_batch
from actkit.steer.maps.manifold_steer._manifold import ConceptCurve

LAST = Where(tokens="last")


@dataclass(frozen=True, eq=False)
class Trace:
    """What a network says along a path.

    Attributes:
        values: The concept's values in order.
        probs_SA: Mean probability of each value's answer, and of all other answers.
        distance_S: Hellinger distance to the behaviour manifold, in [0, 1].
    """

    values: tuple[Any, ...]
    probs_SA: Tensor
    distance_S: Tensor

    @property
    def other(self) -> Tensor:
        """Return the probability of all other answers, (S,)."""
        return self.probs_SA[:, len(self.values) :].sum(-1)

    @property
    def entropy(self) -> Tensor:
        """Return the entropy of the answers, (S,) nats."""
        entropy_S: Tensor = torch.special.entr(self.probs_SA).sum(-1)
        return entropy_S

    @property
    def visited(self) -> list[Any]:
        """Return the likeliest values in the order in which the path meets them."""
        best = self.probs_SA[:, : len(self.values)].argmax(-1).tolist()
        return [self.values[v] for k, v in enumerate(best) if k == 0 or v != best[k - 1]]


def hellinger(curve: ConceptCurve, probs_SA: Tensor) -> Tensor:
    """Return the Hellinger distance to a curve of square roots of probabilities, (S,)."""
    return curve.distance(probs_SA.sqrt()) / 2**0.5


def observed(
    model: Model,
    inputs: Sequence[Any],
    site: str,
    answers: Sequence[int],
    edits: Sequence[Edit] = (),
) -> tuple[Tensor, Tensor]:
    """Return the (N, D) last states at a site and the (N, A) probabilities of the answers.

    Raises:
        InputError: Inputs are padded at their end, or states are not finite.
    """
    states, probs = [], []
    for group in batches(list(inputs), 32):
        rec = model.run(as_batch(group), [site], edits, logits=True)
        if not rec.rows_of(site).valid[:, -1].all():
            raise InputError(f"inputs must not be padded at their end, got {len(group)} that are")
        states.append(rec.rows_first(site)[:, -1].float())
        probs.append(log_probs(rec.logits, answers).exp())
    states_ND = torch.cat(states)
    if num := int((~states_ND.isfinite()).sum()):
        shape = tuple(states_ND.shape)
        raise InputError(f"states at {site} must be finite, got {num} NaN or infinite in {shape}")
    return states_ND, torch.cat(probs)


def followed(
    model: Model,
    inputs: Sequence[Any],
    site: str,
    answers: Sequence[int],
    target_SA: Tensor,
    basis_KD: Tensor,
    num_steps: int,
) -> Tensor:
    """Return the (S, K) coordinates of shifts that lead to given answers.

    Adam minimises the mean over the inputs of KL(what is said || target), from no shift on.
    """
    target_SA = target_SA.clamp_min(1e-9)
    target_SA = target_SA / target_SA.sum(-1, keepdim=True)
    z_SK = torch.zeros(len(target_SA), len(basis_KD), device=basis_KD.device, requires_grad=True)
    optimizer = torch.optim.Adam([z_SK], 0.05)
    batch, num_inputs = as_batch(list(inputs) * len(z_SK)), len(inputs)
    for _ in track(range(num_steps), "optimising a path"):
        shifts_ND = (z_SK @ basis_KD).repeat_interleave(num_inputs, 0)
        rec = model.run(batch, [site], [add(site, shifts_ND, 1.0, LAST)], logits=True, grad=True)
        log_SNA = log_probs(rec.logits, answers).reshape(len(z_SK), num_inputs, -1)
        kl_SN = kl(log_SNA, target_SA.log()[:, None])
        (z_SK.grad,) = torch.autograd.grad(kl_SN.mean(1).sum(), [z_SK])
        optimizer.step()
    return z_SK.detach()


def log_probs(logits: Any, answers: Sequence[int]) -> Tensor:
    """Return log probabilities at the end, (N, A) float64: of the answers, and of all others.

    Args:
        logits: (N, V) or (N, T, V).
        answers: Outputs that count singly.

    Raises:
        InputError: An answer is none of the outputs, or stands twice.
    """
    end_NV = logits if logits.dim() == 2 else logits[:, -1]
    log_NV: Tensor = end_NV.double().log_softmax(-1)
    width, index = log_NV.shape[-1], torch.tensor(answers, device=log_NV.device)
    if len(set(answers)) < len(answers) or min(answers) < 0 or max(answers) >= width:
        raise InputError(f"answers must be different outputs below {width}, got {answers}")
    single_NA = log_NV[:, index]
    if len(answers) == width:
        return single_NA
    rest_NV = log_NV.index_fill(1, index, -torch.inf)
    return torch.cat([single_NA, rest_NV.logsumexp(-1, keepdim=True)], -1)
