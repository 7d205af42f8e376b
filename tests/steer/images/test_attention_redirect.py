"""Attention redirection: the attention matrix itself, and discs erased from stripes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

import actkit as ak
from actkit.core.errors import EditError, InputError
from actkit.model import Model
from actkit.steer.images.attention_redirect import PARTS, AttentionRedirect, RedirectionGuidance
from tests._evidence import Evidence
from tests.core import tiny
from tests.steer._dit import DISC, NONE, Attention, DiT, denoise, gaussian, noised, scenes
from tests.steer._dit import trained as trained_on

WIDTH, HEADS, TOKENS = 48, 3, 15
MASK = torch.zeros(3, 5)
MASK[1, 1:3] = MASK[2, 4] = 1
OBJECT = MASK.flatten().bool()


class Layer(nn.Module):
    """One layer of self-attention, and what a subclass does to its queries."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.attn1 = Attention(WIDTH, HEADS).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attn1(x)
        return out


class Written(Attention):
    """Attention written out, and what may be done to its queries before."""

    normed = False

    def forward(self, x_BTD: Tensor, context_BPD: Tensor | None = None) -> Tensor:
        q_BTD = self.to_q(x_BTD)
        q_BTD = 3 * layer_norm(q_BTD, (WIDTH,)) if self.normed else q_BTD
        q, k, v = (
            g.reshape(len(x_BTD), -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for g in (q_BTD, self.to_k(x_BTD), self.to_v(x_BTD))
        )
        z = (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v
        out: Tensor = self.to_out[0](z.transpose(1, 2).flatten(2))
        return out


class Normed(Written):
    normed = True


@pytest.fixture
def layer() -> Model:
    return ak.open(Layer())


def fitted(model: Model, mask: Tensor = MASK, **settings: Any) -> AttentionRedirect:
    return AttentionRedirect(**{"attention": "attn1", **settings}).fit(model, mask)


def probabilities(model: Model, x: Tensor, edits: list[ak.Edit]) -> Tensor:
    """Return the (B, H, T, S) attention: what each head mixes if value j is the j-th unit vector.

    Heads are as wide as there are tokens, or wider.
    """
    width = WIDTH // HEADS
    one_hot = torch.eye(TOKENS, width).repeat(1, HEADS)
    reader = ak.set("attn1.to_v:out", one_hot.expand(len(x), -1, -1))
    z = model.run(x, record="attn1.to_out.0:in", edits=[reader, *edits])["attn1.to_out.0:in"]
    return z.reshape(len(x), TOKENS, HEADS, width).transpose(1, 2)[..., :TOKENS]


def expected(model: Model, x: Tensor, dose: float, suppress: float) -> Tensor:
    """Return the redirected attention in float64, entry by entry."""
    state = model.module.state_dict()
    q, k = (
        (x.double() @ state[f"attn1.to_{part}.weight"].double().mT).reshape(2, TOKENS, HEADS, -1)
        for part in "qk"
    )
    logits = torch.einsum("bthk,bshk->bhts", q, k) / (WIDTH // HEADS) ** 0.5
    weights = torch.zeros_like(logits)
    for i in range(TOKENS):
        for j in range(TOKENS):
            factor = 1 - dose * (1 - suppress) if OBJECT[i] else 1.0
            share = 1 - dose if OBJECT[j] else 1.0
            weights[:, :, i, j] = share * (factor * logits[:, :, i, j]).exp()
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.paper("attentive-eraser")
def test_no_token_attends_to_the_object(layer: Model, evidence: Evidence) -> None:
    x = tiny.uneven(2, TOKENS, WIDTH)
    bare = probabilities(layer, x, [])
    assert bare[..., OBJECT].sum(-1).min() > 0.01
    probs = probabilities(layer, x, fitted(layer).edits())
    evidence("attention of any token to the object", measured=probs[..., OBJECT].max(), at_most=0)
    evidence("row sums less 1", measured=(probs.sum(-1) - 1).abs().max(), at_most=1e-6)
    error = (probs - expected(layer, x, 1.0, 0.3)).abs().max()
    evidence("difference to the formula in float64", measured=error, at_most=1e-5)
    sharp = probabilities(layer, x, fitted(layer, suppress=1.0).edits())
    assert probs[:, :, OBJECT].max() < sharp[:, :, OBJECT].max()
    assert torch.equal(probs[:, :, ~OBJECT], sharp[:, :, ~OBJECT])


@pytest.mark.parametrize("dose", [0.4, 0.9])
def test_strengths_below_one_leave_a_share(layer: Model, dose: float) -> None:
    x = tiny.uneven(2, TOKENS, WIDTH)
    probs = probabilities(layer, x, fitted(layer, suppress=0.5).edits(dose))
    torch.testing.assert_close(probs.double(), expected(layer, x, dose, 0.5), rtol=0, atol=1e-5)


@pytest.mark.paper("attentive-eraser")
def test_background_does_not_depend_on_the_object(layer: Model, evidence: Evidence) -> None:
    x = tiny.uneven(2, TOKENS, WIDTH)
    other = torch.where(OBJECT[:, None], 30 * tiny.uneven(2, TOKENS, WIDTH, seed=1) - 7, x)
    edits = fitted(layer).edits()
    one, two = (layer.run(given, edits=edits).output for given in (x, other))
    change = (one - two)[:, ~OBJECT].abs().max()
    evidence("change of the background's outputs with the object", measured=change, at_most=0)
    plain = (layer.run(x).output - layer.run(other).output)[:, ~OBJECT].abs().max()
    evidence("the same without redirection", measured=plain, at_least=0.1)


@pytest.mark.paper("attentive-eraser")
def test_what_changes_no_bit(layer: Model, evidence: Evidence) -> None:
    x = tiny.uneven(2, TOKENS, WIDTH)
    bare = layer.run(x).output
    redirect, empty = fitted(layer), fitted(layer, 0 * MASK)

    def guided(scale: float, by: AttentionRedirect = redirect) -> Tensor:
        out: Tensor = RedirectionGuidance(layer, by, scale)(x)
        return out

    for what, output in {
        "empty mask": layer.run(x, edits=empty.edits()).output,
        "empty mask, guided": guided(5.0, empty),
        "strength 0": layer.run(x, edits=redirect.edits(0.0)).output,
        "guidance 0": guided(0.0),
    }.items():
        evidence(f"{what}: change", measured=(output - bare).abs().max(), at_most=0)
    redirected = layer.run(x, edits=redirect.edits()).output
    error = (guided(1.0) - redirected).abs().max()
    evidence("guidance 1: difference to the redirected prediction", measured=error, at_most=0)
    torch.testing.assert_close(guided(4.0), bare + 4 * (redirected - bare), rtol=1e-4, atol=1e-5)


def test_each_row_has_its_own_mask_and_strength(layer: Model) -> None:
    x = tiny.uneven(3, TOKENS, WIDTH)
    masks, doses = torch.stack([MASK, MASK.flip(0), 0 * MASK]), torch.tensor([1.0, 0.6, 1.0])
    together = layer.run(x, edits=fitted(layer, masks).edits(doses)).output
    for i in range(2):
        alone = layer.run(x[i : i + 1], edits=fitted(layer, masks[i]).edits(float(doses[i])))
        torch.testing.assert_close(together[i], alone.output[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(together[2], layer.run(x).output[2])


def test_rows_of_strength_zero_keep_every_bit() -> None:
    """In a layer with a kernel of its own, whose sums round in another way."""
    net, x = Layer(), 3 * tiny.uneven(3, TOKENS, WIDTH)
    net.attn1 = Written(WIDTH, HEADS)
    model = ak.open(net)
    bare = model.run(x).output
    masks, doses = torch.stack([MASK, MASK, 0 * MASK]), torch.tensor([1.0, 0.0, 1.0])
    some = model.run(x, edits=fitted(model, masks).edits(doses)).output
    assert torch.equal(some[1:], bare[1:])
    assert not torch.equal(some[0], bare[0])


def test_the_object_are_all_tokens_that_it_touches(layer: Model) -> None:
    fine = torch.zeros(9, 15)
    fine[3, 4] = fine[5, 7] = fine[8, 14] = 1
    x = tiny.uneven(1, TOKENS, WIDTH)
    one, two = (layer.run(x, edits=fitted(layer, m).edits()).output for m in (fine, MASK))
    assert torch.equal(one, two)


def test_saved_edits_do_the_same(layer: Model, tmp_path: Path) -> None:
    x, redirect = tiny.uneven(2, TOKENS, WIDTH), fitted(layer)
    redirect.save(tmp_path / "edits.safetensors", layer, strength=0.8)
    loaded = ak.load_edits(tmp_path / "edits.safetensors", layer)
    assert len(loaded) == len(PARTS)
    here, there = (layer.run(x, edits=e).output for e in (redirect.edits(0.8), loaded))
    assert torch.equal(here, there)


def test_bad_input_is_refused(layer: Model) -> None:
    x = tiny.uneven(2, TOKENS, WIDTH)
    with pytest.raises(InputError, match=r"suppress must be in \(0, 1\], got 0"):
        fitted(layer, suppress=0)
    with pytest.raises(InputError, match=r"mask must be \(Y, X\).* shape \(3, 5\)"):
        fitted(layer, 0.5 * MASK)
    with pytest.raises(InputError, match=r"mask must be \(Y, X\).* shape \(15,\)"):
        fitted(layer, MASK.flatten())
    with pytest.raises(InputError, match=r"leave background, got \(3, 5\)"):
        fitted(layer, torch.ones(3, 5))
    with pytest.raises(EditError, match=r"must be in \[0, 1\], got 1.5"):
        fitted(layer).edits(1.5)
    with pytest.raises(EditError, match="grid of the mask's shape 4 x 4, got 15 tokens"):
        layer.run(x, edits=fitted(layer, torch.eye(4)).edits())
    with pytest.raises(EditError, match="leave background, got all of 3 x 5 tokens"):
        layer.run(x, edits=fitted(layer, torch.tensor([[0.0, 1.0]]).repeat(6, 5)).edits())
    nameless = Layer()
    del nameless.attn1.heads
    with pytest.raises(InputError, match="how many heads it has, got None at attn1"):
        fitted(ak.open(nameless))


def test_layers_that_do_more_than_attention_are_refused() -> None:
    net = Layer()
    net.attn1 = Normed(WIDTH, HEADS)
    model = ak.open(net)
    with pytest.raises(EditError, match="without norms or rotations"):
        model.run(tiny.uneven(1, TOKENS, WIDTH), edits=fitted(model).edits())


def test_a_network_of_diffusers() -> None:
    """Its two resolutions have grids of their own; the mask is that of the image."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=3, out_channels=3, layers_per_block=1,
            block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=6,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ).eval()  # fmt: skip
    model = ak.open(net)
    mask = torch.zeros(16, 24)
    mask[4:9, 3:12] = 1
    given = ak.Call(gaussian(2, 3, 8, 12, seed=0), torch.tensor(500), gaussian(2, 4, 6, seed=1))
    bare = model.run(given).output.sample
    redirect = AttentionRedirect().fit(model, mask)
    assert len({e.site for e in redirect.edits()}) == 4 * len(redirect.heads_) > 4
    assert torch.equal(model.run(given, edits=redirect.edits(0.0)).output.sample, bare)
    redirected = model.run(given, edits=redirect.edits()).output.sample
    assert not torch.allclose(redirected, bare)
    late = AttentionRedirect("up_blocks.*.attn1").fit(model, mask)
    assert set(late.heads_) < set(redirect.heads_)
    with torch.no_grad():
        guided = RedirectionGuidance(model, redirect, 3.0)(*given.args)
    torch.testing.assert_close(guided.sample, bare + 3 * (redirected - bare), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def trained() -> DiT:
    """Sees stripes, with a disc in one of three images."""
    seen = scenes(4000, 0, (NONE, NONE, DISC))
    return trained_on(seen.images, torch.zeros(4000, 1, dtype=torch.long), 400)


@pytest.fixture(scope="module")
def detect() -> Any:
    """Return the probability that there is a disc, by a network trained on other images."""
    from sklearn.neural_network import MLPClassifier

    seen = scenes(4000, 1, (NONE, DISC))
    noisy = seen.images + 0.1 * gaussian(4000, 1, 8, 8, seed=1)
    network = MLPClassifier((64,), max_iter=40, tol=1e-3, random_state=0)
    network.fit(noisy.flatten(1), seen.prompts[:, 0] == DISC)
    return lambda images: torch.tensor(network.predict_proba(images.flatten(1).numpy())[:, 1])


@pytest.mark.slow
@pytest.mark.paper("attentive-eraser")
def test_discs_are_erased_from_stripes(trained: DiT, detect: Any, evidence: Evidence) -> None:
    """From the image noised to 80 %; outside the mask it is put back after each step.

    So the background's error is that of what is painted where the disc was, against the stripes
    behind it, which are known. The baseline does the same without redirection.
    """
    given, noise = scenes(50, 7, (DISC,)), gaussian(50, 1, 8, 8, seed=3)
    words = torch.zeros(50, 1, dtype=torch.long)
    model = ak.open(trained)
    redirect = AttentionRedirect().fit(model, given.masks)
    assert (detect(given.images) > 0.9).all()

    def erased(scale: float, num_steps: int = 16) -> Tensor:
        guide = RedirectionGuidance(model, redirect, scale)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            early = t[0] > 0.2 * 0.8
            out: Tensor = guide(x, t, words) if early else trained(x, t, words)
            return out

        def put_back(x: Tensor, time: float) -> Tensor:
            return guide.with_background(x, noised(given.images, noise, time))

        start = noised(given.images, noise, 0.8)
        return denoise(predict, start, num_steps, 0.8, after=put_back)

    def removed(images: Tensor) -> float:
        return float((detect(images) < 0.1).float().mean())

    def hole_error(images: Tensor) -> float:
        hole = given.masks[:, None]
        return float(((images - given.backgrounds) * hole).square().sum() / hole.sum())

    plain, guided = erased(0.0), erased(3.0)
    outside = (guided - given.images)[~given.masks[:, None]].abs().max()
    evidence("change outside the mask", measured=outside, at_most=1e-6)
    evidence("discs removed, guidance 3 (share of 50)", measured=removed(guided), at_least=0.8)
    gain = removed(guided) - removed(plain)
    evidence("more than by inpainting without redirection", measured=gain, at_least=0.1)
    ratio = hole_error(guided) / hole_error(plain)
    evidence("error of the background, over that of inpainting", measured=ratio, at_most=0.5)
    strong = erased(9.0)
    evidence("discs removed, guidance 9 (share of 50)", measured=removed(strong), at_least=0.8)
    ratio = hole_error(strong) / hole_error(plain)
    evidence("guidance 9: error over that of inpainting", measured=ratio, at_most=0.5)
