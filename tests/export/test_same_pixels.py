"""The same image files give the same pixels through every door, and those that Pillow gives."""

import asyncio
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm.data
from onnx import TensorProto, helper
from PIL import Image, ImageOps

import headkit
from headkit.adapters.backbone.preprocessing import preprocessing
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.features.extract import extract
from headkit.adapters.features.runtime import Branches, Pixels, Precision, Run
from headkit.adapters.heads.head import Head
from headkit.adapters.images.pixel_rule import CURRENT_RULE, VERSION_1_RULE, PixelRule
from headkit.export.graph.description.head_info import HeadInfo
from headkit.export.graph.metadata import ModelInfo, shared_description
from headkit.export.precision.calibrate import Images
from headkit.export.serving.service import Service
from tests.backbones import random_backbone
from tests.heads import random_head

Array = np.ndarray[Any, Any]
EDGE = 16
SAVED: dict[str, tuple[str, ...]] = {
    "png": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "tif": ("RGB", "RGBA", "L", "CMYK", "1", "I;16", "P"),
    "jpg": ("RGB", "L", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "gif": ("L", "P", "RGB"),
    "bmp": ("RGB", "L", "1"),
    "ppm": ("RGB", "L", "I;16"),
}
"""Modes in which Pillow saves each format."""
ANIMATED = ("gif", "png", "webp", "tif")


def write_images(folder: Path, count: int = 200) -> list[Path]:
    """Write images of all formats, modes and orientations, each with other pixels and sizes."""
    generator = np.random.default_rng(0)
    combinations = [(suffix, mode) for suffix, modes in SAVED.items() for mode in modes]
    paths = []
    for number in range(count):
        suffix, mode = combinations[number % len(combinations)]
        height, width = generator.integers(12, 60, 2)
        path = folder / f"{number:03}_{mode.replace(';', '')}.{suffix}"
        frames = [_frame(generator, mode, height, width) for _ in range(3)]
        options: dict[str, Any] = {}
        if suffix in ("png", "jpg", "webp", "tif"):
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = number % 9  # 0 is not a valid orientation
        if suffix == "webp":
            options["lossless"] = True
        if mode == "P" and suffix != "tif":
            options["transparency"] = int(np.asarray(frames[0])[0, 0])
        if suffix in ANIMATED and number % 3 == 0 and (suffix, mode) != ("png", "P"):
            options |= {"save_all": True, "append_images": frames[1:]}
        frames[0].save(path, **options)
        paths.append(path)
    return paths


def _frame(generator: np.random.Generator, mode: str, height: int, width: int) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 65536, (height, width)).astype(np.uint16))
    pixels = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
    pixels[: height // 2, :, 3] = 0
    image = Image.fromarray(pixels)
    return image.quantize(32, Image.Quantize.FASTOCTREE) if mode == "P" else image.convert(mode)


def open_with_pillow(path: Path, rule: PixelRule) -> Image.Image:
    """Do what the specification of the head file says, in Pillow's own words."""
    # From a path, Pillow 13 maps an uncompressed TIFF file into memory and turns it wrongly.
    image: Image.Image = Image.open(io.BytesIO(path.read_bytes()))
    if rule == VERSION_1_RULE:
        return image.convert("RGB")
    if path.suffix != ".tif":
        image = ImageOps.exif_transpose(image)
    if path.stem.endswith("I16"):
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, (255, 255, 255))
        # Image.paste rounds as alpha_composite does, because here alpha is 0 or 255.
        image.paste(layer, mask=layer.getchannel("A"))
    return image.convert("RGB")


class PixelsAsFeatures:
    """A runtime whose features are the pixels."""

    name, threads, streams = "pixels", 1, 1
    precision: Precision = "fp32"
    versions: dict[str, str] = {}  # noqa: RUF012 - as the protocol has it

    def start(
        self,
        _model: object,
        _folder: Path,
        _batch_size: int,
        /,
        levels: str | Sequence[str] = (),
    ) -> Run:
        assert not levels

        def run(pixels: Pixels) -> Branches:
            return (pixels.reshape(len(pixels), -1).astype(np.float32),)

        return run


def write_model(head: Head, form: str, path: Path) -> Path:
    """Write a model whose features, and whose logits, are its pixel values."""
    size = 3 * EDGE * EDGE
    output = "features" if form == "backbone" else "logits"
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["pixel_values"], [output])],
        "flatten",
        [
            helper.make_tensor_value_info(
                "pixel_values", TensorProto.FLOAT, ["batch", 3, EDGE, EDGE]
            )
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", size])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    info = ModelInfo(
        form=form,
        backbone=shared_description(head),
        features={"features": ["batch", size]},
        heads=() if form == "backbone" else (HeadInfo.from_head(head),),
        classifier="",
        versions={},
    )
    helper.set_model_props(model, info.to_props())
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def backbone() -> Any:
    return random_backbone(pretrained_cfg_overlay={"input_size": (3, EDGE, EDGE), "crop_pct": 0.9})


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_images(tmp_path_factory.mktemp("images"))


