"""The classifier of a file is kept where it fits, and said to be left out where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

import headkit
from tests.backbones import SHORT
from tests.checkpoints import (
    assert_backbone_comes_from,
    prefixed,
    save,
    trained,
)

KEEPING = [
    *[("test_resnet", {}), ("test_vit", {}), ("test_convnext", {}), ("test_efficientnet", {})],
    *[("deit_tiny_distilled_patch16_224", {"embed_dim": 8, "depth": 1, "num_heads": 2})],
    *[(name, kwargs) for name, kwargs in SHORT.items()],
    ("vit_small_patch14_dinov2", {"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 28}),
]


@pytest.mark.parametrize(("architecture", "arguments"), KEEPING, ids=[n for n, _ in KEEPING])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_own_number_of_classes_keeps_the_classifier_and_saves_it(
    architecture: str, arguments: dict[str, Any], num_classes: int | None, tmp_path: Path
) -> None:
    source = trained(architecture, **arguments)
    path = save({"state_dict": prefixed(source.state_dict(), "model.")}, tmp_path / "ft.ckpt")
    model: Any = headkit.load_backbone(architecture, path, num_classes=num_classes, **arguments)
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    head = headkit.save_head(model, tmp_path / "head.safetensors", ["a", "b", "c"])
    for name, array in head.tensors.items():
        np.testing.assert_array_equal(array, source.state_dict()[name].numpy())
    fresh = headkit.load_backbone(architecture, path, **arguments)
    again = headkit.attach(fresh, tmp_path / "head.safetensors")
    x = torch.rand(1, *head.pretrained_cfg["input_size"])
    assert torch.equal(again(x), source(x))


def test_another_number_of_classes_leaves_the_classifier_out_and_cannot_be_saved_untrained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = trained(num_classes=7).state_dict()
    path = save(state, tmp_path / "ft.pth")
    model: Any = headkit.load_backbone("test_resnet", path, num_classes=3)
    assert_backbone_comes_from(model, state)
    assert model.fc.weight.shape == (3, 96)
    assert "left out its classifier of 7 classes (fc.weight, fc.bias)" in caplog.text
    assert "the classifier of 3 classes is random until it is trained" in caplog.text
    out = tmp_path / "head.safetensors"
    with pytest.raises(headkit.ContractError, match=r"is random: left out .* 7 classes"):
        headkit.save_head(model, out, ["a", "b", "c"])
    with pytest.raises(headkit.ContractError, match="is random"):
        headkit.export(model, tmp_path / "m.onnx")
    assert not out.exists()
    with torch.no_grad():
        model.fc.bias += 1  # training
    assert headkit.save_head(model, out, ["a", "b", "c"]).num_classes == 3


def test_file_without_a_classifier_gives_a_model_without_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {n: t for n, t in trained().state_dict().items() if not n.startswith("fc.")}
    path = save(state, tmp_path / "backbone.safetensors")
    model: Any = headkit.load_backbone("test_resnet", path)
    assert model.num_classes == 0
    assert set(model.state_dict()) == set(state)
    assert "it has no classifier; the model has no classes" in caplog.text
    with pytest.raises(headkit.ContractError, match="has no classifier"):
        headkit.head_of(model)
    with_three = headkit.load_backbone("test_resnet", path, num_classes=3)
    with pytest.raises(headkit.ContractError, match="is random: the file has no classifier"):
        headkit.head_of(with_three)
    assert headkit.head_of(headkit.adapt(with_three, 3)).num_classes == 3


def test_hand_made_classifier_in_a_file_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source: Any = trained()
    source.fc = nn.Sequential(nn.Linear(96, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    path = save(source.state_dict(), tmp_path / "ft.pth")
    model: Any = headkit.load_backbone("test_resnet", path)
    assert model.num_classes == 0
    assert_backbone_comes_from(model, source.state_dict())
    assert "left out its classifier (fc.0.weight, fc.0.bias, fc.3.weight, …)" in caplog.text


def test_timms_number_of_classes_of_its_own_weights_is_kept_or_known_to_be_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that timm itself publishes, here from a file that stands in for the download."""
    state = trained(num_classes=1000).state_dict()
    path = save(state, tmp_path / "hub.pth")
    monkeypatch.setattr("timm.models._builder._resolve_pretrained_source", lambda _: ("file", path))
    assert_backbone_comes_from(headkit.load_backbone("test_resnet"), state)
    model = headkit.load_backbone("test_resnet", num_classes=3)
    with pytest.raises(headkit.ContractError, match=r"is random: timm's weights have 1000 classes"):
        headkit.head_of(model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that timm saved: a test_vit for 96 x 96 pixels with three labels."""
    model = trained("test_vit", img_size=96)
    labels = ["cat", "dog", "fox"]
    config = {"label_names": labels, "label_descriptions": {n: f"a {n}" for n in labels}}
    save_for_hf(model, tmp_path / "vit", model_config=config, safe_serialization=True)
    return tmp_path / "vit"


def test_folder_of_timm_keeps_its_classifier_and_labels(folder: Path, tmp_path: Path) -> None:
    expected = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    model = headkit.load_backbone(f"local-dir:{folder}")
    x = torch.rand(1, 3, 96, 96)
    assert torch.equal(model(x), expected(x))
    head = headkit.save_head(model, tmp_path / "head.safetensors")
    assert head.label_names == ("cat", "dog", "fox")
    assert head.backbone.source == "folder:vit"
    assert head.pretrained_cfg["input_size"] == [3, 96, 96]
    exported = headkit.export(model, tmp_path / "m.onnx").info.heads[0]
    assert list(exported.label_names or ()) == [
        "cat",
        "dog",
        "fox",
    ]


def test_new_classifier_does_not_inherit_the_labels_of_a_folder(folder: Path) -> None:
    model: Any = headkit.load_backbone(f"local-dir:{folder}")
    assert headkit.head_of(headkit.adapt(model, 3)).label_names is None
    model = headkit.load_backbone(f"local-dir:{folder}")
    model.reset_classifier(3)
    assert headkit.head_of(model).label_names is None
    assert headkit.head_of(headkit.load_backbone(f"local-dir:{folder}"), "xyz").label_names == (
        "x",
        "y",
        "z",
    )


def test_trained_classifier_keeps_the_labels_of_a_folder(folder: Path) -> None:
    model: Any = headkit.load_backbone(f"local-dir:{folder}")
    with torch.no_grad():
        model.head.weight += 1
    assert headkit.head_of(model).label_names == ("cat", "dog", "fox")


def test_head_on_a_folder_is_exported_with_the_folder(folder: Path, tmp_path: Path) -> None:
    model = headkit.adapt(headkit.load_backbone(f"local-dir:{folder}"), 2)
    path = tmp_path / "head.safetensors"
    headkit.save_head(model, path, ["no", "yes"])
    out = tmp_path / "model.onnx"
    with pytest.raises(
        headkit.WeightsError, match=r"came from the folder vit.*--backbone local-dir:FOLDER"
    ):
        headkit.export(path, out)
    headkit.export(path, out, backbone=f"local-dir:{folder}")
    x = torch.rand(2, 3, 96, 96)
    logits = headkit.Predictor(out).logits(x.numpy())
    np.testing.assert_allclose(logits, model(x).detach().numpy(), atol=1e-4)
    headkit.export(path, tmp_path / "again.onnx", weights=folder)
    headkit.export(path, tmp_path / "file.onnx", weights=folder / "model.safetensors")


def test_folder_whose_weights_are_of_another_architecture_is_refused(folder: Path) -> None:
    save(trained("test_resnet").state_dict(), folder / "model.safetensors")
    with pytest.raises(headkit.WeightsError, match=r"do not fit .*missing"):
        headkit.load_backbone(f"local-dir:{folder}")


def test_folder_with_labels_of_another_number_of_classes_names_none(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["label_names"] = ["only", "two"]
    config.pop("label_descriptions")
    (folder / "config.json").write_text(json.dumps(config))
    assert headkit.head_of(headkit.load_backbone(f"local-dir:{folder}")).label_names is None


@pytest.mark.parametrize("form", ["missing", "without config", "path alone", "repository alone"])
def test_place_that_cannot_be_loaded_is_an_error_that_says_what_to_write(
    form: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    names = {
        "missing": (f"local-dir:{tmp_path / 'none'}", "has no config.json"),
        "without config": (f"local-dir:{tmp_path / 'empty'}", "has no config.json"),
        "path alone": (str(folder), f"write local-dir:{folder}"),
        "repository alone": ("user/model", "write hf-hub:user/model"),
    }
    name, message = names[form]
    with pytest.raises(headkit.UnknownArchitecture, match=message):
        headkit.load_backbone(name)


def test_repository_on_the_hub_keeps_labels_and_is_never_fetched_for_a_head(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def download(repo_id: str, filename: str, **_: object) -> str:
        fetched.append(f"{repo_id}/{filename}")
        return str(folder / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    model = headkit.load_backbone("hf-hub:someone/vit")
    head = headkit.save_head(model, tmp_path / "head.safetensors")
    assert head.label_names == ("cat", "dog", "fox")
    assert head.backbone.source == "hub:someone/vit"
    fetched.clear()
    with pytest.raises(headkit.WeightsError, match=r"someone/vit.*--backbone hf-hub:someone/vit"):
        headkit.load_backbone_of(head)
    assert not fetched
    again = headkit.load_backbone_of(head, backbone="hf-hub:someone/vit")
    x = torch.rand(1, 3, 96, 96)
    assert torch.equal(headkit.attach(again, head)(x), model(x))
    assert "someone/vit/model.safetensors" in fetched
