"""A head file that names a file or a folder of the machine as its backbone.

At 64f666f, ``headkit export`` opened whatever ``source: "file:../secret.pth"`` named, and
``architecture: "local-dir:…"`` made timm open the folder. Now the architecture is a plain name, a
source is text to show, and whoever runs the command has to pass the file.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.numpy
import timm
import torch

import headkit


@pytest.fixture
def genuine(tmp_path: Path) -> Path:
    """A head whose backbone lies beside it, in a file and in a folder that timm reads."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet")
    torch.save(model.state_dict(), tmp_path / "secret.pth")
    folder = tmp_path / "folder"
    folder.mkdir()
    config = {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 64, 64]}}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    model.reset_classifier(3)
    path = tmp_path / "genuine.safetensors"
    headkit.save_head(model, path)
    return path


def change(path: Path, out: Path, **changes: Any) -> Path:
    with safetensors.safe_open(path, "np") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    description = json.loads(metadata["head"])
    source = changes.pop("source", None)
    if source is not None:
        description["backbone"].update(source=source, tag="")
    metadata["head"] = json.dumps({**description, **changes})
    safetensors.numpy.save_file(tensors, out, metadata)
    return out


@pytest.mark.parametrize("source", ["file:../secret.pth", "file:secret.pth", "file:{}/secret.pth"])
def test_no_file_is_opened_because_a_source_names_it(
    genuine: Path, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "working"
    folder.mkdir()
    monkeypatch.chdir(folder if ".." in source else tmp_path)
    path = change(genuine, tmp_path / "x.safetensors", source=source.format(tmp_path))
    with pytest.raises(headkit.HeadkitError):
        headkit.export(path, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_no_folder_is_opened_because_an_architecture_names_it(
    genuine: Path, tmp_path: Path
) -> None:
    architecture = f"local-dir:{tmp_path / 'folder'}"
    changes = {"architecture": architecture, "source": architecture}
    path = change(genuine, tmp_path / "x.safetensors", **changes)
    with pytest.raises(headkit.HeadFormatError, match="architecture"):
        headkit.export(path, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_user_may_pass_the_same_file(genuine: Path, tmp_path: Path) -> None:
    headkit.export(genuine, tmp_path / "x.onnx", weights=tmp_path / "secret.pth")
    assert (tmp_path / "x.onnx").exists()
