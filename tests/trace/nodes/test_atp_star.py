"""AtP*: against patterns recomputed by patching, and where attribution patching is blind.

Shapes: B pairs, T tokens, H heads, S keys, G key heads.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Parts, Task
from actkit.trace._gradients import sides, with_metric
from actkit.trace._parts import as_parts
from actkit.trace.nodes.atp_star import AtPStar
from actkit.trace.nodes.attribution_patching import AttributionPatching
from actkit.trace.nodes.patch import Patch
from actkit.worlds.toy_transformer import clear, set_head, toy
from tests.core import tiny

CLEAN = ["w1 w2 w3 w4 w5", "w6 w2 w3"]
CORRUPT = ["w1 w12 w3 w4 w5", "w6 w13 w3"]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def m(request: pytest.FixtureRequest) -> Model:
    return tiny.model() if request.param == "llama" else Model(tiny.gpt2(), tiny.tokenizer())


def task_on(m: Model, rows: slice = slice(None)) -> Task:
    logits = m.run(CLEAN[rows], logits=True).logits
    best, worst = logits[:, -1].argmax(-1), logits[:, -1].argmin(-1)
    return Task(CLEAN[rows], CORRUPT[rows], best, worst)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("axes", [("position", "head"), ("head",), ("position",), ()], ids=str)
@pytest.mark.parametrize("point", ["q", "k"])
def test_patterns_are_those_of_a_true_patch(
    m: Model, point: str, axes: tuple[str, ...], direction: Any
) -> None:
    """The pattern's change under each true patch, times the gradient at the pattern."""
    parts = Parts(point, axes)
    rows = slice(1) if "position" in axes else slice(None)  # padded, where positions do not count
    trial = task_on(m, rows).on(m)
    side, onto = sides(direction)
    scores = AtPStar(parts, direction, grad_drop=False)(m, trial).values
    patterns = [f"attn_probs.{i}" for i in range(len(m.sites("q.*")))]
    base, values = with_metric(trial, onto, patterns)
    gradients = torch.autograd.grad(values.sum(), [base[n] for n in patterns])
    source = trial.record(side, f"{point}.*")
    gap = trial.gap if onto == "corrupt" else -trial.gap
    for index in torch.cartesian_prod(*map(torch.arange, scores.shape)).reshape(-1, scores.dim()):
        part = as_parts(parts).at(m, tuple(index.tolist()))
        name = patterns[part.layer]
        patched = trial.record(onto, name, [ak.swap(part.site, source, part.where)])[name]
        change = (patched - base[name].detach()) * gradients[part.layer]
        expected = float(change.sum()) / len(trial) / gap
        assert scores[tuple(index)] == pytest.approx(expected, rel=2e-4, abs=2e-5), part


@pytest.mark.parametrize("parts", ["heads", "mlp", "resid", Parts("k", ("head",))], ids=str)
def test_grad_drop_is_the_mean_size_without_each_block(m: Model, parts: Any) -> None:
    trial = task_on(m, slice(1)).on(m)
    known = as_parts(parts)
    scores = AtPStar(parts)(m, trial).values

    def without(block: int) -> Tensor:
        """Return signed scores in a run in which one block's sum carries no gradient."""
        edits = [ak.apply(f"{p}.{block}", Tensor.detach) for p in ("attn_out", "mlp_out")]
        plain = AtPStar(known, grad_drop=False)
        names = [s.name for s in known.sites(m)]
        inputs, effects, values = plain._linear(trial, known, names, edits)
        gradients = torch.autograd.grad(values.sum(), inputs, allow_unused=True)
        pairs = zip(effects, inputs, gradients, strict=True)
        found = [known.summed(e(torch.zeros_like(x) if g is None else g)) for e, x, g in pairs]
        values_L = torch.stack([f.float() for f in found]) / trial.gap
        if not known.point.startswith("resid"):
            values_L[block] = torch.nan  # a part has no say where its own block is dropped
        return values_L.abs()

    expected = torch.stack([without(b) for b in range(len(m.sites("q.*")))]).nanmean(0)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-6)


