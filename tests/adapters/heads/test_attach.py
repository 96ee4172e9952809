import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import headkit
from tests.backbones import SMALL, random_backbone, stores_arguments

PLAIN = """
import sys
sys.modules["headkit"] = None  # an import of it fails
import timm, torch
from safetensors.torch import load_file
weights, head, out = sys.argv[1:]
model = timm.create_model("test_resnet").eval()
model.load_state_dict(load_file(weights))
model.reset_classifier(3)
model.load_state_dict(load_file(head), strict=False)
torch.manual_seed(1)
with torch.inference_mode():
    torch.save(model(torch.randn(2, 3, 160, 160)), out)
"""


def test_plain_timm_and_safetensors_load_a_head_bit_for_bit(
    small: nn.Module, small_weights: Path, tmp_path: Path
) -> None:
    model = headkit.adapt(small, 3)
    headkit.save_head(model, tmp_path / "head.safetensors", ["a", "b", "c"])
    arguments = [small_weights, tmp_path / "head.safetensors", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", PLAIN, *map(str, arguments)], check=True)
    torch.manual_seed(1)
    with torch.inference_mode():
        expected = model(torch.randn(2, 3, 160, 160))
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


@stores_arguments
def test_head_can_be_taken_from_a_model_that_timm_made_and_a_user_trained() -> None:
    model = timm.create_model(SMALL, num_classes=4)
    head = headkit.head_of(model, "abcd", metrics={"accuracy": 0.5}, notes="by hand")
    assert set(head.tensors) == {"fc.weight", "fc.bias"}
    assert (head.architecture, head.num_classes, head.num_features) == (SMALL, 4, 96)
    assert head.label_names == ("a", "b", "c", "d")
    assert head.backbone.source == "unknown"
    assert head.pretrained_cfg["input_size"] == [3, 160, 160]
    assert head.backbone.parameters == sum(p.numel() for p in model.parameters()) - 4 * 97


@stores_arguments
def test_half_precision_heads_survive(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = timm.create_model(SMALL, num_classes=4).to(dtype)
        headkit.save_head(model, tmp_path / "head.safetensors")
        fresh = timm.create_model(SMALL).to(dtype)
        headkit.attach(fresh, tmp_path / "head.safetensors", force=True)
        assert torch.equal(fresh.fc.weight, model.fc.weight)


def test_head_for_other_weights_is_refused_and_the_model_stays(tmp_path: Path) -> None:
    headkit.save_head(headkit.adapt(random_backbone(seed=0), 3), tmp_path / "head.safetensors")
    other = random_backbone(seed=1)
    head = headkit.Head.load(tmp_path / "head.safetensors")
    before = other(torch.ones(1, 3, 160, 160))
    found = headkit.head_of(other).backbone.fingerprint
    with pytest.raises(headkit.BackboneMismatch) as error:
        headkit.attach(other, head)
    assert head.backbone.fingerprint[:12] in str(error.value)
    assert found[:12] in str(error.value)
    assert torch.equal(other(torch.ones(1, 3, 160, 160)), before)
    assert headkit.attach(other, head, force=True)(torch.ones(1, 3, 160, 160)).shape == (1, 3)


def test_head_for_another_architecture_is_refused_by_name(small: nn.Module) -> None:
    head = headkit.head_of(headkit.adapt(random_backbone("test_vit"), 3))
    with pytest.raises(headkit.BackboneMismatch, match="test_vit, but the backbone is test_resnet"):
        headkit.attach(small, head, force=True)


def test_head_with_other_tensors_is_refused_and_the_model_stays(small: nn.Module) -> None:
    head = headkit.head_of(headkit.adapt(random_backbone(), 3))
    before = small(torch.ones(1, 3, 160, 160))
    with pytest.raises(headkit.BackboneMismatch, match=r"the head's tensors have the shapes"):
        headkit.attach(small, head.with_changes(tensors={"fc.weight": head.tensors["fc.weight"]}))
    assert torch.equal(small(torch.ones(1, 3, 160, 160)), before)


def test_head_remembers_the_arguments_of_its_backbone(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"img_size": 96, "global_pool": "avg"}
    torch.manual_seed(0)
    weights = tmp_path / "w.safetensors"
    save_file(
        headkit.load_backbone("test_vit", pretrained=False, **arguments).state_dict(), weights
    )
    model = headkit.adapt("test_vit", 2, weights=weights, **arguments)
    head = headkit.save_head(model, tmp_path / "head.safetensors")
    assert head.pretrained_cfg["input_size"] == [3, 96, 96]
    assert head.global_pool == "avg"
    again = headkit.load_backbone_of(headkit.Head.load(tmp_path / "head.safetensors"), weights)
    x = torch.rand(1, 3, 96, 96)
    assert torch.equal(headkit.attach(again, head)(x), model(x))


def test_unknown_source_of_the_backbone_is_reported() -> None:
    model = headkit.adapt(random_backbone(), 2)
    head = headkit.head_of(model)
    with pytest.raises(headkit.WeightsError, match="random"):
        headkit.load_backbone_of(head)


def test_wrong_number_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes is 0"):
        headkit.adapt(SMALL, 0, pretrained=False)
    with pytest.raises(headkit.HeadFormatError, match="2 label names, expected 3"):
        headkit.head_of(headkit.adapt(random_backbone(), 3), ["a", "b"])
    with pytest.raises(headkit.ContractError, match="has no classifier"):
        headkit.head_of(timm.create_model(SMALL, num_classes=0))
