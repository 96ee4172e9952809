"""An exported model whose metadata lie about the preprocessing, the labels and the head.

At 64f666f, ``Predictor`` used them as they were: a crop of 0, a size of 0 and a mean of two
channels were raw errors, a temperature of NaN was accepted, 4e8 classes were a MemoryError, and
JSON that is nested deeply was a RecursionError. Now the metadata are read through a schema with
bounds, before the model itself.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import headkit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    headkit.export(headkit.adapt("test_resnet", 3, pretrained=False), path)
    loaded = onnx.load(path)
    for prop in loaded.metadata_props:
        if prop.key == "heads":
            values = json.loads(prop.value)
            values[0]["head"]["label_names"] = ["a", "b", "c"]
            prop.value = json.dumps(values)
    return loaded


def _preprocessing(**changes: Any) -> Callable[[str, Any], None]:
    def change(key: str, value: Any) -> None:
        if key == "backbone":
            value["pretrained_cfg"].update(changes)

    return change


def _head(**changes: Any) -> Callable[[str, Any], None]:
    def change(key: str, value: Any) -> None:
        if key == "heads":
            value[0]["head"].update(changes)

    return change


CHANGES = {
    "crop of 0": _preprocessing(crop_pct=0),
    "crop of NaN": _preprocessing(crop_pct=float("nan")),
    "std of 0": _preprocessing(std=[0.0, 0.0, 0.0]),
    "mean of two channels": _preprocessing(mean=[0.5, 0.5]),
    "size of 0": _preprocessing(input_size=[3, 0, 0]),
    "size of a million": _preprocessing(input_size=[3, 10**6, 10**6]),
    "interpolation that does not exist": _preprocessing(interpolation="magic"),
    "temperature of NaN": _head(temperature=float("nan")),
    "temperature of 0": _head(temperature=0),
    "one label for three logits": _head(label_names=["a"]),
    "labels that are numbers": _head(label_names=[1, 2, 3]),
    "task that does not exist": _head(task="dance"),
    "no classes": _head(num_classes=0),
    "400 million classes": _head(num_classes=400_000_000, label_names=None),
    "notes of an object": _head(notes={"a": 1}),
}
RAW = {
    "deep JSON": b"[" * 200_000,
    "no JSON": b"{",
    "an array": b"[]",
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "empty": b"",
}


def predict(path: Path) -> list[Any]:
    image = Image.fromarray(np.zeros((200, 200, 3), np.uint8))
    return headkit.Predictor(path)(image, top_k=3)


def test_model_works_before_it_is_changed(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "x.onnx")
    assert {one["label"] for one in predict(tmp_path / "x.onnx")[0]} == {"a", "b", "c"}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_metadata_are_refused(model: onnx.ModelProto, tmp_path: Path, name: str) -> None:
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    for prop in changed.metadata_props:
        if prop.key in ("backbone", "heads"):
            value = json.loads(prop.value)
            CHANGES[name](prop.key, value)
            prop.value = json.dumps(value)
    onnx.save(changed, tmp_path / "x.onnx")
    with pytest.raises(headkit.HeadkitError) as refused:
        predict(tmp_path / "x.onnx")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("key", ["backbone", "heads", "features", "cost", "versions"])
def test_metadata_that_are_no_json_are_refused(
    model: onnx.ModelProto, tmp_path: Path, key: str, name: str
) -> None:
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    marker = "REPLACED" + "x" * (len(RAW[name]) - 8) if len(RAW[name]) > 8 else "MARKEDxx"
    for prop in changed.metadata_props:
        if prop.key == key:
            prop.value = marker[: len(RAW[name])]
    content = changed.SerializeToString()
    if len(RAW[name]) > 8:
        content = content.replace(marker.encode(), RAW[name])
    else:
        for prop in changed.metadata_props:
            if prop.key == key:
                prop.value = RAW[name].decode()
        content = changed.SerializeToString()
    (tmp_path / "x.onnx").write_bytes(content)
    if (key, name) in HARMLESS:
        predict(tmp_path / "x.onnx")
        return
    with pytest.raises(headkit.HeadkitError) as refused:
        predict(tmp_path / "x.onnx")
    assert str(refused.value).isprintable()


HARMLESS: set[tuple[str, str]] = set()
"""What says nothing that a prediction needs."""
