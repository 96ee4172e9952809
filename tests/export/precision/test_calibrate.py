from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import headkit
from headkit.export.precision.calibrate import Images
from headkit.export.preprocess.pillow import Preprocess
from tests.backbones import active_backbone
from tests.heads import head_for


@pytest.fixture(scope="module")
def fitted(shapes: Path) -> tuple[Any, headkit.Head]:
    model = active_backbone()
    return model, headkit.fit(model, shapes, workers=0)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_reduced_model_is_smaller_and_records_its_cost(
    precision: str, fitted: tuple[Any, headkit.Head], shapes: Path, tmp_path: Path
) -> None:
    model, head = fitted
    full = headkit.export(head, tmp_path / "full.onnx", backbone=model)
    done = headkit.export(
        head, tmp_path / "small.onnx", backbone=model, precision=precision, images=shapes,
        max_cost=0.2,
    )  # fmt: skip
    assert done.num_bytes < {"fp16": 0.6, "int8": 0.5}[precision] * full.num_bytes
    info = headkit.info(tmp_path / "small.onnx")
    cost = info["precision_cost"][""]
    assert info["precision"] == precision
    assert cost["images"] == 12
    # Compute the same by hand from the classes of both models on the held-out half.
    held_out = sorted(shapes.rglob("*.png"))[1::2]
    before, after = (
        [row[0]["label"] for row in headkit.Predictor(path)(held_out, top_k=1)]
        for path in (tmp_path / "full.onnx", tmp_path / "small.onnx")
    )
    assert cost["agreement"] == np.mean([a == b for a, b in zip(before, after, strict=True)])
    right = [label == path.parent.name for label, path in zip(after, held_out, strict=True)]
    assert cost["accuracy_after"] == np.mean(right)
    # A head that is grafted later is float32 on the same reduced backbone.
    headkit.graft(tmp_path / "small.onnx", head, tmp_path / "again.onnx")
    images = held_out[:3]
    assert headkit.Predictor(tmp_path / "again.onnx")(images) == headkit.Predictor(
        tmp_path / "small.onnx"
    )(images)


def test_precision_that_costs_too_much_leaves_no_file(tmp_path: Path) -> None:
    model = active_backbone()
    head = head_for(model, 200)
    images = list(np.random.default_rng(0).integers(0, 256, (40, 160, 160, 3), dtype=np.uint8))
    # Make classes differ only in directions that these images do not share: rounding changes them.
    preprocess = Preprocess.from_cfg(head.pretrained_cfg)
    pixels = torch.from_numpy(np.stack([preprocess(Image.fromarray(image)) for image in images]))
    with torch.inference_mode():
        entered = headkit.features(model, pixels)
    assert isinstance(entered, torch.Tensor)
    mean = entered.mean(0).numpy()
    weight = head.tensors["fc.weight"]
    across = weight - np.outer(weight @ mean, mean) / (mean @ mean)
    head = head.with_changes(tensors={"fc.weight": across, "fc.bias": np.zeros(200, np.float32)})
    with pytest.raises(headkit.ParityError, match="int8"):
        headkit.export(
            head, tmp_path / "model.onnx", backbone=model, precision="int8", images=images,
            max_cost=0.02,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_reduced_precision_needs_images_and_classes(
    fitted: tuple[Any, headkit.Head], shapes: Path, tmp_path: Path
) -> None:
    model, head = fitted
    path = tmp_path / "model.onnx"
    with pytest.raises(headkit.DataError, match="--images FOLDER"):
        headkit.export(head, path, backbone=model, precision="int8")
    with pytest.raises(headkit.DataError, match="found 1"):
        headkit.export(
            head, path, backbone=model, precision="fp16", images=[shapes / "dark" / "0.png"]
        )
    with pytest.raises(headkit.ExportError, match="multiclass"):
        headkit.export(head, path, "backbone", backbone=model, precision="fp16", images=shapes)
    assert list(tmp_path.iterdir()) == []


def test_halves_do_not_overlap_and_hold_every_class(shapes: Path) -> None:
    cfg = {
        "input_size": [3, 32, 32], "crop_pct": 0.9, "crop_mode": "center",
        "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    images = Images.load(shapes, cfg)
    halves = [{Path(str(path)) for path in half} for half in (images.calibration, images.held_out)]
    assert not halves[0] & halves[1]
    assert len(halves[0] | halves[1]) == 24
    assert all(
        {path.parent.name for path in half} == {"bright", "dark", "striped"} for half in halves
    )
    targets = images.targets(["bright", "dark", "striped"])
    assert targets is not None
    assert targets.tolist() == sorted([0, 1, 2] * 4)
    assert images.targets(["bright", "dark"]) is None


def test_opset_and_types_of_a_reduced_model(
    fitted: tuple[Any, headkit.Head], shapes: Path, tmp_path: Path
) -> None:
    model, head = fitted
    headkit.export(
        head, tmp_path / "m.onnx", backbone=model, precision="fp16", images=shapes, max_cost=0.2
    )
    graph = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(graph, full_check=True)
    kinds = {
        v.name: v.type.tensor_type.elem_type for v in (*graph.graph.input, *graph.graph.output)
    }
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT}
