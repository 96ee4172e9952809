"""The file of another architecture is refused, or has exactly the tensors that are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import headkit
from tests.checkpoints import (
    assert_backbone_comes_from,
    prefixed,
    save,
    trained,
)

FILES = (
    *("test_resnet", "test_vit", "test_vit2", "test_vit3", "test_vit4", "test_efficientnet"),
    *("test_efficientnet_gn", "test_efficientnet_ln", "test_efficientnet_evos", "test_convnext"),
    *("test_convnext2", "test_convnext3", "test_byobnet", "test_nfnet", "test_mambaout"),
    *("resnet10t", "resnet14t", "resnet18", "resnet18d", "resnet34", "seresnet18"),
    *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"),
    *("mobilenetv3_small_050", "lcnet_035", "dla46_c", "dla46x_c"),
)
"""Architectures whose files are loaded into each of ``INTO``: most pairs are of different ones."""
INTO = (
    *("test_resnet", "test_vit"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("resnet18", "vit_tiny_patch16_224", "dla46_c")
    ),
)


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, nn.Module]]:
    made: dict[str, tuple[Path, nn.Module]] = {}
    folder = tmp_path_factory.mktemp("files")

    def make(name: str) -> tuple[Path, nn.Module]:
        if name not in made:
            model = trained(name)
            state = {"state_dict": prefixed(model.state_dict(), "model.")}
            made[name] = save(state, folder / f"{name}.pth"), model
        return made[name]

    return make


@pytest.mark.parametrize("into", INTO)
@pytest.mark.parametrize("num_classes", [None, 5])
def test_files_of_other_architectures_are_refused_or_loaded_exactly(
    into: str, num_classes: int | None, file_of: Callable[[str], tuple[Path, nn.Module]]
) -> None:
    accepted, refusals = list[str](), list[str]()
    for name in FILES:
        path, source = file_of(name)
        try:
            model = headkit.load_backbone(into, path, num_classes=num_classes)
        except headkit.WeightsError as error:
            refusals.append(str(error))
            continue
        accepted.append(name)
        assert_backbone_comes_from(model, source.state_dict())
    assert all(f"do not fit {into}" in refusal for refusal in refusals)
    same = {"vit_tiny_patch16_224": ["vit_tiny_patch16_224", "deit_tiny_patch16_224"]}
    assert accepted == same.get(into, [into])


def test_plain_timm_accepts_them_in_silence(
    file_of: Callable[[str], tuple[Path, nn.Module]],
) -> None:
    """The test above can fail: with another number of classes timm ignores every name."""
    state = torch.load(file_of("test_vit")[0])["state_dict"]
    overlay = {"state_dict": state}
    model: Any = timm.create_model(
        "test_resnet", pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay
    )
    assert not set(model.state_dict()) & set(state)


def test_larger_model_of_the_same_family_is_refused(
    file_of: Callable[[str], tuple[Path, nn.Module]],
) -> None:
    """The file of a ResNet-34 has every name and shape of a ResNet-18."""
    small, large = trained("resnet18").state_dict(), file_of("resnet34")[1].state_dict()
    assert all(large[name].shape == tensor.shape for name, tensor in small.items())
    with pytest.raises(headkit.WeightsError, match=r"found \d+ others: layer1\.2\.conv1\.weight"):
        headkit.load_backbone("resnet18", file_of("resnet34")[0])


@pytest.mark.parametrize("into", ["test_resnet", "test_vit"])
def test_message_names_what_is_missing_what_was_found_and_what_to_do(
    into: str, file_of: Callable[[str], tuple[Path, nn.Module]]
) -> None:
    with pytest.raises(headkit.WeightsError) as error:
        headkit.load_backbone(into, file_of("test_convnext")[0])
    message = str(error.value)
    assert "test_convnext.pth" in message
    assert "of the backbone are missing" in message
    assert "found" in message
    assert "model.stem.0.weight" in message
    assert "--remap" in message


def test_integers_are_no_weights(tmp_path: Path) -> None:
    state = {n: t.round().to(torch.int8) for n, t in trained().state_dict().items()}
    with pytest.raises(headkit.WeightsError, match="integers"):
        headkit.load_backbone("test_resnet", save(state, tmp_path / "int8.pth"))


def test_half_precision_is_loaded_as_torch_converts_it(tmp_path: Path) -> None:
    state = trained().state_dict()
    half = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    model = headkit.load_backbone("test_resnet", save(half, tmp_path / "half.pth"))
    expected = {n: t.float() if t.is_floating_point() else t for n, t in half.items()}
    assert_backbone_comes_from(model, expected)
