from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

import headkit
from headkit.export.predict.scores import compute_scores
from tests.backbones import active_backbone


@pytest.fixture(scope="module")
def exported(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model = active_backbone()
    head = headkit.fit(model, shapes, workers=0)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    headkit.export(model, path, label_names=head.label_names)
    return model, path


def test_probabilities_are_those_of_timms_transform_and_torch(
    exported: tuple[nn.Module, Path], shapes: Path
) -> None:
    model, path = exported
    images = sorted(shapes.rglob("*.png"))
    predictor = headkit.Predictor(path, threads=1)
    found = predictor(images, top_k=3, batch_size=5)
    transform = create_transform(**predictor.info.backbone["pretrained_cfg"], is_training=False)
    pixels = torch.stack([transform(Image.open(image).convert("RGB")) for image in images])
    with torch.inference_mode():
        expected = model(pixels).softmax(1).numpy()
    labels = ["bright", "dark", "striped"]
    for row, predictions in zip(expected, found, strict=True):
        assert [p["label"] for p in predictions] == [labels[i] for i in np.argsort(-row)]
        assert [p["score"] for p in predictions] == pytest.approx(sorted(row)[::-1], abs=1e-4)
    assert (
        sum(p[0]["label"] == image.parent.name for p, image in zip(found, images, strict=True)) > 20
    )


def test_paths_images_and_arrays_give_equal_predictions(
    exported: tuple[nn.Module, Path], shapes: Path
) -> None:
    predictor = headkit.Predictor(exported[1])
    path = shapes / "dark" / "0.png"
    image = Image.open(path)
    results = [predictor(x) for x in (path, str(path), image, np.asarray(image), [image])]
    assert all(result == results[0] for result in results)
    assert len(results[0]) == 1
    assert len(results[0][0]) == 3
    assert predictor([]) == []


def test_wrong_images_are_refused(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    predictor = headkit.Predictor(exported[1])
    (tmp_path / "bad.png").write_bytes(b"no image")
    cases: list[tuple[Any, str]] = [
        (tmp_path / "none.png", r"none\.png: no such file"),
        (tmp_path / "bad.png", r"cannot read image .*bad\.png"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\], expected uint8 \[height, width\] or"),
        (np.zeros((8, 8, 3)), "float64"),
    ]
    for image, message in cases:
        with pytest.raises(headkit.DataError, match=message):
            predictor(image)
    with pytest.raises(ValueError, match="top_k is 0"):
        predictor(Image.new("RGB", (9, 9)), top_k=0)


def test_wrong_models_are_refused(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    with pytest.raises(headkit.ExportError, match="no such file"):
        headkit.Predictor(tmp_path / "none.onnx")
    with pytest.raises(headkit.ExportError, match="heads is a list, expected a dictionary"):
        headkit.Predictor(exported[1], heads=["flowers.safetensors"])  # type: ignore[arg-type]
    content = exported[1].read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(headkit.ExportError, match=r"cannot read model .*cut\.onnx"):
        headkit.Predictor(tmp_path / "cut.onnx")
    foreign = onnx.load(exported[1])
    foreign.ClearField("metadata_props")
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(headkit.ExportError, match="headkit did not export"):
        headkit.Predictor(tmp_path / "foreign.onnx")
    broken = onnx.load(exported[1])
    for prop in broken.metadata_props:
        if prop.key == "heads":
            prop.value = prop.value.replace('"num_classes":3', '"num_classes":4')
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises(headkit.ExportError, match="damaged headkit metadata"):
        headkit.Predictor(tmp_path / "broken.onnx")


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_scores_follow_the_task_and_the_temperature(task: str) -> None:
    logits = np.array([[-800.0, 0.0, 3.0]], np.float32)
    expected = logits if task == "regression" else torch.sigmoid(torch.tensor(logits) / 2).numpy()
    found = compute_scores({"task": task, "temperature": 2.0}, logits)
    assert found == pytest.approx(expected)


def test_all_outputs_of_a_regression_are_returned_in_their_order(
    exported: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    model = headkit.adapt(active_backbone(), num_classes=7)
    names = [f"output {number}" for number in range(7)]
    head = headkit.head_of(model, names, task="regression")
    headkit.export(head, tmp_path / "numbers.onnx", backbone=model)
    predictor = headkit.Predictor(tmp_path / "numbers.onnx")
    image = np.zeros((9, 9, 3), np.uint8)
    (found,) = predictor(image, top_k=2)
    assert [one["label"] for one in found] == names
    assert predictor.num_predictions(2) == 7
    assert headkit.Predictor(exported[1]).num_predictions(2) == 2


def test_bad_requests_are_reported(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    predictor = headkit.Predictor(exported[1])
    with pytest.raises(ValueError, match="batch_size is 0"):
        predictor(Image.new("RGB", (9, 9)), batch_size=0)
    Image.fromarray(np.full((8, 8), 1.0, np.float32)).save(tmp_path / "deep.tif")
    with pytest.raises(headkit.DataError, match="more than 8 bits"):
        predictor(tmp_path / "deep.tif")
    twice = predictor.predict(Image.new("RGB", (9, 9)), ["", ""])
    assert [len(rows) for rows in twice.values()] == [1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", "{}"),
        ("backbone", '{"backbone":{}}'),
        ("features", "[]"),
        ("classifier", "@@"),
        ("cost", "3"),
        ("heads", "[]"),
        ("heads", "{"),
        ("form", "round"),
        ("versions", "null"),
    ],
)
def test_damaged_metadata_is_an_error(
    exported: tuple[nn.Module, Path], key: str, value: str, tmp_path: Path
) -> None:
    model = onnx.load(exported[1])
    for prop in model.metadata_props:
        if prop.key == key:
            prop.value = value
    onnx.save(model, tmp_path / "damaged.onnx")
    with pytest.raises(headkit.ExportError, match="damaged headkit metadata"):
        headkit.Predictor(tmp_path / "damaged.onnx")