def make_head(cfg: dict[str, Any], rule: PixelRule) -> Head:
    size = 3 * EDGE * EDGE
    return random_head(
        num_classes=size,
        num_features=size,
        tensors={
            "fc.weight": np.eye(size, dtype=np.float32),
            "fc.bias": np.zeros(size, np.float32),
        },
        task="regression",
        pretrained_cfg=cfg,
        label_names=tuple(map(str, range(size))),
        pixels=rule,
    )


def fitted(backbone: Any, paths: list[Path], rule: PixelRule, folder: Path) -> Array:
    data = ImageDataset(
        "images", "multiclass", ("a",), tuple(map(str, paths)), np.zeros(len(paths), np.int64)
    )
    runtime = PixelsAsFeatures()
    extracted = extract(backbone, data, runtime, folder, rule=rule, workers=0, max_unreadable=0)
    (features,) = extracted.cache.load(extracted.locations)
    return features.numpy()


def predicted(head: Head, paths: list[Path], folder: Path) -> Array:
    predictor = headkit.Predictor(write_model(head, "merged", folder / "merged.onnx"))
    return _as_rows(predictor(paths, top_k=head.num_classes))


def served(head: Head, paths: list[Path], folder: Path) -> Array:
    store = headkit.HeadStore(folder / "store")
    store.publish(head, "pixels")

    async def answer() -> list[Any]:
        service = Service(store, write_model(head, "backbone", folder / "backbone.onnx"))
        await service.start()
        top_k = head.num_classes
        answers = [
            await service.predict(path.read_bytes(), ["pixels"], top_k=top_k) for path in paths
        ]
        await service.stop()
        return [answer["pixels"].predictions for answer in answers]

    return _as_rows(asyncio.run(answer()))


def calibrated(cfg: dict[str, Any], paths: list[Path], rule: PixelRule) -> Array:
    images = Images.load(paths, cfg, rule)
    assert len(images.calibration) == len(images.held_out) == len(paths) // 2
    rows = np.empty((len(paths), 3 * EDGE * EDGE), np.float32)
    for start, half in enumerate((images.calibration, images.held_out)):
        batches = [batch.reshape(len(batch), -1) for batch in images.batches(half)]
        rows[start::2] = np.concatenate(batches)
    return rows


def _as_rows(predictions: list[list[Any]]) -> Array:
    rows = np.empty((len(predictions), len(predictions[0])), np.float32)
    for row, one in zip(rows, predictions, strict=True):
        for prediction in one:
            row[int(prediction["label"])] = prediction["score"]
    return rows


@pytest.mark.parametrize("rule", [CURRENT_RULE, VERSION_1_RULE])
def test_200_images_give_the_same_pixels_through_every_door(
    rule: PixelRule, backbone: Any, paths: list[Path], tmp_path: Path
) -> None:
    assert len(paths) == 200
    if rule == VERSION_1_RULE:  # which refuses 16-bit images
        paths = [path for path in paths if not path.stem.endswith("I16")]
        paths = paths[: len(paths) // 2 * 2]
    cfg = preprocessing(backbone)
    head = make_head(cfg, rule)
    transform = timm.data.create_transform(**cfg, is_training=False)
    expected = np.stack([transform(open_with_pillow(path, rule)).numpy().ravel() for path in paths])
    mean, std = (np.repeat(np.float32(cfg[key]), EDGE * EDGE) for key in ("mean", "std"))
    pixels = fitted(backbone, paths, rule, tmp_path)
    doors = {
        "fit": (pixels / np.float32(255) - mean) / std,
        "predict": predicted(head, paths, tmp_path),
        "serve": served(head, paths, tmp_path),
        "calibrate": calibrated(cfg, paths, rule),
    }
    different = {
        (door, path.name)
        for door, rows in doors.items()
        for path, row, right in zip(paths, rows, expected, strict=True)
        if not np.array_equal(row, right)
    }
    assert different == set()


def test_heads_of_both_versions_get_their_own_pixels_from_one_server(
    backbone: Any, paths: list[Path], tmp_path: Path
) -> None:
    cfg = preprocessing(backbone)
    transform = timm.data.create_transform(**cfg, is_training=False)
    store = headkit.HeadStore(tmp_path / "store")
    rules = {"old": VERSION_1_RULE, "new": CURRENT_RULE}
    for name, rule in rules.items():
        store.publish(make_head(cfg, rule), name)
    model = write_model(make_head(cfg, CURRENT_RULE), "backbone", tmp_path / "backbone.onnx")
    turned = [path for path in paths if path.suffix in (".jpg", ".png") and "I16" not in path.stem]

    async def answer() -> list[Any]:
        service = Service(store, model)
        await service.start()
        top_k = 3 * EDGE * EDGE
        answers = [
            await service.predict(path.read_bytes(), ["old", "new"], top_k=top_k)
            for path in turned[:20]
        ]
        await service.stop()
        return answers

    answers = asyncio.run(answer())
    different = 0
    for path, answer_of in zip(turned, answers, strict=False):
        rows = {name: _as_rows([answer_of[name].predictions])[0] for name in rules}
        for name, rule in rules.items():
            expected = transform(open_with_pillow(path, rule)).numpy().ravel()
            assert np.array_equal(rows[name], expected)
        different += not np.array_equal(rows["old"], rows["new"])
    assert 10 < different < 20
