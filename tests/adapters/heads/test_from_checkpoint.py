"""A head is taken out of the checkpoint of a fully trained model, with its labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

import headkit
from tests.checkpoints import prefixed, save, trained

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_convnext"])
def test_command_extracts_a_head_that_gives_the_logits_of_the_checkpoint(
    architecture: str, run: Run, tmp_path: Path
) -> None:
    source = trained(architecture)
    checkpoint = {"state_dict": prefixed(source.state_dict(), "model."), "epoch": 9}
    path = save(checkpoint, tmp_path / "lightning.ckpt")
    out = tmp_path / "head.safetensors"
    arguments = ("--backbone", architecture, "--out", out, "--labels", "cat, dog,fox", "--json")
    status, printed, err = run("heads", "extract", path, *arguments)
    assert status == 0, err
    assert json.loads(printed)["label_names"] == ["cat", "dog", "fox"]
    assert "read the tensors below state_dict.model" in err
    head = headkit.Head.load(out)
    for name, array in head.tensors.items():
        np.testing.assert_array_equal(array, source.state_dict()[name].numpy())
    model = headkit.attach(headkit.load_backbone_of(head, path), head)
    x = torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(model(x), source(x))
    assert out.stat().st_size < path.stat().st_size / 20


def test_extracted_head_is_exported_with_the_checkpoint(run: Run, tmp_path: Path) -> None:
    source = trained()
    path = save(source.state_dict(), tmp_path / "ft.pth")
    out, model = tmp_path / "head.safetensors", tmp_path / "m.onnx"
    assert run("heads", "extract", path, "--backbone", "test_resnet", "--out", out)[0] == 0
    status, _, err = run("export", out, "--out", model)
    assert status == 2
    assert "--weights FILE" in err
    assert run("export", out, "--out", model, "--weights", path)[0] == 0
    x = torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        expected = source(x).numpy()
    np.testing.assert_allclose(headkit.Predictor(model).logits(x.numpy()), expected, atol=1e-4)


@pytest.mark.parametrize("way", ["folder", "local-dir", "with backbone"])
def test_labels_of_a_folder_come_along(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    labels = {"label_names": ["cat", "dog", "fox"]}
    source = trained("test_vit", img_size=96)
    save_for_hf(source, folder, model_config=labels, safe_serialization=True)
    head = {
        "folder": lambda: headkit.extract_head(folder),
        "local-dir": lambda: headkit.extract_head(f"local-dir:{folder}"),
        "with backbone": lambda: headkit.extract_head(folder, "test_vit", img_size=96),
    }[way]()
    assert head.label_names == ("cat", "dog", "fox")
    assert (head.architecture, head.backbone.source) == ("test_vit", "folder:vit")
    model = headkit.attach(headkit.load_backbone_of(head, folder), head)
    x = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(model(x), source(x))


@pytest.mark.parametrize(
    "labels",
    [
        {"class_names": ["a", "b", "c"]},
        {"classes": ("a", "b", "c")},
        {"class_to_idx": {"b": 1, "c": 2, "a": 0}},
        {"id2label": {2: "c", 0: "a", 1: "b"}},
    ],
)
def test_labels_beside_the_tensors_come_along(labels: dict[str, Any], tmp_path: Path) -> None:
    path = save({"model": trained().state_dict(), **labels}, tmp_path / "x.pth")
    assert headkit.extract_head(path, "test_resnet").label_names == ("a", "b", "c")
    assert headkit.extract_head(path, "test_resnet", "xyz").label_names == ("x", "y", "z")


def test_labels_of_another_number_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save({"model": trained().state_dict(), "classes": ["a", "b"]}, tmp_path / "x.pth")
    assert headkit.extract_head(path, "test_resnet").label_names is None
    assert "left out 2 names for 3 classes" in caplog.text
    with pytest.raises(headkit.HeadFormatError, match="2 label names, expected 3"):
        headkit.extract_head(path, "test_resnet", ["a", "b"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", "cat\ndog\n\nfox\n"),
        ("labels.txt", "\ufeffcat\r\ndog\r\nfox"),
        ("labels.json", '["cat", "dog", "fox"]'),
        ("labels.json", '{"1": "dog", "0": "cat", "2": "fox"}'),
    ],
)
def test_labels_come_from_a_file(name: str, content: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    path, out = save(trained().state_dict(), tmp_path / "x.pth"), tmp_path / "head.safetensors"
    arguments = ("--backbone", "test_resnet", "--out", out, "--labels", tmp_path / name)
    assert run("heads", "extract", path, *arguments)[0] == 0
    assert headkit.Head.load(out).label_names == ("cat", "dog", "fox")


@pytest.mark.parametrize("kind", ["linear", "mlp", "cosine"])
def test_head_of_every_kind_is_extracted_from_the_state_of_an_adapted_model(
    kind: Any, tmp_path: Path
) -> None:
    state = trained("test_vit").state_dict()
    model = headkit.adapt("test_vit", 4, kind, weights=save(state, tmp_path / "base.pth"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    path = save(model.state_dict(), tmp_path / "adapted.pth")
    head = headkit.extract_head(path, "test_vit")
    expected = headkit.head_of(model)
    assert (head.num_classes, head.backbone.fingerprint) == (4, expected.backbone.fingerprint)
    for name, array in expected.tensors.items():
        np.testing.assert_array_equal(head.tensors[name], array)


def test_classifier_of_an_unknown_kind_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model: Any = trained()
    model.fc = nn.Sequential(nn.ReLU(), nn.Linear(96, 3))
    path = save(model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(headkit.WeightsError, match=r"fc\.1\.weight.*unknown kind.*save_head"):
        headkit.extract_head(path, "test_resnet")


def test_checkpoint_without_a_classifier_has_no_head(run: Run, tmp_path: Path) -> None:
    state = {n: t for n, t in trained().state_dict().items() if not n.startswith("fc.")}
    path, out = save(state, tmp_path / "x.pth"), tmp_path / "head.safetensors"
    status, printed, err = run("heads", "extract", path, "--backbone", "test_resnet", "--out", out)
    assert (status, printed) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert "has no classifier, so there is no head to extract" in err
    assert not out.exists()


def test_architecture_must_be_named_for_a_file(tmp_path: Path) -> None:
    path = save(trained().state_dict(), tmp_path / "x.pth")
    with pytest.raises(headkit.WeightsError, match="--backbone NAME"):
        headkit.extract_head(path)


def test_plain_timm_model_of_the_checkpoint_has_the_same_head(tmp_path: Path) -> None:
    """The independent reference: the classifier of the model into which plain timm loads it."""
    path = save(trained().state_dict(), tmp_path / "x.pth")
    plain: Any = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(path))
    head = headkit.extract_head(path, "test_resnet")
    np.testing.assert_array_equal(head.tensors["fc.weight"], plain.fc.weight.detach().numpy())
