"""Train two attention layers on labelled items, and watch context and memory compete.

Shapes: B sequences, N pairs, T positions, D width, L labels, S looks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.model import Model
from actkit.trace._base import TrainingExperiment
from actkit.worlds.icl_network import IclNetwork
from actkit.worlds.induction_model import InductionModel
from actkit.worlds.labelled_items import IclBatch, IclData

__all__ = ["IclBatch", "IclData", "IclNetwork", "IclProgress", "InductionModel", "icl_bench"]


@dataclass(frozen=True, slots=True, eq=False)
class IclProgress:
    """What was seen on the way, at S looks; accuracies and measures are shares in [0, 1].

    Attributes:
        network: As it is at the end.
        steps_S: Steps done.
        loss_S: Training loss (nats).
        in_context_S: Accuracy on classes that were never shown.
        swapped_S: Accuracy on trained classes with swapped labels, by the context.
        in_weights_S: Accuracy on trained classes that the context does not show.
        item_label_S: First layer's attention of a label to the item before it.
        target_label_S: Second layer's attention of the asked item to labels of its class.
        context_label_S: Probability that the answer gives to labels of the context.
    """

    network: IclNetwork
    steps_S: Tensor
    loss_S: Tensor
    in_context_S: Tensor
    swapped_S: Tensor
    in_weights_S: Tensor
    item_label_S: Tensor
    target_label_S: Tensor
    context_label_S: Tensor


@method(source="Reddy 2023, arXiv:2312.03002, sections 2 and 3", interface=TrainingExperiment)
def icl_bench(
    data: IclData,
    num_steps: int = 500,
    batch: int = 128,
    rate: float = 3e-3,
    every: int = 50,
    seed: int = 0,
) -> IclProgress:
    """Train a small network on the data and measure in-context and in-weights learning.

    Differs from the paper: Adam for plain gradient descent, positions that are not shifted at
    random, and smaller sizes, so that it takes seconds; the progress measures are as in the
    paper. `IclData` draws the sequences, `InductionModel` is the model of three logits.

    Args:
        data: What is trained on; in-context sequences are of its pairs and its burst, of half
            the pairs for a burst of 0.
        num_steps: Of Adam.
        batch: Sequences of one step.
        rate: Of Adam.
        every: Steps from one look to the next.
        seed: Of weights and sequences.

    Raises:
        InputError: A number of steps, sequences or looks is below 1.

    Example:
        >>> data = IclData(num_classes=4, num_labels=2, pairs=2, burst=2, width=4)
        >>> icl_bench(data, num_steps=2, batch=3, every=1).steps_S.tolist()
        [0, 1, 2]
    """
    if min(num_steps, batch, every) < 1:
        raise InputError(f"need at least 1 of each, got {num_steps=}, {batch=}, {every=}")
    net = IclNetwork(data, seed=seed)
    optimiser = torch.optim.Adam(net.parameters(), rate)
    burst, looks = data.burst or max(data.pairs // 2, 1), []
    tests = (
        data.in_context(1000, burst, seed=seed + 1),
        data.in_context(1000, burst, swapped=True, seed=seed + 2),
        data.in_weights(1000, seed=seed + 3),
    )
    for step in track(range(num_steps + 1), "training"):
        drawn = data.draw(batch, seed=1_000_000 * (seed + 1) + step)
        loss = nn.functional.cross_entropy(net(drawn.input_BTD), drawn.answers)
        if step % every == 0:
            looks.append([step, loss.item(), *_accuracies(net, tests), *_measures(net, tests[0])])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    steps_S, *curves = torch.tensor(looks).T
    return IclProgress(net, steps_S.long(), *curves)


@torch.no_grad()
def _accuracies(net: IclNetwork, tests: tuple[IclBatch, ...]) -> list[float]:
    return [float((net(t.input_BTD).argmax(1) == t.answers).float().mean()) for t in tests]


def _measures(net: IclNetwork, batch: IclBatch) -> list[float]:
    """Return attention to the item before, to the matching labels, and what labels get."""
    sites = ["layers.0.probs:out", "layers.1.probs:out"]
    rec = Model(net).run(batch.input_BTD, record=sites, logits=True)
    first_BTS, second_BTS = (rec[s] for s in sites)
    num = 2 * batch.matches.shape[1]
    item_label = first_BTS[:, range(1, num, 2), range(0, num, 2)].mean()
    target_label = (second_BTS[:, -1, 1::2] * batch.matches).sum(1).mean()
    prob_BL = rec.logits.softmax(1)
    shown_BL = torch.zeros_like(prob_BL).scatter(1, batch.label_BS[:, :-1], 1.0)
    return [float(item_label), float(target_label), float((prob_BL * shown_BL).sum(1).mean())]
