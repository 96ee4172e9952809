import ast
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset

from headkit.adapters.errors import DataError
from headkit.adapters.images.formats import FORMATS, SUFFIXES
from headkit.adapters.images.open import ImageReader, open_image
from headkit.adapters.images.pixel_rule import VERSION_1_RULE, PixelRule
from headkit.adapters.images.pixels import TooLarge, UnreadableImage
from headkit.adapters.images.sources import iterate_images, list_images
from tests.shipped import shipped_modules

CFG: dict[str, Any] = {
    "input_size": [3, 8, 8],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 4), dtype=np.uint8)
RGB = Image.fromarray(PIXELS[..., :3].copy())


def saved(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decoded(*arguments: Any, **options: Any) -> np.ndarray[Any, Any]:
    return np.asarray(open_image(*arguments, **options))


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def test_version_1_decodes_images_as_timm_does(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    image = Image.fromarray(PIXELS)
    image.save(folder / "rgba.png")
    image.convert("P").save(folder / "palette.png", transparency=3)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("LA").save(folder / "gray.png")
    image.convert("1").save(folder / "bits.png")
    image.convert("RGB").save(folder / "rotated.jpg", exif=orientation(6))
    data = create_dataset("", root=str(tmp_path))
    for number, (expected, _) in enumerate(data):
        found = open_image(data.reader.samples[number][0], VERSION_1_RULE)
        assert found.mode == "RGB"
        assert found.size == (20, 12)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("number", range(1, 9))
def test_orientation_is_honoured(number: int, file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    content = saved(RGB, file_format, exif=orientation(number), **options)
    # Row and column 0 of the stored pixels, as the TIFF specification names their places.
    stored = PIXELS[..., :3]
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored[::-1].transpose(1, 0, 2),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored[:, ::-1].transpose(1, 0, 2),
    }[number]
    assert np.array_equal(decoded(content), upright)
    if file_format != "TIFF":  # Pillow turns TIFF files itself, so version 1 did, too
        assert np.array_equal(decoded(content, VERSION_1_RULE), stored)


@pytest.mark.parametrize("number", [0, 9, 200])
def test_unknown_orientation_and_damaged_exif_leave_the_pixels(number: int) -> None:
    for exif in (orientation(number), b"Exif\0\0" + bytes(range(40)), b"Exif\0\0MM\0*\0\0\xff\xff"):
        assert np.array_equal(decoded(saved(RGB, exif=exif)), np.asarray(RGB))


def test_transparent_pixels_lie_on_white() -> None:
    hidden = PIXELS.copy()
    hidden[:6, :, 3] = 0
    hidden[6:, :, 3] = 255
    expected = hidden[..., :3].copy()
    expected[:6] = 255
    for image in (hidden, saved(Image.fromarray(hidden)), torch.from_numpy(hidden)):
        assert np.array_equal(decoded(image), expected)
    dropped = open_image(saved(Image.fromarray(hidden)), VERSION_1_RULE)
    assert np.array_equal(np.asarray(dropped), hidden[..., :3])
    grey = Image.fromarray(hidden).convert("LA")
    assert np.asarray(open_image(saved(grey)))[:6].min() == 255
    palette = RGB.quantize(4)
    index = palette.getpixel((0, 0))
    opened = np.asarray(open_image(saved(palette, transparency=index)))
    assert (opened[np.asarray(palette) == index] == 255).all()
    keyed = tuple(int(value) for value in PIXELS[0, 0, :3])
    assert open_image(saved(RGB, transparency=keyed)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_images_keep_their_upper_8_bits(file_format: str) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (8, 8)).astype(np.uint16)
    upper = (values >> 8).astype(np.uint8)
    content = saved(Image.fromarray(values), file_format)
    for source in (content, Image.fromarray(values), values):
        assert np.array_equal(decoded(source, channels=1), upper)
        assert np.array_equal(decoded(source), np.repeat(upper[:, :, None], 3, 2))
        with pytest.raises(UnreadableImage, match="more than 8 bits per channel"):
            open_image(source, VERSION_1_RULE)
    # Pillow does the same with colours of 16 bits, for example in a PNG file.
    assert np.array_equal(
        decoded(np.repeat(values[:, :, None], 3, 2)), upper[..., None][..., [0] * 3]
    )


def test_12_bit_values_in_a_16_bit_file_are_refused() -> None:
    values = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    with pytest.raises(UnreadableImage, match=r"4,095 of 65,535.*scale it to 8 bits"):
        open_image(saved(Image.fromarray(values)))
    assert not np.asarray(open_image(np.zeros((8, 8), np.uint16))).any()


@pytest.mark.parametrize("image", [Image.new("F", (8, 8)), Image.new("I", (8, 8), 70_000)])
def test_images_of_32_bits_are_refused(image: Image.Image) -> None:
    for source in (image, saved(image, "TIFF")):
        with pytest.raises(UnreadableImage, match="more than 8 bits per channel") as refused:
            open_image(source)
        assert refused.value.reason.startswith("it has more than 8 bits")


def test_grey_models_get_grey_images() -> None:
    grey = np.asarray(RGB.convert("L"))
    assert np.array_equal(decoded(saved(RGB), channels=1), grey)
    assert np.array_equal(decoded(grey, channels=1), grey)
    assert np.array_equal(decoded(saved(Image.fromarray(grey)), channels=1), grey)
    for mode in ("CMYK", "P", "1", "LA", "RGBA", "YCbCr"):
        assert open_image(RGB.convert(mode), channels=1).mode == "L"


def test_an_image_may_be_a_path_bytes_a_file_an_array_or_a_tensor(tmp_path: Path) -> None:
    pixels = PIXELS[..., :3].copy()
    content = saved(RGB)
    (tmp_path / "1.png").write_bytes(content)
    file = (tmp_path / "1.png").open("rb")
    tensor = torch.from_numpy(pixels)
    sources: list[Any] = [tmp_path / "1.png", str(tmp_path / "1.png"), content, file, RGB, pixels]
    sources += [bytearray(content), memoryview(content), tensor, tensor.permute(2, 0, 1)]
    for source in sources:
        assert np.array_equal(decoded(source), pixels)
    assert file.closed
    broken = io.BytesIO(b"no image")
    with pytest.raises(DataError, match="damaged or is not in one of the formats BMP, GIF"):
        open_image(broken)
    assert broken.closed
    one = pixels[..., 0]
    for grey in (one, one[..., None], torch.from_numpy(one[None].copy())):
        assert np.array_equal(decoded(grey), np.repeat(one[..., None], 3, 2))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\], expected uint8 \[height, width\] or"),
        (np.zeros((8, 8, 2), np.uint8), r"uint8 \[8, 8, 2\]"),
        (np.zeros((8, 8, 3)), r"float64 \[8, 8, 3\].*255 \* array"),
        (np.zeros((0, 8, 3), np.uint8), r"\[0, 8, 3\]"),
        (torch.zeros(3, 8, 8), r"float32 \[3, 8, 8\], expected uint8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"\[2, 3, 8, 8\]"),
        (None, "an image is NoneType, expected a path"),
        (3, "an image is int"),
        (["a.png"], "an image is list"),
        (b"\x89PNG secret", "cannot read the image: it is damaged"),
    ],
)
def test_what_is_not_an_image_is_named(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        open_image(source)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("size", [0, 20, 60])
def test_damaged_image_is_a_data_error_with_the_reason(tmp_path: Path, size: int) -> None:
    path = tmp_path / "1.png"
    Image.new("RGB", (64, 64), (1, 2, 3)).save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"(?i)damaged|truncated"):
        open_image(path)
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        open_image(tmp_path / "none.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_folders_and_named_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(UnreadableImage, match=r"not a regular file|it is a folder"):
            open_image(path)


def test_formats_that_are_not_listed_are_refused(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    for suffix in SUFFIXES:
        image.save(tmp_path / f"1{suffix}")
        assert open_image(tmp_path / f"1{suffix}").size == (8, 8)
    image.save(tmp_path / "1.tga")
    with pytest.raises(UnreadableImage, match="is not in one of the formats"):
        open_image(tmp_path / "1.tga")


def test_pillow_knows_the_suffixes_of_each_format() -> None:
    registered = Image.registered_extensions()
    for name, suffixes in FORMATS.items():
        assert {registered[suffix] for suffix in suffixes} == {name}


def test_size_is_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(Image.new("RGB", (30, 20)))
    checked = []

    def refuse(width: int, height: int) -> None:
        checked.append((width, height))
        raise TooLarge("no")

    with pytest.raises(TooLarge, match="no"):
        open_image(content[:60], check_size=refuse)
    assert checked == [(30, 20)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(TooLarge, match="the image is too large"):
        open_image(content)


@pytest.mark.parametrize("size", [(40_000, 1), (1, 100_000), (30_000, 2)])
def test_thin_images_are_refused_unless_their_aspect_may_change(size: tuple[int, int]) -> None:
    large = {**CFG, "input_size": [3, 224, 224], "crop_pct": 0.875}
    content = saved(Image.new("L", size))
    with pytest.raises(TooLarge, match=r"pixels during resizing, expected at most 25,000,000"):
        ImageReader.for_model(large)(content)
    for mode in ("squash", "border"):
        assert ImageReader.for_model({**large, "crop_mode": mode})(content).size == size
    # The second becomes smaller, and needs less memory than it has.
    for panorama in [(20_000, 100), (60_000, 600)]:
        assert ImageReader.for_model(large)(Image.new("L", panorama)).size == panorama


def test_readers_refuse_models_of_other_channels() -> None:
    with pytest.raises(DataError, match=r"input channels is 4, expected 1 \(grey images\) or 3"):
        ImageReader.for_model({**CFG, "input_size": [4, 8, 8]})


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("image a.png", "it is late")))  # noqa: S301
    assert (str(error), error.reason) == ("cannot read image a.png: it is late", "it is late")


def test_images_are_iterated_one_at_a_time(tmp_path: Path) -> None:
    taken: list[int] = []

    def generate() -> Iterator[np.ndarray[Any, Any]]:
        for number in range(3):
            taken.append(number)
            yield np.full((4, 4, 3), number, np.uint8)

    iterator = iterate_images(generate())
    assert next(iterator)[0] == "image 0"
    assert taken == [0]
    many = np.zeros((5, 4, 4, 3), np.uint8)
    assert [name for name, _ in iterate_images(many)] == [f"image {n}" for n in range(5)]
    assert len(list_images(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))) == 2
    assert len(list_images(many[0])) == len(list_images(saved(RGB))) == len(list_images(RGB)) == 1
    assert len(list_images(io.BytesIO(saved(RGB)))) == 1
    RGB.save(tmp_path / "b.png")
    RGB.save(tmp_path / "a.JPG", "JPEG")
    names = [Path(name).name for name, _ in iterate_images(tmp_path)]
    assert names == ["a.JPG", "b.png"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no images in the folder"):
        list_images(tmp_path / "none")
    with pytest.raises(DataError, match="images is int, expected an image, a folder"):
        list_images(3)  # type: ignore[arg-type]


def test_rules_know_their_values() -> None:
    with pytest.raises(ValueError, match="orientation is 'left', expected one of exif, ignored"):
        PixelRule("left")  # type: ignore[arg-type]
    assert PixelRule.from_json(VERSION_1_RULE.to_json()) == VERSION_1_RULE


def test_no_other_shipped_module_opens_images() -> None:
    opening = {
        path
        for path, tree in shipped_modules().items()
        if any(_opens_images(node) for node in ast.walk(tree))
    }
    assert opening == {"adapters/images/open.py"}


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
