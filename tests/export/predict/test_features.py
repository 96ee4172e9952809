"""Features from an exported model, compared with those of timm in torch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform

import headkit
from tests.fixtures import FIXTURES, HEADS, IMAGES, MODELS
from tests.fixtures.v0_1_0.make import BACKBONES

PATHS = sorted(IMAGES.rglob("*.png"))[:5]


def timm_model(name: str) -> Any:
    """Return the backbone of the fixtures, made by timm alone."""
    architecture, kwargs = BACKBONES[name]
    model = timm.create_model(architecture, num_classes=3, **kwargs).eval()
    state = load_file(FIXTURES / "backbones" / f"{name}.safetensors")
    heads = [key for key in model.state_dict() if key.startswith(("fc", "head"))]
    model.load_state_dict(
        {key: state[key] for key in model.state_dict() if key not in heads}, False
    )
    return model


def timm_pixels(predictor: headkit.Predictor) -> torch.Tensor:
    transform = create_transform(**predictor.info.backbone["pretrained_cfg"], is_training=False)
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in PATHS])


@pytest.mark.parametrize("form", ["merged", "swappable", "multi", "backbone"])
def test_features_are_those_that_timm_computes(form: str) -> None:
    predictor = headkit.Predictor(MODELS / f"resnet_{form}.onnx")
    model, pixels = timm_model("resnet"), timm_pixels(predictor)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True).numpy()
    found = predictor.features(PATHS, batch_size=2)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (5, 8)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_logits_are_the_linear_classifier_of_the_features() -> None:
    predictor = headkit.Predictor(MODELS / "resnet_multi.onnx")
    head = headkit.Head.load(HEADS / "resnet_own.safetensors")
    found = predictor.features(PATHS)
    assert isinstance(found, np.ndarray)
    expected = predictor.logits(timm_pixels(predictor).numpy(), "own")
    weight, bias = (np.float32(head.tensors[f"fc.{name}"]) for name in ("weight", "bias"))
    assert np.allclose(found @ weight.T + bias, expected, rtol=1e-4, atol=1e-4)


def test_several_branches_give_a_tuple() -> None:
    predictor = headkit.Predictor(MODELS / "crossvit_merged.onnx")
    with torch.inference_mode():
        expected = headkit.features(timm_model("crossvit"), timm_pixels(predictor))
    found = predictor.features(PATHS)
    assert isinstance(found, tuple)
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("name", ["resnet_raw", "resnet_fp16", "resnet_int8", "grafted"])
def test_every_kind_of_exported_model_has_features(name: str) -> None:
    predictor = headkit.Predictor(MODELS / f"{name}.onnx")
    expected = headkit.Predictor(MODELS / "resnet_backbone.onnx").features(PATHS)
    found = predictor.features(PATHS)
    assert isinstance(found, np.ndarray)
    assert isinstance(expected, np.ndarray)
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_features_change_no_logits_and_take_any_number_of_images() -> None:
    predictor = headkit.Predictor(MODELS / "resnet_merged.onnx")
    before = predictor(PATHS)
    assert predictor.features(PATHS[0]).shape == (1, 8)  # type: ignore[union-attr]
    assert predictor.features([]).shape == (0, 8)  # type: ignore[union-attr]
    assert predictor(PATHS) == before
    with pytest.raises(ValueError, match="batch_size is 0"):
        predictor.features(PATHS, batch_size=0)


def test_features_of_a_model_with_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    plain = MODELS / "resnet_merged.onnx"
    onnx.save_model(
        onnx.load(plain), path, save_as_external_data=True, location="w", size_threshold=256
    )
    expected = headkit.Predictor(plain).features(PATHS)
    if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 21):
        assert np.array_equal(headkit.Predictor(path).features(PATHS), expected)
    monkeypatch.setattr(ort, "__version__", "1.20.1")
    assert np.array_equal(headkit.Predictor(plain).features(PATHS), expected)
    with pytest.raises(headkit.ExportError, match=r"need ONNX Runtime 1\.21 or newer"):
        headkit.Predictor(path).features(PATHS)


def test_features_need_neither_torch_nor_onnx() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'onnx', 'safetensors'): sys.modules[name] = None\n"
        "import headkit; p = headkit.Predictor(sys.argv[1]); print(p.features(sys.argv[2]).shape)"
    )
    command = [sys.executable, "-c", code, str(MODELS / "resnet_merged.onnx"), str(PATHS[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 8)\n"
