"""Images in every form that a user has them in, and what is no image."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import headkit
from headkit.adapters.images.pixel_rule import CURRENT_RULE
from tests.fixtures import IMAGES, MODELS

PATH = IMAGES / "striped" / "0.png"
RGB = Image.open(PATH).convert("RGB")
ARRAY = np.asarray(RGB)
TENSOR = torch.tensor(ARRAY)
GREY = np.asarray(RGB.convert("L"))


@pytest.fixture(scope="module", params=["resnet_merged", "resnet_raw"])
def predictor(request: pytest.FixtureRequest) -> headkit.Predictor:
    """Return a model that takes pixel values, and one that takes raw images."""
    return headkit.Predictor(MODELS / f"{request.param}.onnx", threads=1)


def only_read(content: bytes) -> Any:
    """Return a file without a name, positions or a way to seek, such as a response."""

    class Stream(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return rest.readinto(buffer)

    rest = io.BytesIO(content)
    return io.BufferedReader(Stream())


@pytest.mark.parametrize(
    "make",
    [
        lambda: PATH,
        lambda: str(PATH),
        PATH.read_bytes,
        lambda: bytearray(PATH.read_bytes()),
        lambda: memoryview(PATH.read_bytes()),
        lambda: PATH.open("rb"),
        lambda: io.BytesIO(PATH.read_bytes()),
        lambda: only_read(PATH.read_bytes()),
        lambda: Image.open(PATH),
        lambda: ARRAY,
        lambda: np.asfortranarray(ARRAY),
        lambda: ARRAY[None],
        lambda: np.dstack([ARRAY, np.full(ARRAY.shape[:2], 255, np.uint8)]),
        lambda: TENSOR,
        lambda: TENSOR.permute(2, 0, 1),
        lambda: TENSOR.permute(2, 0, 1)[None],
        lambda: [PATH],
        lambda: (TENSOR,),
        lambda: (image for image in [ARRAY]),
        lambda: pd.Series([str(PATH)], index=[7]),
        lambda: np.array([str(PATH)]),
        lambda: pd.DataFrame({"path": [PATH]})["path"].to_numpy(),
    ],
)
def test_an_image_gives_the_same_prediction_in_every_form(
    predictor: headkit.Predictor, make: Callable[[], Any]
) -> None:
    transformed = predictor.preprocess(RGB)[None]
    batch = ARRAY[None] if predictor.info.preprocess else transformed
    head = predictor.info.head()
    logits = torch.tensor(predictor.logits(batch)) / head.description["temperature"]
    (expected,) = logits.softmax(1).tolist()
    ((found,),) = [predictor(make())]
    assert {one["label"]: one["score"] for one in found} == pytest.approx(
        dict(zip(head.label_names, expected, strict=True))
    )


@pytest.mark.parametrize(
    "grey",
    [GREY, GREY[:, :, None], torch.tensor(GREY), torch.tensor(GREY)[None], Image.fromarray(GREY)],
)
def test_grey_images_become_rgb(predictor: headkit.Predictor, grey: Any) -> None:
    assert predictor(grey) == predictor(np.dstack([GREY] * 3))


def test_several_images_in_one_array_or_tensor(predictor: headkit.Predictor) -> None:
    paths = sorted(IMAGES.rglob("*.png"))
    several = np.stack([np.asarray(Image.open(path)) for path in paths])
    expected = predictor(paths)
    assert len({row[0]["score"] for row in expected}) > 20
    assert predictor(several) == predictor(torch.tensor(several)) == expected
    assert predictor(torch.tensor(several).permute(0, 3, 1, 2)) == expected
    assert predictor(several[:0]) == predictor([]) == predictor(iter(())) == []
    assert predictor(IMAGES) == expected


FLOATS = ARRAY / 255
ENCODED = PATH.read_bytes()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (FLOATS, r"float64 \[12, 14, 3\], expected uint8 .* \(255 \* array\)\.round\(\)"),
        (torch.tensor(FLOATS), "float64 .* expected uint8"),
        ([ARRAY, FLOATS.astype(np.float32)], "^image 1: an image is float32"),
        (ARRAY.astype(int), "an image is int64"),
        (GREY > 9, "an image is bool"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\], expected uint8 \[height, width\]"),
        (np.zeros((8, 8, 5), np.uint8), r"uint8 \[8, 8, 5\]"),
        (np.zeros((1, 1, 8, 8, 3), np.uint8), r"image 0: an image is uint8 \[1, 8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]"),
        (np.uint8(3), "images is uint8"),
        (None, "images is NoneType, expected an image, a folder or an iterable"),
        ([ARRAY, None], "image 1: an image is NoneType, expected a path, bytes"),
        (7, "images is int"),
        ([1, 2], "image 0: an image is int"),
        ([[PATH]], "image 0: an image is list, .* one flat list"),
        ([(PATH, "striped")], "image 0: an image is tuple, .* without labels"),
        (["cat", "dog"], "cannot read image cat: no such file"),
        ({"path": [PATH]}, "images is dict, .* the column"),
        (pd.DataFrame({"path": [PATH]}), "images is DataFrame, .* the column"),
        (b"", "the image: it is damaged or is not in one of the formats BMP"),
        (b"SECRET" * 9, "the image: it is damaged or is not in one of the formats BMP"),
        ([ENCODED, ENCODED[:90] + b"SECRET"], "cannot read image 1: "),
        (io.BytesIO(b"SECRET"), "the image: it is damaged or is not in one"),
        (io.StringIO("SECRET"), "the image: .*[Bb]inary"),
        (str(PATH).encode(), "the image: it is damaged or is not in one"),
        ("", "cannot read image : no such file"),
        (Path("none.png"), "cannot read image none.png: no such file$"),
        ([IMAGES], "images: it is a folder, expected a file"),
        ("https://example.com/a.png", "no such file: fetch the address and pass the bytes"),
        ("data:image/png;base64,AAAA", "no such file: decode base64 text"),
        (base64.b64encode(ENCODED * 99).decode(), r"… \([\d,]+ characters\): no such file: decode"),
    ],
)
def test_what_is_no_image_is_refused_with_what_was_expected(
    predictor: headkit.Predictor, images: Any, message: str
) -> None:
    for call in (
        predictor,
        predictor.predict,
        predictor.features,
        lambda x: [*predictor.stream(x)],
    ):
        again = io.BytesIO(b"SECRET") if isinstance(images, io.BytesIO) else images
        again = io.StringIO("SECRET") if isinstance(images, io.StringIO) else again
        with pytest.raises(headkit.DataError, match=message) as raised:
            call(again)
        assert len(str(raised.value)) < 300
        assert "SECRET" not in str(raised.value)


def test_a_file_of_two_rules_is_read_once(tmp_path: Path) -> None:
    """Heads of different versions see the pixels of their own rules, from one open file."""
    own = headkit.Head.load(MODELS.parent / "heads" / "resnet_own.safetensors")
    newer = own.with_changes(pixels=CURRENT_RULE)
    predictor = headkit.Predictor(MODELS / "resnet_swappable.onnx", {"newer": newer})
    exif = Image.Exif()
    exif[0x0112] = 6
    RGB.save(tmp_path / "turned.png", exif=exif)
    found = predictor.predict((tmp_path / "turned.png").open("rb"))
    assert found[""] == predictor(RGB)
    assert found["newer"] == predictor(RGB.transpose(Image.Transpose.ROTATE_270), head="newer")
    assert found[""] != found["newer"]
