"""Choose what a reference image tells a generator, by filters on its pixels.

Shapes: B batch, C channels, Y and X pixels.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.steer._base import InputSteering
from actkit.steer.images.filter_condition._filter_effect import FilterEffect, filter_effect
from actkit.steer.images.filter_condition._image_filters import (
    Filter,
    band,
    edges,
    greyscale,
    passed,
)

__all__ = [
    "Filter", "FilterEffect", "band", "edges", "filter_condition", "filter_effect",
    "filter_estimate", "greyscale",
]  # fmt: skip
R = TypeVar("R")


@method(source="FilterPrompt 2024, arXiv:2404.13263", interface=InputSteering)
def filter_condition(pipe: Callable[..., R], *filters: Filter) -> Callable[..., R]:
    """Return a generator that sees its reference image through filters.

    What a filter drops, the encoder cannot read: without colours a reference gives its forms,
    without high frequencies its layout, as edges its structure. `filter_estimate` does the same
    to what the sampler thinks the image is, `filter_effect` measures it in activations. As in the
    paper, with any filters in place of its few.

    Args:
        pipe: Takes the (B, C, Y, X) reference images first; other arguments are handed on.
        filters: Applied in order: `band`, `greyscale`, `edges`, or your own.

    Raises:
        InputError: A filter does not return images of the same shape.

    Example:
        >>> mean = filter_condition(lambda image: image.mean((0, 2, 3)), greyscale)
        >>> mean(torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1))
        tensor([0.2990, 0.2990, 0.2990])
    """

    def filtered(image_BCYX: Tensor, *args: Any, **kwargs: Any) -> R:
        return pipe(passed(image_BCYX, filters), *args, **kwargs)

    return filtered


def filter_estimate(
    x_BCYX: Tensor, eps_BCYX: Tensor, alpha_bar: float | Tensor, *filters: Filter
) -> Tensor:
    """Return noisy images whose estimate of the clean image is filtered, with the same noise.

    The estimate is x0 = (x - sqrt(1 - a) eps) / sqrt(a); x' = sqrt(a) F(x0) + sqrt(1 - a) eps.
    Where a filter leaves the estimate, every bit of x stays. Give x' to the sampler's step in
    place of x.

    Args:
        x_BCYX: Noisy images.
        eps_BCYX: The noise that the network sees in them.
        alpha_bar: a, the share of the image in their variance: in (0, 1], a number or (B,).
        filters: Applied in order.

    Raises:
        InputError: `alpha_bar` is out of its range, or a filter changes the shape.

    Example:
        >>> x, eps = torch.full((1, 1, 1, 1), 1.4), torch.ones(1, 1, 1, 1)
        >>> round(filter_estimate(x, eps, 0.64, lambda image: 0 * image).item(), 4)
        0.6
    """
    a = torch.as_tensor(alpha_bar, dtype=x_BCYX.dtype, device=x_BCYX.device).reshape(-1, 1, 1, 1)
    if not ((a > 0) & (a <= 1)).all():
        raise InputError(f"alpha_bar must be in (0, 1], got {alpha_bar}")
    image = (x_BCYX - (1 - a).sqrt() * eps_BCYX) / a.sqrt()
    return x_BCYX + a.sqrt() * (passed(image, filters) - image)
