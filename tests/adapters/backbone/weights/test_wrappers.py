"""A state dict is found in whatever a training loop wraps around it, exactly or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import headkit
from tests.backbones import SMALL
from tests.checkpoints import (
    WRAPPERS,
    assert_backbone_comes_from,
    other,
    prefixed,
    save,
    trained,
)


@pytest.mark.parametrize("architecture", [SMALL, "test_vit"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_backbone_in_a_wrapper_is_the_one_of_the_file(
    wrapper: str, architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = trained(architecture)
    state = source.state_dict()
    path = save(WRAPPERS[wrapper](state), tmp_path / "checkpoint.pth")
    model = headkit.load_backbone(architecture, path)
    assert_backbone_comes_from(model, state)
    x = torch.rand(1, 3, 160, 160)
    if "encoder" in wrapper:
        assert model.num_classes == 0
        assert "projection.0.weight" in caplog.text
    else:  # the classifier of three classes was kept
        assert torch.equal(model(x), source(x))
    if wrapper in ("plain", "by module", "beside the epoch"):
        assert caplog.text == ""
    else:
        assert "checkpoint.pth: " in caplog.text


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.ckpt", "safetensors.pth"])
def test_format_of_the_file_is_told_by_its_content(name: str, tmp_path: Path) -> None:
    state = trained().state_dict()
    path = save(state, tmp_path / "x.safetensors")
    if name != "x.safetensors":
        path = tmp_path / name
        if name == "safetensors.pth":
            path.write_bytes((tmp_path / "x.safetensors").read_bytes())
        else:
            torch.save(state, path)
    assert_backbone_comes_from(headkit.load_backbone(SMALL, path), state)


def test_two_models_in_one_file_are_refused_by_name(tmp_path: Path) -> None:
    state = trained().state_dict()
    both = {"student": state, "teacher": other(state)}
    with pytest.raises(headkit.WeightsError, match=r"2 models \(student, teacher\)"):
        headkit.load_backbone(SMALL, save(both, tmp_path / "dino.pth"))


def test_averaged_weights_are_used_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = trained().state_dict()
    path = save({"model": other(state), "model_ema": state}, tmp_path / "ema.pth")
    assert_backbone_comes_from(headkit.load_backbone(SMALL, path), state)
    assert "used the averaged weights model_ema" in caplog.text
    assert "instead of model" in caplog.text


def test_timm_chooses_the_same_of_two_state_dicts(tmp_path: Path) -> None:
    """The independent reference for the choice above."""
    from timm.models import load_state_dict

    state = trained().state_dict()
    path = save({"model": other(state), "model_ema": state}, tmp_path / "ema.pth")
    chosen = load_state_dict(str(path))
    assert all(torch.equal(chosen[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "value",
    [{}, {"epoch": 3}, {"state_dict": {}}, [1, 2], "text"],
    ids=["empty", "no tensors", "empty state dict", "list", "text"],
)
def test_file_without_tensors_is_refused(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(headkit.WeightsError, match="it has no tensors"):
        headkit.load_backbone(SMALL, tmp_path / "x.pth")


def test_whole_pickled_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "model.pth")
    with pytest.raises(
        headkit.WeightsError, match=r"timm\.models\.resnet.*torch\.save\(model\.state_dict\(\)"
    ):
        headkit.load_backbone(SMALL, tmp_path / "model.pth")


def test_torchscript_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))  # type: ignore[no-untyped-call]
    traced.save(str(tmp_path / "model.pt"))
    with pytest.raises(headkit.WeightsError, match=r"TorchScript.*torch\.save\(torch\.jit\.load"):
        headkit.load_backbone(SMALL, tmp_path / "model.pt")


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>404</html>", b"PK\x03\x04cut off"])
def test_file_of_another_program_is_refused_in_plain_words(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(headkit.WeightsError, match=r"x\.pth: it is damaged, or neither"):
        headkit.load_backbone(SMALL, tmp_path / "x.pth")


def test_names_that_are_found_are_not_reported_as_missing(tmp_path: Path) -> None:
    state = {n.replace("layer", "stage"): t for n, t in trained().state_dict().items()}
    with pytest.raises(
        headkit.WeightsError, match=r"missing, such as layer1\..*found \d+ others: stage1\."
    ):
        headkit.load_backbone(SMALL, save(state, tmp_path / "x.pth"))


def test_checkpoint_of_timms_training_script_is_read(tmp_path: Path) -> None:
    from argparse import Namespace

    state = trained().state_dict()
    value = {"args": Namespace(lr=0.1), "state_dict": state, "arch": SMALL}
    model = headkit.load_backbone(SMALL, save(value, tmp_path / "last.pth.tar"))
    assert_backbone_comes_from(model, state)


def test_lost_tensor_is_named(tmp_path: Path) -> None:
    state = trained().state_dict()
    del state["layer2.0.conv1.weight"]
    path = save({"state_dict": prefixed(state, "model.")}, tmp_path / "x.ckpt")
    with pytest.raises(
        headkit.WeightsError,
        match=r"1 of \d+ tensors of the backbone are missing.*layer2\.0\.conv1",
    ):
        headkit.load_backbone(SMALL, path)


def test_additional_tensor_is_named(tmp_path: Path) -> None:
    state = {**trained().state_dict(), "layer1.7.conv1.weight": torch.ones(3)}
    with pytest.raises(
        headkit.WeightsError, match=r"found 1 other: layer1\.7\.conv1\.weight; remove"
    ):
        headkit.load_backbone(SMALL, save(state, tmp_path / "x.pth"))


def test_nothing_is_said_about_a_file_of_plain_timm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headkit")
    headkit.load_backbone(SMALL, save(trained().state_dict(), tmp_path / "x.safetensors"))
    assert caplog.text == ""


def test_global_random_numbers_are_those_of_plain_timm(tmp_path: Path) -> None:
    """Looking at an architecture draws nothing from the generator of the process."""
    import timm

    path = save({"state_dict": trained("test_vit", img_size=96).state_dict()}, tmp_path / "x.pth")
    torch.manual_seed(3)
    timm.create_model("test_vit", num_classes=3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    headkit.load_backbone("test_vit", path, img_size=160)
    assert torch.equal(torch.rand(3), expected)


def test_weights_in_the_arguments_of_timm_take_the_same_way(tmp_path: Path) -> None:
    state = trained().state_dict()
    path = save(prefixed(state, "model."), tmp_path / "x.pth")
    for arguments in (
        {"checkpoint_path": str(path)},
        {"pretrained_cfg_overlay": {"file": str(path)}},
        {"pretrained_cfg_overlay": {"state_dict": prefixed(state, "model.")}},
    ):
        assert_backbone_comes_from(headkit.load_backbone(SMALL, **arguments), state)


def test_folder_with_several_or_no_weights_files_is_refused_by_name(tmp_path: Path) -> None:
    state = trained().state_dict()
    folder = tmp_path / "run"
    path = save(state, folder / "epoch1.pth")
    assert_backbone_comes_from(headkit.load_backbone(SMALL, folder), state)
    save(state, folder / "epoch2.pth")
    with pytest.raises(headkit.WeightsError, match=r"2 weights files: epoch1\.pth, epoch2\.pth"):
        headkit.load_backbone(SMALL, folder)
    path.unlink()
    (folder / "epoch2.pth").unlink()
    with pytest.raises(headkit.WeightsError, match="0 weights files"):
        headkit.load_backbone(SMALL, folder)
