"""Filters: by hand on small images, on the samples of a tiny DiT, and on EfficientNet-lite0."""

from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer.images.filter_condition import (
    Filter,
    band,
    edges,
    filter_condition,
    filter_effect,
    filter_estimate,
    greyscale,
)
from tests._evidence import Evidence
from tests.core import tiny
from tests.steer._dit import DiT, alpha_bar, denoise, gaussian, noised
from tests.steer._dit import trained as trained_on


def uneven_images(*shape: int) -> Tensor:
    return tiny.uneven(*shape, dtype=torch.float64)


def test_a_band_keeps_the_waves_in_it() -> None:
    y, x = torch.meshgrid(torch.arange(10.0), torch.arange(12.0), indexing="ij")
    slow, fast = (2 * torch.pi * (0.2 * y + 0.25 * x)).cos(), (2 * torch.pi * 0.4 * y).sin()
    image = (3 + 2 * slow - 5 * fast)[None, None]
    for low, high, expected in (
        (0.0, 0.1, torch.full_like(slow, 3)),
        (0.3, 0.35, 2 * slow),
        (0.35, 0.5, -5 * fast),
        (0.0, 0.35, 3 + 2 * slow),
    ):
        torch.testing.assert_close(band(low, high)(image)[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_bands_add_up_to_the_image() -> None:
    image = uneven_images(2, 3, 7, 10)
    parts = band(0, 0.17)(image) + band(0.17, 0.4)(image) + band(0.4, 1)(image)
    torch.testing.assert_close(parts, image)


def test_greyscale_and_edges_by_hand() -> None:
    image = torch.tensor([[[[1.0, 1.0]], [[0.0, 2.0]], [[0.0, 0.0]]]])
    grey = torch.tensor([[[[0.299, 0.299 + 2 * 0.587]]]]).expand(-1, 3, -1, -1)
    torch.testing.assert_close(greyscale(image), grey)
    steps = torch.tensor([[[[0.0, 3.0, 3.0], [4.0, 3.0, 3.0]]]])
    assert torch.equal(edges(steps), torch.tensor([[[[5.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]]))


def test_filters_act_in_order_and_other_arguments_are_handed_on() -> None:
    def pipe(image: Tensor, prompt: str, seed: int = 0) -> tuple[Tensor, str, int]:
        return image, prompt, seed

    image = uneven_images(1, 3, 4, 5)
    seen, prompt, seed = filter_condition(pipe, edges, greyscale)(image, "a cat", seed=3)
    assert torch.equal(seen, greyscale(edges(image)))
    assert not torch.equal(seen, edges(greyscale(image)))
    assert (prompt, seed) == ("a cat", 3)
    assert filter_condition(pipe)(image, "")[0] is image


def test_estimates_of_rows_at_different_times() -> None:
    x, eps = uneven_images(3, 2, 4, 5), uneven_images(3, 2, 4, 5) ** 2
    shares = torch.tensor([0.2, 1.0, 0.7], dtype=torch.float64)
    together = filter_estimate(x, eps, shares, edges)
    for i, share in enumerate(shares.tolist()):
        image = (x[i] - (1 - share) ** 0.5 * eps[i]) / share**0.5
        expected = share**0.5 * edges(image[None])[0] + (1 - share) ** 0.5 * eps[i]
        torch.testing.assert_close(together[i], expected)


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_bad_shares_are_refused(share: float) -> None:
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(InputError, match=r"alpha_bar must be in \(0, 1\]"):
        filter_estimate(x, x, share)


def test_bad_filters_are_refused() -> None:
    image = torch.ones(2, 1, 4, 4)
    with pytest.raises(InputError, match=r"keep the shape \(2, 1, 4, 4\), got \(2, 4, 4\)"):
        filter_condition(lambda x: x, lambda x: x[:, 0])(image)
    with pytest.raises(InputError, match=r"3 channels, got \(2, 1, 4, 4\)"):
        greyscale(image)
    with pytest.raises(InputError, match=r"low < high, got 0\.3 and 0\.3"):
        band(0.3, 0.3)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """1797 digits of 8 x 8 pixels in [-1, 1], and what they are."""
    from sklearn.datasets import load_digits

    read = load_digits()
    return torch.tensor(read.images / 8 - 1).float()[:, None], torch.tensor(read.target)


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> DiT:
    images, labels = digits
    return trained_on(images, labels[:, None], 400)


CLASSES = torch.arange(200) % 10
NOISE = gaussian(200, 1, 8, 8, seed=1)


def sampled(net: DiT, *filters: Filter, until: float = 0.0) -> Tensor:
    """Return 20 samples of each class, their estimates filtered down to the time `until`."""

    def through(x: Tensor, eps: Tensor, share: Tensor) -> Tensor:
        late = share > alpha_bar(torch.tensor(until))
        return x if late else filter_estimate(x, eps, share, *filters)

    return denoise(lambda x, t: net(x, t, CLASSES[:, None]), NOISE, before=through)


@pytest.mark.slow
@pytest.mark.paper("filterprompt")
def test_a_filter_that_changes_nothing(trained: DiT, evidence: Evidence) -> None:
    plain = denoise(lambda x, t: trained(x, t, CLASSES[:, None]), NOISE)
    change = (sampled(trained, lambda image: image) - plain).abs().max()
    evidence("change of the samples by the identity", measured=change, at_most=0)

    def varied(image: Tensor, time: float = 0.6) -> Tensor:
        """Return new versions of reference images: noised, and denoised again."""
        start = noised(image, NOISE, time)
        return denoise(lambda x, t: trained(x, t, CLASSES[:, None]), start, 10, time)

    same = filter_condition(varied, lambda image: image)(plain)
    change = (same - varied(plain)).abs().max()
    evidence("change of versions of a reference by the identity", measured=change, at_most=0)
    smooth = filter_condition(varied, band(0, 0.2))(plain)
    assert (smooth - varied(plain)).abs().mean() > 0.05


@pytest.mark.slow
@pytest.mark.paper("filterprompt")
@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
def test_noise_stays_and_the_estimate_is_filtered(
    trained: DiT, evidence: Evidence, time: float
) -> None:
    x, share = noised(sampled(trained), NOISE, time), alpha_bar(torch.tensor(time))
    when = torch.full((200,), time)
    eps = trained(x, when, CLASSES[:, None])
    same = filter_estimate(x, eps, share, lambda image: image)
    change = (trained(same, when, CLASSES[:, None]) - eps).abs().max()
    evidence(f"change of the predicted noise by the identity, t={time}",
             measured=change, at_most=0)  # fmt: skip

    x, eps, share = x.double(), eps.double(), share.double()
    image = (x - (1 - share).sqrt() * eps) / share.sqrt()
    error = (share.sqrt() * image + (1 - share).sqrt() * eps - x).abs().max()
    evidence(f"estimate noised again less x, t={time}", measured=error, at_most=1e-6)
    smooth = filter_estimate(x, eps, share, band(0, 0.3))
    left = (smooth - share.sqrt() * band(0, 0.3)(image)) / (1 - share).sqrt()
    evidence(f"change of the noise by a low pass, t={time}",
             measured=(left - eps).abs().max(), at_most=1e-6)  # fmt: skip


@pytest.mark.slow
@pytest.mark.paper("filterprompt")
def test_low_pass_guidance(trained: DiT, digits: tuple[Tensor, Tensor], evidence: Evidence) -> None:
    """At 8 pixels classes need the frequencies up to 0.4 cycles a pixel, 58 % of all."""
    from sklearn.linear_model import LogisticRegression

    images, labels = digits
    probe = LogisticRegression(max_iter=1000).fit(images.flatten(1), labels)

    def accuracy(samples: Tensor) -> float:
        return float(probe.score(samples.flatten(1).numpy(), CLASSES.numpy()))

    def energy(samples: Tensor) -> float:
        return float(band(0.4, 1)(samples).square().mean())

    plain = sampled(trained)
    evidence("accuracy of the class probe, unfiltered", measured=accuracy(plain), at_least=0.9)
    for what, until in (("all steps", 0.0), ("steps before t=0.3", 0.3)):
        smooth = sampled(trained, band(0, 0.4), until=until)
        share = 1 - energy(smooth) / energy(plain)
        evidence(f"energy above the cut-off, removed in {what} (share)",
                 measured=share, at_least=0.5)  # fmt: skip
        change = abs(accuracy(smooth) - accuracy(plain))
        evidence(f"change of the accuracy, {what}", measured=change, at_most=0.05)


@pytest.fixture(scope="module")
def crops() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """16 squares of each of the 20 photos, which photo, and how red, blue and edged each is."""
    photos = ak.data.photos(size=256).images.float()
    squares = photos.unfold(2, 64, 64).unfold(3, 64, 64).permute(0, 2, 3, 1, 4, 5)
    images = squares.reshape(-1, 3, 64, 64)
    grey = greyscale(images)
    attributes = {
        "red less green": (images[:, 0] - images[:, 1]).mean((1, 2)),
        "blue less grey": (images[:, 2] - grey[:, 2]).mean((1, 2)),
        "edges": edges(grey).mean((1, 2, 3)).log1p(),
    }
    return ak.data.normalise(images), torch.arange(20).repeat_interleave(16), attributes


@pytest.mark.paper("filterprompt")
def test_greyscale_takes_colour_and_leaves_edges(
    lite0: Model, crops: Any, evidence: Evidence
) -> None:
    images, photo, attributes = crops
    effect = filter_effect(lite0, images, [greyscale], "_blocks.8:out", attributes, photo)
    for colour in ("red less green", "blue less grey"):
        evidence(f"{colour}: R2 of a probe of EfficientNet", measured=effect.before[colour],
                 at_least=0.4)  # fmt: skip
        removed = 1 - max(effect.after[colour], 0) / effect.before[colour]
        evidence(f"{colour}: R2 removed by greyscale (share)", measured=removed, at_least=0.9)
    change = abs(effect.after["edges"] / effect.before["edges"] - 1)
    evidence("edges: change of R2 by greyscale (share)", measured=change, at_most=0.1)
    assert effect.before["edges"] > 0.8
    assert 0.2 < effect.cosine < 0.999


class Pixels(torch.nn.Module):
    """An encoder whose activations are the images."""

    def __init__(self) -> None:
        super().__init__()
        self.images = torch.nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.images(x)
        return out


def test_effect_on_an_encoder_that_keeps_everything() -> None:
    """Means of the channels are all it keeps; a filter that takes one leaves the others."""
    images = tiny.uneven(37, 3, 4, 5) + tiny.uneven(37, 3, 1, 1, seed=1)
    means = images.mean((2, 3))
    attributes = {"first": means[:, 0] - 2, "last": 5 * means[:, 2]}

    def without_first(x: Tensor) -> Tensor:
        return x * torch.tensor([0.0, 1.0, 1.0])[:, None, None]

    model = ak.open(Pixels())
    effect = filter_effect(model, images, [without_first], "images:out", attributes, batch_size=10)
    assert min(effect.before.values()) > 0.95
    assert effect.after["first"] < 0.3
    assert effect.after["last"] > 0.95
    kept = means * torch.tensor([0.0, 1.0, 1.0])
    cosine = torch.cosine_similarity(means, kept).mean()
    assert effect.cosine == pytest.approx(float(cosine), abs=1e-5)
    truth = torch.corrcoef(torch.stack([*attributes.values()]))
    torch.testing.assert_close(effect.correlation_before.float(), truth, rtol=0, atol=0.1)
    same = filter_effect(model, images, [], "images:out", attributes)
    assert same.before == same.after
    assert torch.equal(same.correlation_before, same.correlation_after)


def test_images_of_a_group_are_held_out_together() -> None:
    """Copies of an image tell each other's numbers, which are drawn by lot."""
    photo = torch.arange(12).repeat_interleave(5)
    images, lots = tiny.uneven(12, 30, 2, 2)[photo], tiny.uneven(12, seed=1)[photo]
    model = ak.open(Pixels())
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    seen, drawn = images[order], {"lots": lots[order]}
    assert filter_effect(model, seen, [], "images:out", drawn).before["lots"] > 0.9
    apart = filter_effect(model, seen, [], "images:out", drawn, photo[order])
    assert apart.before["lots"] < 0.3


def test_bad_attributes_and_groups_are_refused() -> None:
    model, images = ak.open(Pixels()), tiny.uneven(5, 3, 2, 2)
    good = torch.arange(5.0)
    for bad in (good[:4], torch.ones(5), torch.tensor([0.0, 1.0, 2.0, 3.0, float("nan")])):
        with pytest.raises(InputError, match="5 finite numbers that differ, got 'bad'"):
            filter_effect(model, images, [], "images:out", {"good": good, "bad": bad})
    for groups in (torch.zeros(5), torch.arange(4)):
        with pytest.raises(InputError, match="5 images need as many group numbers"):
            filter_effect(model, images, [], "images:out", {"good": good}, groups)
