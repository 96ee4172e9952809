import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_dataset

from headkit.adapters.data.open import open_image
from headkit.adapters.errors import DataError


def test_images_are_decoded_as_timm_decodes_them(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(folder / "rgba.png")
    image.convert("P").save(folder / "palette.png", transparency=3)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("LA").save(folder / "gray.png")
    image.convert("1").save(folder / "bits.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "16 bits.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    image.convert("RGB").save(folder / "rotated.jpg", exif=rotated)
    data = create_dataset("", root=str(tmp_path))
    for number, (expected, _) in enumerate(data):
        found = open_image(data.reader.samples[number][0])
        assert found.mode == "RGB"
        assert found.size == (20, 12)
        assert found.tobytes() == expected.tobytes()


def test_image_is_opened_from_a_file_and_from_an_image(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    image.save(tmp_path / "1.png")
    file = (tmp_path / "1.png").open("rb")
    for found in (open_image(tmp_path / "1.png"), open_image(file), open_image(image)):
        assert found.tobytes() == image.tobytes()
    assert file.closed
    broken = io.BytesIO(b"no image")
    with pytest.raises(DataError, match="cannot identify image file"):
        open_image(broken)
    assert broken.closed


@pytest.mark.parametrize("size", [0, 20, 60])
def test_damaged_image_is_a_data_error_with_the_reason(tmp_path: Path, size: int) -> None:
    path = tmp_path / "1.png"
    Image.new("RGB", (64, 64), (1, 2, 3)).save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"(?i)cannot identify|truncated"):
        open_image(path)
    with pytest.raises(DataError, match="No such file"):
        open_image(tmp_path / "none.png")