def sharp() -> Model:
    """A head that looks, sharply, for token 3, and says at which position it stands."""
    net = clear(toy(4, layers=2, heads=1, width=10, positions=3))
    net.transformer.wte.weight[:, :4] = torch.eye(4)
    net.transformer.wpe.weight[:, 4:7] = torch.eye(3)
    q, k, v, o = (torch.zeros(10, 3) for _ in range(4))
    q[4:7, 0], k[3, 0] = 100.0, 1.0
    v[4:7], o[7:10] = torch.eye(3), torch.eye(3)
    set_head(net, 1, 0, q, k, v, o.mT)
    net.lm_head.weight[:3, 7:10] = torch.eye(3)
    return Model(net)


def test_saturated_attention_is_seen() -> None:
    """Token 3 moves from position 1 to 0: its key has no gradient, but moves the answer."""
    with torch.no_grad():
        m = sharp()
    task = Task(torch.tensor([[3, 1, 2]]), torch.tensor([[1, 3, 2]]), [0], [1])
    keys = Parts("k", ("position", "head"))
    assert AttributionPatching(keys)(m, task).values.abs().max() < 1e-6
    true, fixed = Patch(keys)(m, task).values, AtPStar(keys)(m, task).values
    torch.testing.assert_close(true[1, :, 0], torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(fixed, true)
    torch.testing.assert_close(AtPStar(Parts("k"))(m, task).values, torch.tensor([0.0, 1.0]))


def cancelling() -> Model:
    """Block 0 copies the token to the logits; block 1 takes away just as much of that."""
    net = clear(toy(4, layers=3, heads=1, width=8, positions=2))
    net.transformer.wte.weight[:, :4] = torch.eye(4)
    read, write = torch.eye(8)[:, :4], torch.eye(8)[4:]
    set_head(net, 0, 0, v=read, o=write)
    set_head(net, 1, 0, v=write.mT, o=-write)
    set_head(net, 2, 0, v=0.5 * read, o=write)
    net.lm_head.weight[:, 4:] = torch.eye(4)
    return Model(net)


def test_cancellation_is_seen() -> None:
    """Attention is even, so the head of block 0 writes (1, -1) halves that block 1 takes back."""
    with torch.no_grad():
        m = cancelling()
    task = Task(torch.tensor([[3, 3]]), torch.tensor([[2, 2]]), [3], [2])
    plain = AttributionPatching("heads")(m, task).values[:, 0]
    dropped = AtPStar("heads")(m, task).values[:, 0]
    torch.testing.assert_close(plain, torch.tensor([0.0, -2.0, 1.0]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(dropped, torch.tensor([1.0, 2.0, 1.0]), atol=1e-6, rtol=1e-5)


def test_frozen_weights_give_the_same() -> None:
    m = tiny.model()
    scores = AtPStar("heads")(m, task_on(m)).values
    frozen = tiny.model()
    frozen.module.requires_grad_(False)
    torch.testing.assert_close(AtPStar("heads")(frozen, task_on(frozen)).values, scores)


def test_what_cannot_be_fixed_is_refused(m: Model) -> None:
    with pytest.raises(InputError, match="whole queries and keys, got k by layer and unit"):
        AtPStar(Parts("k", ("unit",)))(m, task_on(m))
    one = Model(toy(5, layers=1, seed=3))
    task = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), metric=lambda x: x[:, -1, 0])
    with pytest.raises(InputError, match="at least 2 blocks, got 1"):
        AtPStar()(one, task)
    assert AtPStar(grad_drop=False)(one, task).values.shape == (1, 2)
    with pytest.raises(InputError, match="direction must be"):
        AtPStar("heads", "up")  # type: ignore[arg-type]
