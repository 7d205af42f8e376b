"""Photos to tensors.

Shapes: H height, W width, S side of a square.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from actkit.core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


def read_image(path: Path, size: int | None = None, share: float = 1.0) -> "Tensor":
    """Read a photo as a uint8 tensor in RGB, turned upright as its file says.

    Args:
        path: A file that Pillow can read.
        size: Side in pixels of the square that is cut from the middle and resized (bicubic);
            None keeps the photo's own (3, H, W).
        share: Side of the square as a share of the photo's shorter side, in (0, 1].

    Raises:
        DataError: Pillow is missing, or the file is no photo.
    """
    image_module, ops = _pillow()
    import numpy as np
    import torch

    try:
        with image_module.open(path) as opened:
            photo = ops.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow calls a broken PNG a SyntaxError
        raise DataError(f"{path}: a photo must be a readable image file: {error}") from error
    if size is not None:
        side = max(1, round(min(photo.size) * share))
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        square = photo.crop((left, top, left + side, top + side))
        photo = square.resize((size, size), image_module.Resampling.BICUBIC)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous()


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError("reading photos needs Pillow; run: pip install pillow") from error
    return Image, ImageOps
