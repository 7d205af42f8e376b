"""Twenty labelled ImageNet photos, read from the files of an installed package.

Shapes: N photos, S side of the square in pixels.
"""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from actkit.core.errors import DataError
from actkit.data._images import read_image

if TYPE_CHECKING:
    from torch import Tensor

MISSING = (
    "the labelled photos are files of the package foolbox; "
    "run: pip install --no-deps foolbox==3.3.4"
)
NAMES = {
    22: "bald eagle",
    99: "goose",
    129: "spoonbill",
    243: "bull mastiff",
    251: "dalmatian",
    305: "dung beetle",
    317: "leafhopper",
    438: "beaker",
    455: "bottlecap",
    471: "cannon",
    541: "drum",
    559: "folding chair",
    609: "jeep",
    630: "Loafer",
    741: "prayer rug",
    853: "thatch",
    915: "yurt",
    949: "strawberry",
    990: "buckeye",
}
"""ImageNet's names of the classes that the photos show."""


@dataclass(frozen=True, slots=True)
class Photos:
    """Labelled photos.

    Attributes:
        images: (N, 3, S, S) uint8, RGB.
        labels: (N,) int64, ImageNet class numbers 0..999.
        names: The N names of the classes.
    """

    images: "Tensor"
    labels: "Tensor"
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.names)


def photos(size: int = 224, share: float = 0.875) -> Photos:
    """Read the 20 labelled ImageNet photos of foolbox 3.3.4 (MIT), without importing it.

    The labels are those of the files' names. One is doubtful: the photo of class 741, a prayer
    rug, shows a stained-glass window.

    Args:
        size: Side in pixels after resizing (bicubic).
        share: Side of the square that is cut from the middle, as a share of the shorter side.

    Raises:
        DataError: a bound is broken, or the package or Pillow is missing.
    """
    if size < 1 or not 0 < share <= 1:
        raise DataError(f"size must be >= 1 and share in (0, 1], got {size} and {share}")
    import torch

    files = _files()
    labels = [_label(file) for file in files]
    images = torch.stack([read_image(file, size, share) for file in files])
    return Photos(images, torch.tensor(labels), tuple(NAMES[label] for label in labels))


def normalise(
    images: "Tensor",
    mean: float | tuple[float, float, float] = 127.0,
    std: float | tuple[float, float, float] = 128.0,
) -> "Tensor":
    """Return `(images - mean) / std` in float32, by default as EfficientNet-lite expects it.

    Args:
        images: (..., 3, H, W), values in 0..255.
        mean: One number, or one per channel, in units of 0..255.
        std: Likewise, above 0.

    Raises:
        DataError: the images have no three channels, or `std` is not above 0.

    Example:
        >>> import torch
        >>> normalise(torch.full((3, 1, 1), 255, dtype=torch.uint8)).flatten()
        tensor([1., 1., 1.])
    """
    import torch

    if images.ndim < 3 or images.shape[-3] != 3:
        raise DataError(f"images must have shape (..., 3, H, W), got {tuple(images.shape)}")
    mean_311 = torch.tensor(mean, device=images.device).expand(3)[:, None, None]
    std_311 = torch.tensor(std, device=images.device).expand(3)[:, None, None]
    if not bool((std_311 > 0).all()):
        raise DataError(f"std must be above 0, got {std}")
    return (images.float() - mean_311) / std_311


def _files() -> list[Path]:
    spec = find_spec("foolbox")  # finds the package's folder and imports nothing
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(
        file
        for folder in folders
        for file in (Path(folder) / "data").glob("imagenet_*.jpg")
        if re.fullmatch(r"imagenet_\d+_\d+", file.stem)
    )
    if not files or any(_label(file) not in NAMES for file in files):
        raise DataError(MISSING)
    return files


def _label(file: Path) -> int:
    return int(file.stem.rpartition("_")[2])
