from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torch import nn

import headkit
from headkit.export.graph.metadata import ModelInfo
from headkit.export.predict.adapter_files import Inputs, read_adapter
from tests.backbones import SHORT, random_backbone
from tests.heads import head_for
from tests.images import X
from tests.logits import assert_close, session, torch_logits


@pytest.fixture(scope="module")
def model() -> Any:
    return random_backbone()


@pytest.fixture(scope="module")
def warm(model: nn.Module) -> Any:
    return head_for(model, 5, temperature=2.0)


@pytest.fixture(scope="module")
def plain(model: nn.Module, warm: headkit.Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a swappable model without probabilities, which has no input for a temperature."""
    path = tmp_path_factory.mktemp("swap") / "plain.onnx"
    headkit.export(warm, path, "swappable", backbone=model)
    return path


@pytest.fixture(scope="module")
def scaled(model: nn.Module, warm: headkit.Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a swappable model with probabilities and the input ``temperature``."""
    path = tmp_path_factory.mktemp("swap") / "scaled.onnx"
    headkit.export(warm, path, "swappable", backbone=model, probabilities=True)
    return path


def described(path: Path) -> tuple[ModelInfo, Inputs]:
    running = session(path)
    inputs = {value.name: value.shape for value in running.get_overridable_initializers()}
    return headkit.Predictor(path).info, inputs


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_adapter_does_not_inherit_the_temperature_of_the_models_own_head(
    model: nn.Module, plain: Path, tmp_path: Path
) -> None:
    head = head_for(model, 3)
    headkit.graft(plain, head, tmp_path / "cold.onnx_adapter")
    predictor = headkit.Predictor(plain, {"cold": tmp_path / "cold.onnx_adapter"})
    images = [np.full((160, 160, 3), grey, np.uint8) for grey in (10, 200)]
    found = predictor(images, head="cold", top_k=3)
    pixels = np.stack([predictor.preprocess(Image.fromarray(image)) for image in images])
    expected = softmax(predictor.logits(pixels, "cold").astype(np.float64))
    scores = [{row["label"]: row["score"] for row in rows} for rows in found]
    assert np.allclose([[row[str(n)] for n in range(3)] for row in scores], expected, atol=1e-6)


def test_adapter_with_a_temperature_needs_a_model_with_that_input(
    model: nn.Module, plain: Path, scaled: Path, tmp_path: Path
) -> None:
    head, path = head_for(model, 3, temperature=0.5), tmp_path / "head.onnx_adapter"
    with pytest.raises(headkit.ExportError, match=r"temperature is 0\.5.*--probabilities"):
        headkit.graft(plain, head, path)
    assert list(tmp_path.iterdir()) == []
    headkit.graft(scaled, head, path)
    info, inputs = described(scaled)
    assert read_adapter(info, inputs, "half", path).info.description["temperature"] == 0.5


def test_adapter_of_another_task_is_refused(model: nn.Module, plain: Path, tmp_path: Path) -> None:
    head, path = head_for(model, 3), tmp_path / "tags.onnx_adapter"
    with pytest.raises(
        headkit.ExportError, match="task 'multiclass', but the head is for the task 'multilabel'"
    ):
        headkit.graft(plain, head.with_changes(task="multilabel"), path)
    headkit.export(
        head.with_changes(task="multilabel"), tmp_path / "tags.onnx", "swappable", backbone=model
    )
    headkit.graft(tmp_path / "tags.onnx", head.with_changes(task="multilabel"), path)
    with pytest.raises(headkit.ExportError, match=r"'multiclass', but the adapter .* 'multilabel'"):
        headkit.Predictor(plain, {"tags": path})


def test_model_with_probabilities_takes_heads_of_its_own_task(
    model: nn.Module, plain: Path, scaled: Path, tmp_path: Path
) -> None:
    tags = head_for(model, 3).with_changes(task="multilabel")
    expected = 1 / (1 + np.exp(-torch_logits(model, tags, X)))
    image = np.full((160, 160, 3), 200, np.uint8)
    predictor = headkit.Predictor(plain, heads={"tags": tags})
    pixels = predictor.preprocess(Image.fromarray(image))[None]
    scores = 1 / (1 + np.exp(-torch_logits(model, tags, torch.from_numpy(pixels))[0]))
    found = predictor([image], head="tags", top_k=3)[0]
    assert np.allclose([row["score"] for row in found], sorted(scores)[::-1], atol=1e-5)
    with pytest.raises(headkit.ExportError, match="task is 'multiclass', but the task of this"):
        headkit.Predictor(scaled, heads={"tags": tags})
    grafted = tmp_path / "tags.onnx"
    headkit.graft(scaled, tags, grafted)
    feed = {"pixel_values": X.numpy()}
    assert_close(session(grafted).run(["probabilities"], feed)[0], expected)


def test_adapter_of_another_backbone_is_refused(plain: Path, tmp_path: Path) -> None:
    other = random_backbone(seed=1)
    head, path = head_for(other, 5), tmp_path / "other.onnx_adapter"
    headkit.export(head, tmp_path / "other.onnx", "swappable", backbone=other)
    headkit.graft(tmp_path / "other.onnx", head, path)
    info, inputs = described(plain)
    wrong, right = head.backbone.fingerprint[:7], info.backbone["backbone"]["fingerprint"][:7]
    with pytest.raises(headkit.BackboneMismatch, match=f"{wrong[:-1]}.*{right}.*--force"):
        headkit.Predictor(plain, {"other": path})
    assert read_adapter(info, inputs, "other", path, force=True).info.num_classes == 5
    # A head that was grafted with force still belongs to another backbone.
    headkit.graft(plain, head, tmp_path / "forced.onnx_adapter", force=True)
    with pytest.raises(headkit.BackboneMismatch):
        headkit.Predictor(plain, {"other": tmp_path / "forced.onnx_adapter"})


def test_adapter_file_stores_task_and_backbone_as_integers(
    model: nn.Module, plain: Path, tmp_path: Path
) -> None:
    head = head_for(model, 3)
    headkit.graft(plain, head, tmp_path / "head.onnx_adapter")
    held = ort.AdapterFormat.read_adapter(str(tmp_path / "head.onnx_adapter"))
    assert held.get_adapter_version() == 71  # all three parts of the rule, and multiclass
    assert f"{held.get_model_version():031b}" == f"{int(head.backbone.fingerprint, 16):0256b}"[:31]


def test_tensor_without_an_input_is_refused(model: nn.Module, plain: Path, tmp_path: Path) -> None:
    head, path = head_for(model, 3), tmp_path / "weight.onnx"
    weight = head.with_changes(tensors={"fc.weight": head.tensors["fc.weight"]})
    headkit.graft(plain, weight, path)  # no bias, and no input for one
    headkit.Predictor(path, {"weight": weight})
    with pytest.raises(headkit.ExportError, match=r"no input for the head's fc\.bias"):
        headkit.Predictor(path, {"both": head})
    with pytest.raises(headkit.ExportError, match=r"no input for the head's fc\.bias"):
        headkit.graft(path, head, tmp_path / "both.onnx_adapter")
    counted = {"fc.weight": head.tensors["fc.weight"], "fc.num_batches_tracked": np.array(7)}
    headkit.Predictor(path, {"counted": weight.with_changes(tensors=counted)})


def test_counter_that_the_graph_never_reads_needs_no_input(tmp_path: Path) -> None:
    """LeViT's classifier contains a BatchNorm, which counts batches."""
    levit = random_backbone("levit_128s", **SHORT["levit_128s"])
    first, second = head_for(levit, 5), head_for(levit, 3)
    assert any(name.endswith("num_batches_tracked") for name in second.tensors)
    path, adapter = tmp_path / "levit.onnx", tmp_path / "second.onnx_adapter"
    headkit.export(first, path, "swappable", backbone=levit)
    headkit.graft(path, second, adapter)
    predictor = headkit.Predictor(path, {"head": second, "file": adapter})
    pixels = X.numpy()[:, :, :1, :1] + np.zeros((1, 1, 224, 224), np.float32)
    assert np.array_equal(predictor.logits(pixels, "head"), predictor.logits(pixels, "file"))
    x = X.new_tensor(pixels)
    assert_close(predictor.logits(pixels, "head"), torch_logits(levit, second, x))
