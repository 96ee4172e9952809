"""Named pipes and devices with the name of an image, a table or a model.

At 64f666f, ``headkit predict`` and ``headkit fit`` opened a named pipe and waited for a writer
without end. Now only a regular file is opened.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import headkit
from tests.attacks.hostile_files import run_headkit

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither of them")
SECONDS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    headkit.export(headkit.adapt("test_resnet", 2, pretrained=False), path)
    return path


def make(path: Path, kind: str) -> Path:
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_predict_goes_on_after_a_file_that_is_none(model: Path, tmp_path: Path, kind: str) -> None:
    make(tmp_path / "hostile.jpg", kind)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "honest.png")
    out = tmp_path / "out.csv"
    done = run_headkit("predict", model, tmp_path, "--out", out, seconds=SECONDS)
    assert done.returncode != 0
    assert "not a regular file" in done.stderr + out.read_text()
    assert "honest.png" in out.read_text()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_fit_names_a_file_that_is_none(tmp_path: Path, kind: str) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((32, 32, 3), 60 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    make(tmp_path / "data" / "cat" / "hostile.png", kind)
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    command: tuple[object, ...] = (
        "fit",
        "--backbone",
        "test_resnet",
        "--weights",
        weights,
        "--no-cache",
    )
    command += ("--data", tmp_path / "data")
    try:
        done = run_headkit(*command, "--out", tmp_path / "x.safetensors", seconds=SECONDS)
    except subprocess.TimeoutExpired:
        pytest.fail("fit hangs")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["hostile.onnx", "hostile.safetensors"])
def test_models_and_heads_have_to_be_files(tmp_path: Path, kind: str, name: str) -> None:
    path = make(tmp_path / name, kind)
    done = run_headkit("info", path, seconds=SECONDS)
    assert done.returncode == 2
    assert "regular file" in done.stderr
