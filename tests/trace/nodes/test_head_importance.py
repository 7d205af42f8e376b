"""Head importance: sizes of first-order effects by hand, and what the size keeps.

Shapes: B pairs, H heads.
"""

import pytest
import torch

from actkit.model import Model
from actkit.trace import Task
from actkit.trace._gradients import with_metric
from actkit.trace.nodes.attribution_patching import AttributionPatching
from actkit.trace.nodes.head_importance import HeadImportance
from actkit.worlds.toy_transformer import reader
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace import _induction

CLEAN = torch.tensor([[5, 1, 2, 3, 4], [7, 1, 8, 3, 2], [1, 1, 4, 6, 2]])
CORRUPT = torch.tensor([[5, 6, 2, 3, 4], [7, 3, 4, 3, 1], [1, 2, 3, 6, 2]])
TASK = Task(CLEAN, CORRUPT, metric=lambda logits: logits[:, -1, 1] - 2 * logits[:, -1, 3])


@pytest.mark.parametrize("parts", ["heads", "mlps", "neurons"])
def test_scores_are_mean_sizes_of_each_pair_s_effect(parts: str) -> None:
    m = tiny.model()
    trial = TASK.on(m)
    point = {"heads": "z", "mlps": "mlp_out", "neurons": "mlp_hidden"}[parts]
    wanted = []
    for layer in range(3):
        name = f"{point}.{layer}"
        rec, values = with_metric(trial, "clean", [name])
        (grad,) = torch.autograd.grad(values.sum(), rec[name])
        product = (rec[name].detach() - m.run(CORRUPT, record=name)[name]) * grad
        effects = {"heads": product.sum((1, 3)) if product.dim() == 4 else product,
                   "mlps": product.sum((1, 2)), "neurons": product.sum(1)}[parts]  # fmt: skip
        wanted.append(effects.abs().mean(0) / abs(trial.gap))
    sizes = torch.stack(wanted)
    found = HeadImportance(parts, by_layer=False)(m, trial).values
    torch.testing.assert_close(found, sizes, rtol=1e-4, atol=1e-6)
    layers = sizes.reshape(3, -1)
    relative = HeadImportance(parts)(m, trial).values.reshape(3, -1)
    torch.testing.assert_close(relative, layers / layers.norm(dim=1, keepdim=True))


def test_effects_of_two_signs_do_not_cancel() -> None:
    """A head that copies the first token: what one pair gains the turned one loses."""
    m = Model(reader(at=(1, 1)))
    pairs = torch.tensor([[3, 1], [4, 1]]), torch.tensor([[4, 1], [3, 1]])
    trial = Task(*pairs, metric=lambda logits: logits[:, -1, 3] + 0.5 * logits[:, -1, 4]).on(m)
    assert abs(trial.gap) < 1e-6  # so the gap cannot be a unit
    turned = Task(*pairs, [3, 4], [4, 3]).on(m)
    assert HeadImportance(by_layer=False)(m, turned).values[1, 1] == pytest.approx(1)


@pytest.mark.paper("towards-automated-circuit-discovery")
def test_it_ranks_the_heads_of_a_wired_circuit_unless_attention_is_saturated(
    evidence: Evidence,
) -> None:
    """The copying head is on top; the other one acts through keys, which have no gradient."""
    m, task = _induction.wired(), _induction.task()
    scores = HeadImportance(by_layer=False)(m, task).values
    rest = scores.clone()
    rest[1, 0] = 0
    evidence("head importance: copying head / next head", measured=scores[1, 0] / rest.max(),
             at_least=10)  # fmt: skip
    signed = AttributionPatching()(m, task).values
    assert (scores >= signed.abs() - 1e-5).all()
