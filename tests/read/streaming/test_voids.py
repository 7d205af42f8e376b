import numpy as np
import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.model import Model
from actkit.read.streaming.voids import STREAM, Voids, active_layers, voids_by_phase
from tests._evidence import Evidence
from tests.contract import rows
from tests.core import tiny


def norms(*increases: float) -> Tensor:
    """Return the (1, S) lengths of a token that grows from 2 by these increases."""
    return torch.tensor([[2.0, *increases]], dtype=torch.float64).cumsum(1)


def walks(num: int = 29, layers: int = 7, seed: int = 0) -> Tensor:
    """Return (N, S) lengths that mostly rise, and sometimes fall."""
    gen = torch.Generator().manual_seed(seed)
    steps = 1 + 3 * torch.randn(num, layers, generator=gen, dtype=torch.float64)
    return 50 + torch.cat([torch.zeros(num, 1, dtype=torch.float64), steps], 1).cumsum(1)


@pytest.mark.paper("void-language-models")
def test_the_scripted_token_has_one_void(evidence: Evidence) -> None:
    mask = active_layers(norms(1, 5, 1, 4.5, 6), 0.8)
    wanted = torch.tensor([[True, True, False, True, True]])
    evidence(
        "scripted token: layers whose mask differs", measured=(mask != wanted).sum(), at_most=0
    )
    for layer, threshold in enumerate((0, 0, 3.2, 3.2, 3.2)):
        for off, active in ((-1e-9, False), (1e-9, True)):
            own = [1.0, 5.0, 1.0, 4.5, 6.0]
            own[layer] = threshold + off
            assert bool(active_layers(norms(*own), 0.8)[0, layer]) is active


def test_masks_equal_a_loop() -> None:
    norms_NS = walks()
    for alpha in (0.0, 0.35, 0.8, 2.0):
        mask = active_layers(norms_NS, alpha)
        for n, own in enumerate(norms_NS.numpy()):
            steps = np.diff(own)
            for layer, step in enumerate(steps):
                before = steps[:layer]
                span = before.max() - before.min() if layer else 0.0
                assert bool(mask[n, layer]) == (step >= alpha * span)


@pytest.mark.paper("void-language-models")
def test_rule_has_its_limits(evidence: Evidence) -> None:
    norms_NS = walks()
    falling = norms_NS.diff(dim=1) < 0
    off = (active_layers(norms_NS, 0.0) == falling).sum()
    evidence(
        "alpha 0: layers that are void without shortening, or not with", measured=off, at_most=0
    )
    for factor in (1e-3, 0.7, 1e4):
        assert torch.equal(active_layers(factor * norms_NS, 0.8), active_layers(norms_NS, 0.8))
    counts = [int(active_layers(norms_NS, a).sum()) for a in (0, 0.1, 0.4, 0.8, 1.5)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_a_layer_at_its_threshold_is_active() -> None:
    assert active_layers(norms(0, 0, 1, 0.5), 0.5).tolist() == [[True, True, True, True]]


def test_shares_are_those_of_the_masks() -> None:
    norms_NS = walks(37)
    unit_ND = torch.nn.functional.normalize(tiny.uneven(37, 6, dtype=torch.float64), dim=1)
    acts = [length_N[:, None] * unit_ND for length_N in norms_NS.T]
    reading = Voids(alpha=(0.8, 0.2))
    reading.update(acts, rows())
    kept_NS = norms_NS[rows().position > 0]
    result = reading.result()
    for a, alpha in enumerate((0.8, 0.2)):
        wanted_L = active_layers(kept_NS, alpha).double().mean(0)
        torch.testing.assert_close(result.active_AL[a], wanted_L)
        assert float(result.active_A[a]) == pytest.approx(float(wanted_L.mean()))
    assert result.num_rows == len(kept_NS) < 37
    assert result.summary()["num_mostly_void"] == int((result.active_AL[0] < 0.5).sum())


def test_other_numbers_of_layers_are_refused() -> None:
    reading = Voids()
    reading.update([torch.ones(37, 2)] * 3, rows())
    with pytest.raises(InputError, match="number of layers: it holds 2, got 3"):
        reading.update([torch.ones(37, 2)] * 4, rows())
    with pytest.raises(InputError, match="at least 2 sites"):
        Voids().update([torch.ones(37, 2)], rows())
    with pytest.raises(InputError, match="at least 2 sites"):
        Voids().update([], rows())


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), ()], ids=str)
def test_alphas_must_be_numbers_from_zero(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha must be finite and at least 0"):
        Voids(alpha=alpha)


def test_phases_split_a_text_where_the_answer_begins() -> None:
    model = tiny.model()
    found = voids_by_phase(model, tiny.PROMPTS, alpha=0.5, max_new_tokens=4)
    assert found["prompt"].num_rows == 6 + 2 + 4  # without first tokens
    assert found["generated"].num_rows == 3 * 3  # without the last token of each answer
    given = model.observe(tiny.PROMPTS, {STREAM: [Voids(alpha=0.5)]})[STREAM][0].result()
    torch.testing.assert_close(found["prompt"].active_AL, given.active_AL)
    assert not torch.equal(found["prompt"].active_AL, found["generated"].active_AL)
    with pytest.raises(InputError, match=r"at least 2 new tokens, got .* and 1"):
        voids_by_phase(model, tiny.PROMPTS, max_new_tokens=1)
    with pytest.raises(InputError, match="language model with a tokenizer"):
        voids_by_phase(Model(model.module), [[1, 2, 3]])


def test_reading_an_answer_again_sees_what_cached_generation_saw() -> None:
    """The states of generation, read while it runs, give the same voids."""
    import actkit as ak

    model = tiny.model()
    seen: list[list[Tensor]] = []

    def keep(x: Tensor) -> Tensor:
        seen[-1].append(x[0].norm(dim=-1))
        return x

    def begin(x: Tensor) -> Tensor:
        seen.append([])
        return keep(x)

    where = ak.Where(tokens="generated")
    edits = [ak.apply("resid_pre.0", begin, where), ak.apply("resid_post.*", keep, where)]
    model.generate(tiny.PROMPTS[0], edits=edits, max_new_tokens=5)
    norms_NS = torch.stack([torch.cat(step) for step in seen])
    wanted_L = active_layers(norms_NS, 0.5).double().mean(0)
    found = voids_by_phase(model, tiny.PROMPTS[:1], alpha=0.5, max_new_tokens=5)["generated"]
    assert found.num_rows == len(norms_NS) == 4
    torch.testing.assert_close(found.active_AL[0], wanted_L)


def test_images_and_rows_without_tokens_have_no_first_token() -> None:
    reading = Voids()
    reading.update(
        [torch.ones(4, 3), 2 * torch.ones(4, 3)], Rows.of(torch.ones(1, 4).bool()).flat()
    )
    assert reading.result().num_rows == 4
