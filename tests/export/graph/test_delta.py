from pathlib import Path

import numpy as np
import pytest
import torch

import headkit
from headkit.adapters.backbone.fingerprint import backbone_info
from tests.backbones import random_backbone
from tests.deltas import head_with_delta

IMAGES = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[headkit.Head, Path, np.ndarray]:
    tuned = random_backbone(seed=0)
    head = head_with_delta(tuned)
    path = tmp_path_factory.mktemp("delta") / "model.onnx"
    headkit.export(head, path, "swappable", backbone=random_backbone(seed=0))
    return head, path, tuned(IMAGES).detach().numpy()


def test_export_merges_the_delta(exported: tuple[headkit.Head, Path, np.ndarray]) -> None:
    head, path, expected = exported
    predictor = headkit.Predictor(path)
    found = predictor.logits(IMAGES.numpy())
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    described = headkit.info(path)
    assert described["backbone"]["fingerprint"] == head.backbone.fingerprint


def test_other_heads_of_the_same_tuned_backbone_can_be_grafted(
    exported: tuple[headkit.Head, Path, np.ndarray], tmp_path: Path
) -> None:
    head, path, expected = exported
    headkit.graft(path, head.rename({"class 0": "zero"}), tmp_path / "grafted.onnx")
    found = headkit.Predictor(tmp_path / "grafted.onnx").logits(IMAGES.numpy())
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_models_of_the_base_refuse_the_head(
    exported: tuple[headkit.Head, Path, np.ndarray], tmp_path: Path
) -> None:
    head, path, _ = exported
    plain = headkit.head_of(headkit.adapt(random_backbone(seed=0), 3), head.label_names)
    base = tmp_path / "base.onnx"
    headkit.export(plain, base, "swappable", backbone=random_backbone(seed=0))
    head.save(tmp_path / "head.safetensors")
    for force in (False, True):
        with pytest.raises(headkit.BackboneMismatch, match="changes to the backbone's weights"):
            headkit.graft(base, head, tmp_path / "out.onnx", force=force)
    with pytest.raises(headkit.BackboneMismatch, match="changes to the backbone's weights"):
        headkit.Predictor(base, heads={"a": tmp_path / "head.safetensors"})
    with pytest.raises(headkit.BackboneMismatch, match="fingerprint"):
        headkit.graft(path, plain, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_heads_of_two_backbones_do_not_share_a_model(
    exported: tuple[headkit.Head, Path, np.ndarray], order: tuple[int, int], tmp_path: Path
) -> None:
    plain = headkit.head_of(headkit.adapt(random_backbone(seed=0), 3), "abc")
    pair = [exported[0], plain]
    heads = {"a": pair[order[0]], "b": pair[order[1]]}
    backbone = random_backbone(seed=0)
    before = backbone_info(backbone).fingerprint
    with pytest.raises(headkit.BackboneMismatch):
        headkit.export(heads, tmp_path / "multi.onnx", "multi", backbone=backbone)
    assert not (tmp_path / "multi.onnx").exists()
    assert backbone_info(backbone).fingerprint == before
