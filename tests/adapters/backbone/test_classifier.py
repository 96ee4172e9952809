from pathlib import Path
from typing import cast

import pytest
import timm
import torch
from torch import nn

import headkit
from headkit.adapters.backbone.classifier import find_classifier, replace_classifier
from tests.backbones import random_backbone

ARCHITECTURES = ["test_resnet", "test_vit", "test_convnext", "test_mambaout", "test_maxvit"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_classify_of_features_equals_the_model(architecture: str) -> None:
    model = headkit.adapt(random_backbone(architecture), 7)
    x = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(headkit.classify(model, headkit.features(model, x)), model(x))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_timms_pre_logits(architecture: str) -> None:
    model = random_backbone(architecture)
    x = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
        torch.testing.assert_close(headkit.features(model, x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_head_has_bit_equal_logits_in_a_fresh_model(
    architecture: str, tmp_path: Path
) -> None:
    model = headkit.adapt(random_backbone(architecture), 7)
    headkit.save_head(model, tmp_path / "head.safetensors", "abcdefg")
    fresh = headkit.attach(random_backbone(architecture), tmp_path / "head.safetensors")
    x = torch.randn(3, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(fresh(x), model(x))


def test_convolutional_classifier_keeps_its_shape() -> None:
    model = headkit.adapt("dla46x_c", 5, pretrained=False)
    with torch.inference_mode():
        x = torch.randn(2, 3, 64, 64)
        entered = headkit.features(model, x)
        assert isinstance(entered, torch.Tensor)
        assert entered.shape == (2, 256, 1, 1)
        assert torch.equal(headkit.classify(model, entered), model(x))


def test_model_that_is_not_from_timm_is_refused() -> None:
    with pytest.raises(headkit.ContractError, match="lacks get_classifier or reset_classifier"):
        headkit.features(nn.Linear(2, 2), torch.rand(1, 2))


class _MadeUp(nn.Module):
    """Keeps timm's contract; each subclass breaks it in one way."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.num_classes = nn.Flatten(), nn.LayerNorm(12), 3
        self.fc: nn.Module = nn.Linear(12, 3)
        self.pretrained_cfg = {"architecture": "made_up"}

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(12, num_classes) if num_classes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.fc(self.norm(self.body(x))))


class _Elsewhere(_MadeUp):
    def get_classifier(self) -> nn.Module:
        return nn.Linear(12, 3)


class _WrongModule(_MadeUp):
    def get_classifier(self) -> nn.Module:
        return self.norm


class _Unused(_MadeUp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.norm(self.body(x)), cast(torch.Tensor, self.fc.weight))


class _Scaled(_MadeUp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class _Twice(_MadeUp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + cast(torch.Tensor, self.fc(self.body(x)))


class _Idle(_MadeUp):
    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes


class _Meddling(_MadeUp):
    def reset_classifier(self, num_classes: int) -> None:
        super().reset_classifier(num_classes)
        nn.init.zeros_(self.norm.weight)


class _Unpooled(_MadeUp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, :, None, None].expand(-1, -1, 2, 2)


class _Tied(_MadeUp):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(12, 3, bias=False)
        self.other.weight = cast(nn.Linear, self.fc).weight


def test_made_up_architecture_that_keeps_the_contract_works() -> None:
    model, x = _MadeUp(), torch.rand(2, 3, 2, 2)
    assert torch.equal(headkit.classify(model, headkit.features(model, x)), model(x))
    assert find_classifier(with_classes(model, 5)).num_classes == 5


def with_classes(model: nn.Module, num_classes: int) -> nn.Module:
    replace_classifier(model, num_classes)
    return model


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_Elsewhere, "returns a Linear that is not part of the model"),
        (_WrongModule, r"returns norm, but reset_classifier creates fc\.bias, fc\.weight"),
        (_Unused, "its classifier fc is not called in a forward pass"),
        (_Scaled, "changes the logits after the classifier"),
        (_Twice, "must call its classifier fc exactly once per forward pass, with a single tensor"),
        (_Idle, r"reset_classifier\(3\) of made_up \(_Idle\) creates no tensor"),
        (
            _Unpooled,
            r"have the shape \[2, 3, 2, 2\], expected \[batch, channels\], so they are not pooled: "
            "create the model with a global_pool other than ''",
        ),
        (_Tied, "shares tensors with the backbone"),
    ],
)
def test_made_up_architecture_that_breaks_the_contract_is_an_error(
    broken: type[_MadeUp], message: str
) -> None:
    with pytest.raises(headkit.ContractError, match=message):
        headkit.features(broken(), torch.rand(2, 3, 2, 2))


def test_reset_that_changes_the_backbone_is_an_error() -> None:
    with pytest.raises(headkit.ContractError, match=r"changes the backbone's norm\.weight"):
        replace_classifier(_Meddling(), 2)


def test_backbone_without_a_classifier_has_the_same_features() -> None:
    with_own = random_backbone()
    without = timm.create_model("test_resnet", num_classes=0)
    without.load_state_dict(with_own.state_dict(), strict=False)
    x = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        expected = with_own.forward_head(with_own.forward_features(x), pre_logits=True)
        torch.testing.assert_close(headkit.features(without.eval(), x), expected, rtol=0, atol=0)
