"""Results that come while the images come: order, errors, laziness and memory."""

import json
import logging
import subprocess
import sys
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import headkit
from headkit.export.predict.scores import Result
from tests.export.predict.small_model import write_small_model
from tests.fixtures import IMAGES, MODELS

PATHS = sorted(IMAGES.rglob("*.png"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small") / "model.onnx")


@pytest.fixture(scope="module")
def predictor(small: Path) -> headkit.Predictor:
    return headkit.Predictor(small, threads=1)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_stream_gives_what_a_call_gives(predictor: headkit.Predictor, batch_size: int) -> None:
    expected = predictor(PATHS, top_k=2)
    found = list(predictor.stream(iter(PATHS), top_k=2, batch_size=batch_size))
    assert [one.image for one in found] == list(map(str, PATHS))
    assert {(one.head, one.error) for one in found} == {("", None)}
    for one, row in zip(found, expected, strict=True):
        assert [p["label"] for p in one.predictions] == [p["label"] for p in row]
        assert [p["score"] for p in one.predictions] == pytest.approx([p["score"] for p in row])
    assert list(predictor.stream([])) == []


def test_a_stream_has_one_result_per_image_and_head() -> None:
    predictor = headkit.Predictor(MODELS / "resnet_multi.onnx", threads=1)
    expected = predictor.predict(PATHS[:3])
    found = list(predictor.stream(PATHS[:3]))
    assert [one.head for one in found] == predictor.heads * 3
    for name, rows in expected.items():
        assert [one.predictions for one in found if one.head == name] == rows
    only = list(predictor.stream(PATHS[:3], ["mlp", "own", "mlp"]))
    assert [one.head for one in only] == ["mlp", "own"] * 3
    with pytest.raises(headkit.ExportError, match="no head 'none': choose one of own"):
        predictor.stream(PATHS, ["none"])


def test_images_of_several_sizes_keep_their_order_in_a_model_that_takes_raw_images() -> None:
    predictor = headkit.Predictor(MODELS / "resnet_raw.onnx", threads=1)
    generator = np.random.default_rng(0)
    images: list[Any] = [
        generator.integers(0, 255, (height, 20, 3), dtype=np.uint8)
        for height in (9, 9, 30, 9, 30, 30, 9)
    ]
    expected = [predictor(image)[0] for image in images]
    images.insert(3, b"bad")
    found = list(predictor.stream(images, on_error="return"))
    assert [one.error is None for one in found] == [True] * 3 + [False] + [True] * 4
    del found[3]
    for one, row in zip(found, expected, strict=True):
        assert [p["score"] for p in one.predictions] == pytest.approx([p["score"] for p in row])


BAD: list[tuple[Any, str, str]] = [
    (b"no image", "image 2", "it is damaged or is not in one of the formats"),
    (Path("none.png"), "none.png", "no such file"),
    (None, "image 2", "an image is NoneType, expected a path"),
    (np.zeros((9, 9, 3)), "image 2", "an image is float64"),
    (np.zeros((1, 50_000, 3), np.uint8), "image 2", "the image has 50000 x 1 pixels and needs"),
]


@pytest.mark.parametrize(("bad", "name", "reason"), BAD)
def test_a_bad_image_is_a_result_with_an_error(
    predictor: headkit.Predictor, bad: Any, name: str, reason: str
) -> None:
    images = [*PATHS[:2], bad, *PATHS[2:5]]
    found = list(predictor.stream(iter(images), on_error="return", batch_size=2))
    assert len(found) == 6
    assert (found[2].image, found[2].predictions) == (name, [])
    assert found[2].error is not None
    assert found[2].error.startswith(reason)
    good = [*found[:2], *found[3:]]
    assert [one.image for one in good] == list(map(str, PATHS[:5]))
    assert all(len(one.predictions) == 3 and one.error is None for one in good)


@pytest.mark.parametrize(("bad", "name", "reason"), BAD)
def test_a_bad_image_raises_after_the_results_before_it(
    predictor: headkit.Predictor, bad: Any, name: str, reason: str
) -> None:
    results = predictor.stream([*PATHS[:2], bad, *PATHS[2:]])
    assert [next(results).image for _ in range(2)] == list(map(str, PATHS[:2]))
    with pytest.raises(headkit.DataError, match=f"{name}.*{reason}"):
        next(results)
    with pytest.raises(headkit.DataError, match=f"{name}.*{reason}"):
        predictor([*PATHS[:2], bad])


def test_skipped_images_are_counted_in_the_log(
    predictor: headkit.Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "headkit"):
        images: list[Any] = [b"bad", PATHS[0], None, PATHS[1]]
        found = list(predictor.stream(images, on_error="skip"))
    assert [one.image for one in found] == list(map(str, PATHS[:2]))
    assert caplog.messages == ["2 of 4 images could not be read and were skipped"]
    caplog.clear()
    assert len(list(predictor.stream(PATHS[:2], on_error="skip"))) == 2
    assert list(predictor.stream([b"bad"] * 20, on_error="return", batch_size=3))[19] == Result(
        "image 19",
        "",
        [],
        "it is damaged or is not in one of the formats BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP",
    )
    assert caplog.messages == []


def test_wrong_arguments_are_refused_before_the_first_image(predictor: headkit.Predictor) -> None:
    def never() -> Iterator[Path]:
        yield from map(pytest.fail, ["an image was read"])

    with pytest.raises(ValueError, match="on_error is 'ignore', expected one of raise, return"):
        predictor.stream(never(), on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top_k is 0"):
        predictor.stream(never(), top_k=0)
    with pytest.raises(ValueError, match="batch_size is -1"):
        predictor.stream(never(), batch_size=-1)
    with pytest.raises(headkit.ExportError, match="has no heads"):
        headkit.Predictor(MODELS / "resnet_backbone.onnx").stream(never())


def test_an_error_of_the_generator_reaches_the_caller(predictor: headkit.Predictor) -> None:
    def images() -> Iterator[Path]:
        yield PATHS[0]
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(predictor.stream(images(), on_error="skip"))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_results_come_as_soon_as_their_batch_is_full(
    predictor: headkit.Predictor, batch_size: int
) -> None:
    taken: list[Path] = []

    def images() -> Iterator[Path]:
        for path in PATHS[:9]:
            taken.append(path)
            yield path

    results = predictor.stream(images(), batch_size=batch_size)
    assert taken == []
    for number in range(1, 9):
        assert next(results).image == str(PATHS[number - 1])
        assert len(taken) == -(-number // batch_size) * batch_size


def consume(results: Any) -> int:
    return sum(1 for _ in results)


@pytest.mark.parametrize(
    "call",
    [
        lambda predictor, images: consume(predictor.stream(images, batch_size=4)),
        lambda predictor, images: predictor(images, batch_size=4),
        lambda predictor, images: predictor.predict(images, batch_size=4),
        lambda predictor, images: predictor.features(images, batch_size=4),
    ],
)
def test_a_generator_is_never_read_ahead(
    predictor: headkit.Predictor, call: Callable[[headkit.Predictor, Iterable[Any]], object]
) -> None:
    """Images that were classified are free again, so no more than two are alive."""
    made: list[weakref.ref[Image.Image]] = []
    most = 0

    def images() -> Iterator[Image.Image]:
        nonlocal most
        for number in range(50):
            image = Image.new("RGB", (20, 20), (number, 0, 0))
            made.append(weakref.ref(image))
            most = max(most, sum(one() is not None for one in made))
            yield image

    call(predictor, images())
    assert 1 <= most <= 2


PEAK = """
import re, resource, sys

def peak_bytes():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss starts with the memory of the parent process.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
MEASURE = """
import numpy as np
import headkit

predictor = headkit.Predictor(sys.argv[1], threads=1)
generator = np.random.default_rng(0)


def images():
    for _ in range(10_000):
        yield generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)


for number, result in enumerate(predictor.stream(images()), 1):
    assert len(result.predictions) == 3
    if number in (500, 10_000):
        print(peak_bytes())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the module resource is missing")
def test_10000_images_of_a_generator_take_the_memory_of_500(small: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK + MEASURE, str(small)],
        capture_output=True,
        text=True,
        check=True,
    )
    early, late = map(int, done.stdout.split())
    assert late - early < 4e6  # all images together are 123 MB


THIN = """
import json, time
import headkit

predictor = headkit.Predictor(sys.argv[1], threads=1)
predictor(sys.argv[2])
start = time.perf_counter()
(result,) = predictor.stream(sys.argv[3], on_error="return")
seconds = time.perf_counter() - start
print(json.dumps([seconds, peak_bytes(), result.error, len(result.predictions)]))
"""


def write_png(path: Path, width: int, height: int) -> None:
    """Write a black grey PNG without decoding a pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    rows = zlib.compress(bytes(height * (1 + width)))
    content = chunk(b"IHDR", size + b"\x08\0\0\0\0") + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.skipif(sys.platform == "win32", reason="the module resource is missing")
@pytest.mark.parametrize("model", ["resnet_merged", "resnet_raw"])
@pytest.mark.parametrize(
    "size",
    [(40_000, 1), (1, 100_000), (100_000, 1), (1, 300), (60_000, 60), (20_000, 20_000), (1, 1)],
)
def test_thin_and_huge_images_take_a_second_and_300_mb_at_most(
    model: str, size: tuple[int, int], tmp_path: Path
) -> None:
    write_png(tmp_path / "thin.png", *size)
    arguments = [str(MODELS / f"{model}.onnx"), str(PATHS[0]), str(tmp_path / "thin.png")]
    done = subprocess.run(
        [sys.executable, "-c", PEAK + THIN, *arguments], capture_output=True, text=True, check=True
    )
    seconds, peak, error, predictions = json.loads(done.stdout)
    assert seconds < 1
    assert peak < 300e6
    assert (predictions == 3) == (error is None)
    assert (error is None) == (size in [(1, 300), (1, 1)])
    assert error is None or "too large" in error or f"{size[0]} x {size[1]} pixels" in error
