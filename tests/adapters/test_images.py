import ast
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from timm.data import create_dataset

from headkit.adapters.data.open import open_data
from headkit.adapters.errors import DataError
from headkit.adapters.images import (
    FORMATS,
    SUFFIXES,
    TooLarge,
    UnreadableImage,
    list_images,
    open_image,
)
from headkit.export.precision.calibrate import Images
from headkit.export.preprocess.pillow import Preprocess
from headkit.export.serving.service import Service
from tests.shipped import shipped_modules

PREPROCESS = Preprocess.from_cfg(
    {
        "input_size": [3, 8, 8],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
)


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
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        open_image(tmp_path / "none.png")


def test_image_of_more_than_8_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    deep.save(path)
    for source in (path, io.BytesIO(path.read_bytes()), deep, Image.new("F", (8, 8))):
        with pytest.raises(UnreadableImage, match="more than 8 bits per channel") as refused:
            open_image(source)
        assert refused.value.reason.startswith("it has more than 8 bits")


def test_formats_that_are_not_listed_are_refused(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    for suffix in SUFFIXES:
        image.save(tmp_path / f"1{suffix}")
        assert open_image(tmp_path / f"1{suffix}").size == (8, 8)
    image.save(tmp_path / "1.tga")
    with pytest.raises(UnreadableImage, match="cannot identify image file"):
        open_image(tmp_path / "1.tga")


def test_pillow_knows_the_suffixes_of_each_format() -> None:
    registered = Image.registered_extensions()
    for name, suffixes in FORMATS.items():
        assert {registered[suffix] for suffix in suffixes} == {name}


def test_size_is_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "PNG")
    cut = file.getvalue()[:60]
    checked = []

    def refuse(width: int, height: int) -> None:
        checked.append((width, height))
        raise TooLarge("no")

    with pytest.raises(TooLarge, match="no"):
        open_image(io.BytesIO(cut), refuse)
    assert checked == [(30, 20)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(TooLarge, match="the image is too large"):
        open_image(io.BytesIO(file.getvalue()))


def test_fit_predict_calibration_and_serve_read_the_same_formats(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(8):
            for suffix in (*SUFFIXES, ".tga"):
                path = tmp_path / name / f"{number}{suffix}"
                Image.new("RGB", (8, 8), (number, 2, 3)).save(path)
    fitted, _ = open_data(tmp_path)
    assert fitted.paths is not None
    predicted = [str(path) for path in list_images(tmp_path)]
    calibrated = Images.load(tmp_path, PREPROCESS)
    assert sorted(fitted.paths) == predicted
    assert {Path(path).suffix for path in predicted} == SUFFIXES
    halves = [*calibrated.calibration, *calibrated.held_out]
    assert sorted(str(path) for path in halves) == predicted
    service = SimpleNamespace(_preprocess=PREPROCESS, _check_size=lambda *_: None)
    for suffix in SUFFIXES:
        content = (tmp_path / "cat" / f"0{suffix}").read_bytes()
        served = Service._decode(service, content)  # type: ignore[arg-type]
        assert np.array_equal(served, PREPROCESS(open_image(tmp_path / "cat" / f"0{suffix}")))
    with pytest.raises(DataError, match="cannot identify"):
        Service._decode(service, (tmp_path / "cat" / "0.tga").read_bytes())  # type: ignore[arg-type]


def test_no_other_shipped_module_opens_images() -> None:
    opening = {
        path
        for path, tree in shipped_modules().items()
        if any(_opens_images(node) for node in ast.walk(tree))
    }
    assert opening == {"adapters/images.py"}


def _opens_images(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").partition(".")[0] == "PIL" and any(
            alias.name == "open" for alias in node.names
        )
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "open"
        and ast.unparse(node.value).rpartition(".")[2] == "Image"
    )
