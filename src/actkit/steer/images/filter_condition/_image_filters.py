"""Filters on the pixels of images.

Shapes: B batch, C channels, Y and X pixels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from actkit.core.errors import InputError

Filter = Callable[[Tensor], Tensor]
"""From (B, C, Y, X) images to images of the same shape."""


def passed(image_BCYX: Tensor, filters: Sequence[Filter]) -> Tensor:
    """Return images passed through filters in order.

    Raises:
        InputError: A filter changes the shape.
    """
    for one in filters:
        new = one(image_BCYX)
        if new.shape != image_BCYX.shape:
            raise InputError(
                f"a filter must keep the shape {tuple(image_BCYX.shape)}, got {tuple(new.shape)}"
            )
        image_BCYX = new
    return image_BCYX


def band(low: float, high: float) -> Filter:
    """Return a filter that keeps frequencies from `low` to below `high`.

    Frequencies are lengths in cycles a pixel, 0 for the mean, at most 0.71 in the corners.

    Example:
        >>> stripes = torch.tensor([[[[1.0, 3.0, 1.0, 3.0]]]])
        >>> band(0, 0.3)(stripes)
        tensor([[[[2., 2., 2., 2.]]]])
    """
    if not 0 <= low < high:
        raise InputError(f"a band must have 0 <= low < high, got {low} and {high}")

    def kept(image_BCYX: Tensor) -> Tensor:
        height, width = image_BCYX.shape[-2:]
        length_YX = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width))
        passes = ((length_YX >= low) & (length_YX < high)).to(image_BCYX.device)
        new: Tensor = torch.fft.ifft2(torch.fft.fft2(image_BCYX) * passes).real
        return new

    return kept


def greyscale(image_BCYX: Tensor) -> Tensor:
    """Return RGB images in grey, three equal channels: 0.299 R + 0.587 G + 0.114 B."""
    if image_BCYX.shape[1] != 3:
        raise InputError(f"colour images must have 3 channels, got {tuple(image_BCYX.shape)}")
    weights = torch.tensor([0.299, 0.587, 0.114]).to(image_BCYX)
    return (image_BCYX * weights[:, None, None]).sum(1, keepdim=True).expand_as(image_BCYX)


def edges(image_BCYX: Tensor) -> Tensor:
    """Return the length of each channel's gradient, by differences to the next pixel."""
    down = image_BCYX.diff(dim=-2, append=image_BCYX[..., -1:, :])
    right = image_BCYX.diff(dim=-1, append=image_BCYX[..., -1:])
    return torch.hypot(down, right)
