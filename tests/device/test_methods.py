"""Methods whose contract or example does not reach what they make: each as on the CPU.

What is given to them is on the CPU; what is compared is every number that they return.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.model import Model
from actkit.steer._shift import logit_shift_report
from actkit.steer.controllers.activation_reasoner import ActivationReasoner
from actkit.steer.controllers.activation_reasoner._concepts import FeatureConcept
from actkit.steer.controllers.lqr import LQR
from actkit.steer.controllers.self_logits import SelfLogitsAugmentation
from actkit.steer.maps.manifold_steer import ManifoldSteer
from actkit.steer.vectors.top_neuron import TopNeuron
from actkit.trace import Task
from actkit.trace._attention_edits import set_attention
from actkit.trace._head_classes import head_classes
from actkit.trace._latent_values import LatentValues
from actkit.trace.reasoning.functional_rift import functional_rift
from actkit.trace.reasoning.overthinking import ablated, overthinking
from actkit.trace.reasoning.overthinking._demonstrations import Demonstrations
from actkit.trace.training.optogenetics._heads_alone import heads_alone
from tests.contract import leaves
from tests.core import tiny
from tests.core.tiny import WIDTH, uneven
from tests.pretended_device import DEVICE

torchs_own_warning = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

TOKENS = torch.tensor([[3, 1, 2, 8, 5], [5, 4, 6, 7, 3]])
WORDS = ["w3 w1 w2 w8", "w5 w4 w6 w7", "w9 w2 w4 w7"]


def values() -> dict[str, list[str]]:
    return {f"w{i}": [f"w{i} w{j} w{i}" for j in (11, 12)] for i in (20, 21, 22, 23)}


def manifold(m: Model) -> Any:
    steer = ManifoldSteer("resid_post.1", answers=[20, 21, 22, 23]).fit(m, values())
    edits = steer.edits(torch.tensor([0.3, 0.8]))
    trace = steer.trace(m, values()["w20"], [0.0, 0.5, 1.0])
    straight = steer.between("w20", "w22", linear=True)
    return (
        m.run(TOKENS, edits=edits, logits=True).logits,
        m.run(TOKENS, edits=straight.edits(0.5), logits=True).logits,
        trace.probs_SA, trace.distance_S,
        steer.invert(m, values()["w20"], [0.0, 0.5], num_steps=2),
    )  # fmt: skip


def reasoner(m: Model) -> Any:
    """Sums and trees of features, whose maps come from a file."""
    features = uneven(12, WIDTH)
    concepts = {"a": FeatureConcept([0, 1], [1.0, 0.5]), "b": FeatureConcept(depth=2)}
    made = ActivationReasoner("resid_post.1", features, features, concepts, ["a IMPLIES b"])
    made.fit(m, [(WORDS[0], ["a"]), (WORDS[1], ["b"]), (WORDS[2], ["a", "b"])][:2])
    closures = made.reason(m, WORDS)
    return m.run(WORDS, edits=made.edits(0.5), logits=True).logits, str(closures)


def regulator(m: Model) -> Any:
    pairs = [(f"w{i} w7", f"w{i} w8 w9") for i in range(10, 16)]
    lqr = LQR().fit(m, pairs)
    tracking = lqr.tracking(m, WORDS, lqr.edits(1.0))
    return tracking.features_KB, tracking.effort_B, tracking.rms()


def demonstrations(m: Model) -> Any:
    true = torch.tensor([[2, 20, 3, 21, 2], [3, 21, 2, 20, 3]])
    false = torch.tensor([[2, 21, 3, 20, 2], [3, 20, 2, 21, 3]])
    demos = Demonstrations(true, false, torch.tensor([0, 1]), labels=[20, 21])
    seen = overthinking(m, demos)
    return seen, ablated(m, demos, seen, [(1, 2)], mean=True)


def latent(m: Model) -> Any:
    made = LatentValues(base=4, digits=2, num_steps=2)
    number = torch.arange(tiny.WORDS) % 16
    made.fit(m, TOKENS, {"p": 2, "q": 4}, number)
    return made.write(m, TOKENS, {"p": 2, "q": 4})


def classes(m: Model) -> Any:
    clean = torch.tensor([[1, 2, 6, 2, 7], [3, 4, 6, 4, 7], [5, 8, 6, 8, 7]])
    trial = Task(clean, clean.roll(1, 0), clean[:, 0], clean[:, 1]).on(m)
    return list(head_classes(trial, 0.0, 0.0).values()), trial.right, trial.clean_values


def alone(m: Model) -> Any:
    return heads_alone(m, TOKENS, torch.tensor([3, 5]), [3, 5, 7], 1)


def shift(m: Model) -> Any:
    steered = [ak.add("resid_post.1", uneven(WIDTH), 0.5)]
    return logit_shift_report(m, lambda s: steered if s else [], WORDS, ["w3", "w5", "w9"], (0, 1))


def attention(m: Model) -> Any:
    edits = set_attention(m, WORDS, [(1, 2), (0, 3)], [[0, 1], [2], [1]])
    return m.run(WORDS, edits=edits, logits=True).logits


def rift(m: Model) -> Any:
    return functional_rift(m, TOKENS, TOKENS.roll(1, 1), start=1)


def augmented(m: Model) -> Any:
    made = SelfLogitsAugmentation(window=1).fit(m, WORDS)
    return m.run(WORDS, edits=made.edits(0.5), logits=True).logits


def neuron(m: Model) -> Any:
    made = TopNeuron("w5").fit(m, WORDS)
    return made.neuron_, m.run(WORDS, edits=made.edits(0.5), logits=True).logits


METHODS: list[Callable[[Model], Any]] = [
    manifold, reasoner, regulator, demonstrations, latent, classes, alone, shift,
    attention, rift, augmented, neuron,
]  # fmt: skip


@torchs_own_warning
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_method_gives_the_same(method: Callable[[Model], Any]) -> None:
    here = tiny.model()
    here.module.to("cpu")
    there = list(leaves(method(tiny.model())))
    expected = list(leaves(method(here)))
    for own, other in zip(there, expected, strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(own.cpu(), other, rtol=1e-3, atol=1e-4, equal_nan=True)
        elif isinstance(other, float):
            assert own == pytest.approx(other, rel=1e-3, abs=1e-4, nan_ok=True)
        else:
            assert own == other


def test_networks_of_any_kind_are_there() -> None:
    """What the comparison rests on: the network that is made here is on the device."""
    assert {p.device for p in tiny.model().module.parameters()} == {DEVICE}
    assert isinstance(tiny.model().module, nn.Module)
