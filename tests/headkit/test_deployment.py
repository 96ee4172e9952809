"""A deployment without torch: a fresh virtual environment with the packages that README names."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import headkit
from tests.backbones import random_backbone
from tests.environments import pip_install

pytestmark = pytest.mark.network

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployment") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip_install(python, "onnxruntime", "numpy", "pillow")
    pip_install(python, "--no-deps", str(ROOT))
    return python


def test_exported_model_runs_without_torch(python: Path, shapes: Path, tmp_path: Path) -> None:
    model = random_backbone()
    head = headkit.fit(model, shapes, workers=0)
    headkit.export(model, tmp_path / "model.onnx", label_names=head.label_names)
    images = [str(path) for path in sorted(shapes.rglob("*.png"))]
    expected = [
        found[0]["label"] for found in headkit.Predictor(tmp_path / "model.onnx")(images, top_k=1)
    ]
    assert len(set(expected)) == 3

    # The Python API needs onnxruntime, NumPy and Pillow only.
    code = (
        "import sys, json, headkit; p = headkit.Predictor(sys.argv[1]);"
        "print(json.dumps([r[0]['label'] for r in p(sys.argv[2:], top_k=1)]))"
    )
    arguments = [str(tmp_path / "model.onnx"), *images]
    done = _run([str(python), "-c", code, *arguments])
    assert json.loads(done.stdout) == expected

    # The command line reports what else it needs, and runs once that is installed.
    command = [str(python), "-m", "headkit", "predict", *arguments, "--top-k", "1", "--json"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith("pip install typer rich")
    pip_install(python, "typer", "rich")
    done = _run(command)
    assert [row["predictions"][0]["label"] for row in json.loads(done.stdout)] == expected

    for module in ("torch", "timm", "onnx", "safetensors"):
        absent = [str(python), "-c", f"import {module}"]
        assert subprocess.run(absent, capture_output=True, check=False).returncode != 0


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    # Outside the checkout, as Python might import its folders by chance.
    return subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(sys.prefix).anchor
    )
