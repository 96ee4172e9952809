"""A backbone is converted once, as long as nothing changes that its graph depends on."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import headkit
from headkit.export.graph import converted_backbones
from headkit.export.graph.converted_backbones import conversion_key, convert_once
from tests.backbones import active_backbone
from tests.heads import head_for
from tests.images import X
from tests.logits import session


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often torch converts a model."""
    original, calls = torch.onnx.export, list[int]()

    def count(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return original(*args, **options)

    monkeypatch.setattr(torch.onnx, "export", count)
    monkeypatch.setattr(converted_backbones, "_kept", type(converted_backbones._kept)())
    return calls


def test_next_head_on_a_backbone_is_exported_without_another_conversion(
    conversions: list[int], tmp_path: Path
) -> None:
    graphs: list[Any] = []
    for classes, form in [(3, "merged"), (5, "merged"), (5, "merged"), (3, "swappable")]:
        model = active_backbone()
        path = tmp_path / f"{len(graphs)}.onnx"
        headkit.export(head_for(model, classes), path, form, backbone=model)
        graphs.append(onnx.load(path).graph)
    assert len(conversions) == 1
    assert graphs[1] == graphs[2]
    conversions.clear()
    converted_backbones._kept.clear()
    model = active_backbone()
    headkit.export(head_for(model, 5), tmp_path / "again.onnx", backbone=model)
    assert len(conversions) == 1
    assert onnx.load(tmp_path / "again.onnx").graph == graphs[1]


def _change_weight(model: Any) -> None:
    with torch.no_grad():
        model.conv1[0].weight[0, 0, 0, 0] += 1


def _change_buffer(model: Any) -> None:
    model.bn1.running_mean[0] += 1


def _change_attribute(model: Any) -> None:
    model.bn1.eps = 0.1


def _change_activation(model: Any) -> None:
    model.act1 = nn.Tanh()


@pytest.mark.parametrize(
    "change", [_change_weight, _change_buffer, _change_attribute, _change_activation]
)
def test_changed_backbone_is_converted_again(
    change: Callable[[Any], None], conversions: list[int], tmp_path: Path
) -> None:
    model = headkit.adapt(active_backbone(), 3)
    before = headkit.export(model, tmp_path / "before.onnx")
    change(model)
    headkit.export(model, tmp_path / "after.onnx")
    assert len(conversions) == 2
    first, second = (
        session(path).run(None, {"pixel_values": X.numpy()})[0]
        for path in (before.path, tmp_path / "after.onnx")
    )
    assert np.abs(first - second).max() > 1e-6


def test_key_leaves_out_the_classifier_and_takes_every_option() -> None:
    model = active_backbone()
    key = conversion_key(model, 1)
    assert key == conversion_key(headkit.adapt(model, 7), 1)
    assert key != conversion_key(model, 2)
    model.method = lambda: None
    assert conversion_key(model, 1) is None


def _patch_method(model: Any, scale: float) -> None:
    def forward_features(self: Any, x: Any) -> Any:
        return scale * type(self).forward_features(self, x)

    model.forward_features = types.MethodType(forward_features, model)


def _patch_class(model: Any, scale: float) -> None:
    class Activation(nn.Module):
        def forward(self, x: Any) -> Any:
            return scale * x

    Activation.__qualname__ = "Activation"
    globals()["Activation"] = Activation
    model.act1 = Activation()


@pytest.mark.parametrize("patch", [_patch_method, _patch_class])
def test_other_code_under_the_same_name_is_another_key(
    patch: Callable[[Any, float], None],
) -> None:
    """As when a cell of a notebook is edited and run again."""
    model = active_backbone()
    patch(model, 1.0)
    first = conversion_key(model)
    assert conversion_key(model) == first
    patch(model, 2.0)
    assert conversion_key(model) != first


def test_model_with_hooks_is_always_converted() -> None:
    model = active_backbone()
    handle = model.layer1.register_forward_hook(lambda *_: None)
    assert conversion_key(model) is None
    handle.remove()
    assert conversion_key(model) is not None


def test_kept_graphs_are_copies_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converted_backbones, "_kept", type(converted_backbones._kept)())
    made = []

    def convert() -> onnx.ModelProto:
        made.append(1)
        weights = onnx.TensorProto(raw_data=bytes(1000))
        return onnx.ModelProto(doc_string="made", graph=onnx.GraphProto(initializer=[weights]))

    convert_once("a", convert).doc_string = "changed"
    assert convert_once("a", convert).doc_string == "made"
    assert len(made) == 1
    convert_once(None, convert)
    assert len(made) == 2
    monkeypatch.setattr(converted_backbones, "MAX_BYTES", 2500)
    convert_once("b", convert)
    convert_once("a", convert)
    convert_once("c", convert)
    assert list(converted_backbones._kept) == ["a", "c"]
    monkeypatch.setattr(converted_backbones, "MAX_BYTES", 100)
    convert_once("d", convert)
    assert "d" not in converted_backbones._kept
