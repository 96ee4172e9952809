from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from torch import nn

import headkit
from tests.backbones import active_backbone, stores_arguments


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model = headkit.adapt(active_backbone(), 3)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    headkit.export(model, path, label_names=["a", "b", "c"])
    return model, path


def test_names_types_and_dynamic_batch(exported: tuple[nn.Module, Path]) -> None:
    graph = onnx.load(exported[1]).graph
    (pixels,), (logits,) = graph.input, graph.output
    assert (pixels.name, logits.name) == ("pixel_values", "logits")
    dims = pixels.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 3, 160, 160]
    dims = logits.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 3]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_agrees_with_torch(exported: tuple[nn.Module, Path], batch: int) -> None:
    model, path = exported
    x = torch.randn(batch, 3, 160, 160)
    (found,) = ort.InferenceSession(path).run(None, {"pixel_values": x.numpy()})
    with torch.inference_mode():
        expected = model(x).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_metadata_carries_labels_preprocessing_and_fingerprint(
    exported: tuple[nn.Module, Path],
) -> None:
    model, path = exported
    info = headkit.info(path)
    head = headkit.head_of(model, ["a", "b", "c"])
    assert info["label_names"] == ["a", "b", "c"]
    assert info["pretrained_cfg"] == head.to_json()["pretrained_cfg"]
    assert info["backbone"]["fingerprint"] == head.backbone.fingerprint
    assert len(info["head_id"]) == 64
    assert info["exported_with"]["torch"] == torch.__version__


def test_file_holds_no_paths_of_the_machine(exported: tuple[nn.Module, Path]) -> None:
    content = exported[1].read_bytes()
    assert b"site-packages" not in content
    assert str(Path(headkit.__file__).parent).encode() not in content


def test_head_file_is_exported_with_the_weights_that_the_user_names(
    small_weights: Path, shapes: Path, tmp_path: Path
) -> None:
    head = headkit.fit("test_resnet", shapes, weights=small_weights, workers=0)
    path = head.save(tmp_path / "head.safetensors")
    with pytest.raises(headkit.WeightsError, match=r"small\.safetensors.*--weights FILE"):
        headkit.export(path, tmp_path / "model.onnx")
    beside = tmp_path / "small.safetensors"
    beside.write_bytes(small_weights.read_bytes())
    with pytest.raises(headkit.WeightsError, match=r"small\.safetensors may be that file"):
        headkit.export(path, tmp_path / "model.onnx")
    headkit.export(path, tmp_path / "model.onnx", weights=beside)
    assert headkit.info(tmp_path / "model.onnx")["head_id"] == head.digest


def test_model_that_does_not_agree_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(
        headkit.ParityError,
        match=r"differ in logits by \S+ times the largest value; the limit is 0e\+00; no file was",
    ):
        headkit.export(headkit.adapt(active_backbone(), 3), path, tolerance=0.0)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


class _BatchBound(nn.Module):
    """A model whose graph differs from its forward, so that the comparison must fail."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: Any = active_backbone()
        self.pretrained_cfg, self.num_classes = self.inner.pretrained_cfg, 1000
        self.num_features = self.inner.num_features

    def get_classifier(self) -> Any:
        return self.inner.get_classifier()

    def reset_classifier(self, num_classes: int) -> None:
        self.inner.reset_classifier(num_classes)
        self.num_classes = num_classes

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x + 1.0 if torch.compiler.is_exporting() else x)


@stores_arguments
def test_numbers_that_change_in_conversion_are_caught(tmp_path: Path) -> None:
    with pytest.raises(headkit.ParityError, match="at batch 1"):
        headkit.export(_BatchBound(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_unwritable_path_and_unknown_form_are_errors(small: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(headkit.OutputError, match="file is a file, expected a folder"):
        headkit.export(small, tmp_path / "file" / "model.onnx")
    with pytest.raises(headkit.OutputError, match=r"its suffix is '\.bin', expected '\.onnx'"):
        headkit.export(small, tmp_path / "model.bin")
    with pytest.raises(headkit.ExportError, match="form is 'round'"):
        headkit.export(small, tmp_path / "model.onnx", "round")


def test_export_is_a_function_and_a_package() -> None:
    import headkit.export.predict.predictor

    assert callable(headkit.export)
    package: Any = headkit.export
    assert package.predict.predictor.Predictor is headkit.Predictor


@stores_arguments
def test_constants_that_the_rewriter_loses_are_kept(tmp_path: Path) -> None:
    """In successive clamps of gemma4_vit, onnxscript's rewriter drops a constant."""
    model = headkit.adapt(timm.create_model("gemma4_vit_167m", depth=1, img_size=96), 3)
    done = headkit.export(model, tmp_path / "model.onnx")
    assert max(done.difference.values()) < 1e-4


def test_branches_are_fused_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = headkit.adapt(active_backbone("repghostnet_050"), 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    headkit.export(model, tmp_path / "model.onnx")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert trained == {name: p.requires_grad for name, p in model.named_parameters()}
    convolutions = sum(isinstance(part, nn.Conv2d) for part in model.modules())
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert sum(node.op_type == "Conv" for node in nodes) <= convolutions
    # Also the identity branches' batch norms are fused, which ONNX Runtime cannot do.
    assert not any(node.op_type == "BatchNormalization" for node in nodes)
