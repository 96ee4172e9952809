"""Heads of both versions in one predictor: each gets the pixels of its own rule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import headkit
from headkit.adapters.heads.head import Head
from headkit.adapters.images.pixel_rule import CURRENT_RULE, VERSION_1_RULE, PixelRule
from headkit.export.graph.metadata import ModelInfo
from headkit.export.runtimes.onnxruntime import open_session
from tests.backbones import random_backbone

RULES = {"old": VERSION_1_RULE, "new": CURRENT_RULE}


@pytest.fixture(scope="module")
def head() -> Head:
    return headkit.head_of(headkit.adapt(random_backbone(), num_classes=3))


@pytest.fixture(scope="module")
def folder(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    heads = {name: head.with_changes(pixels=rule) for name, rule in RULES.items()}
    backbone = random_backbone()
    headkit.export(heads, folder / "multi.onnx", "multi", backbone=backbone)
    headkit.export(heads["old"], folder / "swappable.onnx", "swappable", backbone=backbone)
    headkit.export(head, folder / "raw.onnx", backbone=backbone, preprocess=True)
    headkit.export(heads["old"], folder / "old_raw.onnx", backbone=backbone, preprocess=True)
    for name, one in heads.items():
        one.save(folder / f"{name}.safetensors")
        headkit.graft(
            folder / "swappable.onnx",
            folder / f"{name}.safetensors",
            folder / f"{name}.onnx_adapter",
        )
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "turned.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 4), dtype=np.uint8)
    pixels[:20, :, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def pixels_by(rule: PixelRule, path: Path) -> Any:
    image = Image.open(path)
    if rule == VERSION_1_RULE:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB").transpose(Image.Transpose.ROTATE_270)


def test_multi_model_gives_each_head_its_own_pixels(folder: Path, image: Path) -> None:
    predictor = headkit.Predictor(folder / "multi.onnx")
    found = predictor.predict(image)
    assert found["old"] != found["new"]
    for name, rule in RULES.items():
        assert found[name] == predictor(pixels_by(rule, image), head=name)


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx_adapter"])
def test_heads_of_a_swappable_model_bring_their_rules(
    folder: Path, image: Path, suffix: str
) -> None:
    files = {name: folder / f"{name}{suffix}" for name in RULES}
    predictor = headkit.Predictor(folder / "swappable.onnx", heads=files)
    found = predictor.predict(image, ["", "old", "new"])
    assert found[""] == found["old"] != found["new"]
    for name, rule in RULES.items():
        assert found[name] == predictor(pixels_by(rule, image), head=name)


def test_raw_images_follow_the_rule_of_the_head(folder: Path, image: Path) -> None:
    for name, rule in (("raw", CURRENT_RULE), ("old_raw", VERSION_1_RULE)):
        predictor = headkit.Predictor(folder / f"{name}.onnx")
        assert predictor(image) == predictor(np.asarray(pixels_by(rule, image)))


def test_graft_replaces_the_rule(folder: Path, image: Path, tmp_path: Path) -> None:
    headkit.graft(folder / "swappable.onnx", folder / "new.safetensors", tmp_path / "new.onnx")
    predictor = headkit.Predictor(tmp_path / "new.onnx")
    assert predictor(image) == predictor(pixels_by(CURRENT_RULE, image))


def test_metadata_have_the_lowest_version_that_holds_the_heads(folder: Path) -> None:
    versions = {}
    for name in ("multi", "swappable", "raw", "old_raw"):
        props = open_session(folder / f"{name}.onnx").get_modelmeta().custom_metadata_map
        versions[name] = props["version"]
        assert ("requires" in props) == (props["version"] == "2")
    assert versions == {"multi": "2", "swappable": "1", "raw": "2", "old_raw": "1"}
    with pytest.raises(headkit.ExportError, match="requires 'delta', which this headkit"):
        ModelInfo.from_props({**props, "version": "2", "requires": '["delta"]'}, "a.onnx")
