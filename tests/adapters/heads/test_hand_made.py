"""A classifier that somebody assigned by hand is saved so that it can be attached, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

import headkit
from tests.backbones import SHORT, active_backbone, stores_arguments

pytestmark = stores_arguments

CASES: dict[str, tuple[str, str, Callable[[], nn.Module], str]] = {
    "linear": ("test_resnet", "fc", lambda: nn.Linear(96, 3), "own"),
    "linear without bias": ("test_resnet", "fc", lambda: nn.Linear(96, 3, bias=False), "own"),
    "dropout before": (
        "test_resnet",
        "fc",
        lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(96, 3)),
        "own",
    ),
    "dropout around, without bias": (
        "test_vit",
        "head",
        lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(64, 3, bias=False), nn.Dropout(0.1)),
        "own",
    ),
    "nested": (
        "test_efficientnet",
        "classifier",
        lambda: nn.Sequential(nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(256, 3)))),
        "own",
    ),
    "inside a head": ("test_convnext", "head.fc", lambda: nn.Linear(64, 3, bias=False), "own"),
    "two layers with GELU": (
        "test_resnet",
        "fc",
        lambda: nn.Sequential(nn.Linear(96, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3)),
        "mlp",
    ),
    "convolution": (
        "dla46x_c",
        "fc",
        lambda: nn.Conv2d(256, 3, 1, bias=False),
        "own",
    ),
    "flatten and linear on a convolution": (
        "dla46x_c",
        "fc",
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 3)),
        "linear",
    ),
}


def with_classifier(name: str) -> tuple[Any, Any, str]:
    """A fresh backbone, a trained copy with a classifier made by hand, and the kind of head."""
    architecture, path, make, kind = CASES[name]
    fresh = active_backbone(architecture, **SHORT.get(architecture, {}))
    model = active_backbone(architecture, **SHORT.get(architecture, {}))
    torch.manual_seed(1)
    model.set_submodule(path, make())
    return fresh, model.eval(), kind


@pytest.mark.parametrize("name", CASES)
def test_hand_made_classifier_is_attached_to_a_fresh_backbone(name: str, tmp_path: Path) -> None:
    fresh, model, kind = with_classifier(name)
    head = headkit.save_head(model, tmp_path / "head.safetensors", ["a", "b", "c"])
    assert (head.num_classes, head.kind) == (3, kind)
    x = torch.rand(2, *head.pretrained_cfg["input_size"])
    again = headkit.attach(fresh, tmp_path / "head.safetensors")
    with torch.inference_mode():
        expected = model(x)
        assert torch.equal(again(x), expected)
        assert torch.equal(headkit.classify(model, headkit.features(model, x)), expected)


@pytest.mark.parametrize("name", ["linear", "dropout before", "linear without bias"])
def test_plain_timm_loads_the_head_of_a_hand_made_classifier(name: str, tmp_path: Path) -> None:
    _, model, _ = with_classifier(name)
    path = tmp_path / "head.safetensors"
    headkit.save_head(model, path)
    from safetensors.torch import load_file

    plain = timm.create_model("test_resnet").eval()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if n[:3] != "fc."}, False)
    plain.reset_classifier(3)
    plain.load_state_dict(load_file(path), strict=False)
    x = torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(plain(x), model(x))


@pytest.mark.parametrize("name", ["dropout before", "two layers with GELU"])
def test_model_with_a_hand_made_classifier_is_exported(name: str, tmp_path: Path) -> None:
    _, model, _ = with_classifier(name)
    headkit.export(model, tmp_path / "m.onnx", label_names=["a", "b", "c"])
    x = torch.rand(2, 3, 160, 160)
    logits = headkit.Predictor(tmp_path / "m.onnx").logits(x.numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(logits, model(x).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: nn.Sequential(nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 3)), "Linear, ReLU"),
        (lambda: nn.Sequential(nn.ReLU(), nn.Linear(96, 3)), "ReLU, Linear"),
        (lambda: nn.Sequential(nn.Linear(96, 3), nn.Softmax(1)), "Linear, Softmax"),
        (lambda: nn.Sequential(nn.LayerNorm(96), nn.Linear(96, 3)), "LayerNorm, Linear"),
        (lambda: nn.Sequential(nn.Linear(96, 8), nn.GELU("tanh"), nn.Linear(8, 3)), "Linear, GELU"),
        (lambda: _Normalized(96, 3), "_Normalized"),
        (lambda: nn.Conv2d(96, 3, 1), "Conv2d"),
    ],
)
def test_classifier_that_no_head_file_describes_is_refused(
    make: Callable[[], nn.Module], found: str, tmp_path: Path
) -> None:
    model = active_backbone()
    model.fc = make()
    with pytest.raises(headkit.ContractError, match=rf"unknown kind \({found}.*adapt\(model"):
        headkit.save_head(model, tmp_path / "head.safetensors")
    assert not list(tmp_path.iterdir())


class _Normalized(nn.Linear):
    """It has the tensors of a linear layer and other logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.normalize(x, dim=-1))


def test_labels_must_fit_the_hand_made_classifier(tmp_path: Path) -> None:
    model = active_backbone()
    model.fc = nn.Linear(96, 3)
    with pytest.raises(headkit.HeadFormatError, match="2 label names, expected 3"):
        headkit.save_head(model, tmp_path / "head.safetensors", ["a", "b"])


def test_layer_of_another_width_is_refused(tmp_path: Path) -> None:
    model = active_backbone()
    model.fc = nn.Linear(256, 3)
    with pytest.raises(headkit.ContractError, match=r"takes 256 features, but .* returns 96"):
        headkit.save_head(model, tmp_path / "head.safetensors")


def test_layer_at_a_name_that_the_architecture_does_not_use_is_refused(tmp_path: Path) -> None:
    model: Any = timm.create_model("test_efficientnet")
    model.fc = nn.Linear(256, 3)
    with pytest.raises(headkit.ContractError, match=r"does not use its part fc.*is classifier"):
        headkit.save_head(model, tmp_path / "head.safetensors")


def test_one_of_two_classifiers_replaced_by_hand_is_refused(tmp_path: Path) -> None:
    arguments = {"embed_dim": 8, "depth": 1, "num_heads": 2}
    model: Any = timm.create_model("deit_tiny_distilled_patch16_224", **arguments)
    model.head = nn.Linear(8, 3)
    with pytest.raises(headkit.ContractError, match="head 3, head_dist 1000; replace all"):
        headkit.save_head(model, tmp_path / "head.safetensors")
    model.head_dist = nn.Linear(8, 3, bias=False)
    assert headkit.save_head(model, tmp_path / "head.safetensors").num_classes == 3


def test_hand_made_classifier_trains_alone_after_freeze() -> None:
    model = active_backbone()
    model.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(96, 3))
    headkit.freeze(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"fc.1.weight", "fc.1.bias"}
