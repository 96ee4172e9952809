"""timm's own conversions of a file are used where the user asks for them, and they are said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import headkit
from tests.checkpoints import (
    assert_backbone_comes_from,
    prefixed,
    save,
    trained,
)


def by_timm(architecture: str, state: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
    """The tensors of the model that plain timm makes of a state dict."""
    overlay = {"state_dict": state, "num_classes": 3, "custom_load": False}
    model = timm.create_model(
        architecture, pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay, **kwargs
    )
    return dict(model.state_dict())


@pytest.mark.parametrize(
    ("architecture", "arguments", "changed"),
    [
        ("test_vit", {"img_size": 96}, "pos_embed"),
        ("test_vit", {"img_size": (96, 192)}, "pos_embed"),
        ("test_vit", {"in_chans": 1}, "patch_embed.proj.weight"),
        ("test_vit", {"in_chans": 4, "img_size": 64}, "patch_embed.proj.weight"),
        ("test_resnet", {"in_chans": 1}, "conv1.0.weight"),
        ("test_efficientnet", {"in_chans": 6}, "conv_stem.weight"),
        ("test_convnext", {"in_chans": 1}, "stem.0.weight"),
    ],
)
def test_another_size_or_number_of_channels_equals_plain_timm(
    architecture: str,
    arguments: dict[str, Any],
    changed: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = trained(architecture).state_dict()
    path = save({"state_dict": prefixed(state, "model.")}, tmp_path / "x.ckpt")
    model = headkit.load_backbone(architecture, path, **arguments)
    expected = by_timm(architecture, dict(state), **arguments)
    assert {n for n, t in state.items() if t.shape != expected[n].shape} >= {changed}
    assert_backbone_comes_from(model, expected)
    assert f"timm converted {changed} from {list(state[changed].shape)}" in caplog.text


@pytest.mark.parametrize(
    ("architecture", "trained_with", "name"),
    [
        ("test_vit", {"img_size": 96}, "pos_embed"),
        ("test_resnet", {"in_chans": 1}, r"conv1\.0\.weight"),
        ("vit_tiny_patch16_224", {"patch_size": 32, "img_size": 448}, r"patch_embed\.proj\.weight"),
    ],
)
def test_other_shapes_are_refused_unless_the_user_asks_for_a_conversion(
    architecture: str, trained_with: dict[str, Any], name: str, tmp_path: Path
) -> None:
    state = trained(architecture, **trained_with).state_dict()
    path = save(state, tmp_path / "x.pth")
    with pytest.raises(headkit.WeightsError, match=rf"{name} has the shape .*img_size"):
        headkit.load_backbone(architecture, path)
    assert_backbone_comes_from(headkit.load_backbone(architecture, path, **trained_with), state)


def test_channels_that_timm_cannot_convert_are_refused(tmp_path: Path) -> None:
    """timm would leave the first convolution random and log a line."""
    state = trained("test_resnet", in_chans=4).state_dict()
    with pytest.raises(headkit.WeightsError, match=r"conv1\.0\.weight has the shape"):
        headkit.load_backbone("test_resnet", save(state, tmp_path / "x.pth"), in_chans=2)


def test_names_of_another_codebase_are_converted_by_timm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Facebook's names for ConvNeXt, which timm's checkpoint filter renames."""
    state = trained("test_convnext").state_dict()
    original = {}
    for name, tensor in state.items():
        new = name.replace("stem.", "downsample_layers.0.").replace("head.fc.", "head.")
        new = new.replace("head.norm.", "norm.").replace("conv_dw", "dwconv")
        new = new.replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        if ".downsample." in new:
            _, number, _, layer, kind = new.split(".")
            new = f"downsample_layers.{number}.{layer}.{kind}"
        new = new.replace(".blocks.", ".")
        original[new] = tensor
    assert not set(original) & set(state)
    path = save({"model": original}, tmp_path / "convnext.pth")
    model = headkit.load_backbone("test_convnext", path)
    assert_backbone_comes_from(model, by_timm("test_convnext", dict(original)))
    assert_backbone_comes_from(model, state)
    assert "timm converted its tensors to the names of the architecture" in caplog.text
    del original["downsample_layers.0.0.weight"]
    with pytest.raises(headkit.WeightsError, match="missing"):
        headkit.load_backbone("test_convnext", save({"model": original}, tmp_path / "lost.pth"))


def test_swin_of_an_older_timm_is_loaded(tmp_path: Path) -> None:
    """It saved tensors that the model computes itself, and called its classifier ``head``."""
    name = "swin_tiny_patch4_window7_224"
    source = trained(name, depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 1, 1, 1))
    state = source.state_dict()
    derived = {n: b for n, b in source.named_buffers() if n not in state}
    assert any("relative_position_index" in n for n in derived)
    path = save({**state, **derived}, tmp_path / "swin.pth")
    arguments: dict[str, Any] = {
        "depths": (1, 1, 1, 1),
        "embed_dim": 24,
        "num_heads": (1, 1, 1, 1),
    }
    assert_backbone_comes_from(headkit.load_backbone(name, path, **arguments), state)


def test_old_checkpoint_without_counters_of_batches_is_loaded(tmp_path: Path) -> None:
    state = trained().state_dict()
    old = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    model = headkit.load_backbone("test_resnet", save(old, tmp_path / "old.pth"))
    for name, tensor in model.state_dict().items():
        expected = old.get(name)
        assert torch.equal(tensor, torch.tensor(0) if expected is None else expected), name


@pytest.mark.parametrize("classifier", ["three classes", "none"])
def test_remap_takes_a_file_with_any_classifier_or_none(classifier: str, tmp_path: Path) -> None:
    state = trained().state_dict()
    renamed = {
        f"layer{number}": tensor
        for number, (name, tensor) in enumerate(state.items())
        if classifier != "none" or not name.startswith("fc.")
    }
    path = save({"state_dict": renamed, "epoch": 1}, tmp_path / "other.pth")
    with pytest.raises(headkit.WeightsError, match="--remap"):
        headkit.load_backbone("test_resnet", path)
    model: Any = headkit.load_backbone("test_resnet", path, remap=True)
    assert_backbone_comes_from(model, state)
    assert model.num_classes == (3 if classifier != "none" else 0)
    if classifier != "none":
        assert torch.equal(model.fc.weight, state["fc.weight"])


def test_remap_refuses_a_file_without_an_order(tmp_path: Path) -> None:
    path = save(trained().state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(headkit.WeightsError, match=r"does not keep the order.*torch\.save"):
        headkit.load_backbone("test_resnet", path, remap=True)
