"""What timm tells of a model since 1.0.31 is known of an older timm's models too."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import timm.data
import torch

from headkit import ContractError, save_head
from headkit.adapters import compat
from headkit.adapters.backbone.classifier import find_classifier, replace_classifier
from headkit.adapters.backbone.load import create_model
from headkit.adapters.backbone.preprocessing import preprocessing

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("test_resnet", {}),
    ("test_resnet", {"in_chans": 1, "global_pool": "max", "num_classes": 3}),
    ("test_vit", {"img_size": 96, "global_pool": "avg"}),
    ("test_vit", {"dynamic_img_size": True}),
    ("test_efficientnet", {"drop_rate": 0.1}),
    ("test_convnext", {"global_pool": "avgmax"}),
    ("swin_tiny_patch4_window7_224", {"img_size": 192}),
    ("maxvit_pico_rw_256", {"img_size": 128}),
    ("mobilenetv4_conv_small", {}),
    ("eva02_tiny_patch14_224", {}),
]


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (timm.models, "get_model_args"),
        (timm.models, "get_model_input_config"),
        (timm.data, "resolve_input_data_config"),
    ):
        monkeypatch.delattr(module, name, raising=False)


@pytest.mark.skipif(not hasattr(timm.models, "get_model_args"), reason="timm is older itself")
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_same_as_from_timm_itself(
    name: str, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    model = create_model(name, pretrained=False, device="meta", **options)
    arguments, config = compat.model_arguments(model), compat.input_config(model)
    described = preprocessing(model)
    request.getfixturevalue("older")
    model = create_model(name, pretrained=False, device="meta", **options)
    shared = ("in_chans", "num_classes", "global_pool", "dynamic_img_size")
    again = compat.model_arguments(model)
    assert {k: again[k] for k in shared if k in options} == {
        k: arguments[k] for k in shared if k in options
    }
    assert again["num_classes"] == arguments["num_classes"]
    assert again.get("global_pool") == arguments.get("global_pool")
    assert set(again) <= set(arguments)
    found = compat.input_config(model)
    assert tuple(found["input_size"]) == tuple(config["input_size"])
    assert found["fixed_input_size"] == config["fixed_input_size"]
    assert preprocessing(model) == described


@pytest.mark.usefixtures("older")
def test_head_of_a_model_whose_arguments_nobody_kept_is_refused(tmp_path: Any) -> None:
    model = timm.create_model("test_resnet", num_classes=2).eval()
    with pytest.raises(ContractError, match=r"install timm>=1\.0\.31"):
        save_head(model, tmp_path / "head.safetensors", label_names=["a", "b"])


def test_reset_that_this_timm_cannot_do_names_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("gmlp_ti16_224", pretrained=False, num_classes=0, device="meta")

    def as_before(self: Any, num_classes: int) -> None:
        self.head = torch.nn.Linear(8, num_classes, device=self.head.weight.device)

    monkeypatch.setattr(type(model), "reset_classifier", as_before)
    with pytest.raises(ContractError, match=r"has no attribute 'weight'; install timm>=1\.0\.29"):
        find_classifier(model)


def test_pooling_stays_where_reset_classifier_has_a_default_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = create_model("test_resnet", pretrained=False, global_pool="max")
    current = type(model).reset_classifier  # type: ignore[attr-defined]

    def as_before(self: Any, num_classes: int, global_pool: str = "avg") -> None:
        current(self, num_classes, global_pool)

    monkeypatch.setattr(type(model), "reset_classifier", as_before)
    replace_classifier(model, 3)
    assert model.global_pool.pool_type == "max"  # type: ignore[union-attr]
    assert model.get_classifier().out_features == 3  # type: ignore[operator]
