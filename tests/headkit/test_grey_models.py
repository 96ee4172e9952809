"""Models with one input channel: grey images from fit to the exported model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

import headkit
from tests.backbones import random_backbone


@pytest.fixture(scope="module")
def grey() -> Any:
    return random_backbone(in_chans=1)


def test_grey_model_is_fitted_exported_and_run(grey: Any, shapes: Path, tmp_path: Path) -> None:
    head = headkit.fit(grey, shapes, cache=tmp_path / "cache")
    assert head.pretrained_cfg["input_size"] == [1, 160, 160]
    assert len(head.pretrained_cfg["mean"]) == len(head.pretrained_cfg["std"]) == 1
    path = tmp_path / "grey.onnx"
    headkit.export(head, path, backbone=grey, preprocess=True)
    headkit.export(head, tmp_path / "plain.onnx", backbone=grey)
    transform = create_transform(
        **resolve_data_config({}, model=grey) | dict(head.pretrained_cfg), is_training=False
    )
    files = sorted(shapes.rglob("*.png"))[::5]
    with torch.no_grad():
        inputs = torch.stack([transform(Image.open(file).convert("L")) for file in files])
        expected = grey(inputs).softmax(1).numpy()
    for exported in (path, tmp_path / "plain.onnx"):
        predictions = headkit.Predictor(exported)(files)
        for one, row in zip(predictions, expected, strict=True):
            assert one[0]["label"] == head.label_names[int(row.argmax())]  # type: ignore[index]


def test_grey_arrays_and_colour_images_enter_a_grey_model(
    grey: Any, shapes: Path, tmp_path: Path
) -> None:
    model = headkit.adapt(grey, num_classes=3)
    headkit.export(model, tmp_path / "grey.onnx")
    predictor = headkit.Predictor(tmp_path / "grey.onnx")
    file = next(shapes.rglob("*.png"))
    array = np.asarray(Image.open(file).convert("L"))
    assert predictor(array) == predictor(file) == predictor(array[..., None])


def test_int8_is_calibrated_on_grey_images(grey: Any, shapes: Path, tmp_path: Path) -> None:
    head = headkit.fit(grey, shapes, cache=tmp_path / "cache")
    exported = headkit.export(
        head, tmp_path / "int8.onnx", backbone=grey, precision="int8", images=shapes, max_cost=1.0
    )
    assert exported.info.precision == "int8"
    assert len(headkit.Predictor(exported.path)(shapes)) == 24


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_are_refused_before_the_extraction(channels: int, shapes: Path) -> None:
    backbone = random_backbone(in_chans=channels)
    with pytest.raises(headkit.DataError, match=rf"channels is {channels}, expected 1 \(grey"):
        headkit.fit(backbone, shapes, cache=False)
