"""Optimum's ONNX Runtime models take an export as it is: a virtual environment on top of this one.

Optimum needs an older huggingface_hub than headkit is used with, so it is not installed beside it.
"""

import json
import subprocess
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest

import headkit
from tests.backbones import active_backbone
from tests.environments import pip_install

pytestmark = pytest.mark.network

PROBE = """
import json, sys
from optimum.onnxruntime import ORTModelForImageClassification
from PIL import Image
from transformers import AutoImageProcessor, pipeline

folder, image = sys.argv[1:]
model = ORTModelForImageClassification.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
picture = Image.open(image).convert("RGB")
inputs = processor(picture, return_tensors="pt")
found = pipeline("image-classification", model=model, image_processor=processor)(picture, top_k=3)
pixels = inputs["pixel_values"].tolist()
print(json.dumps({"pixels": pixels, "logits": model(**inputs).logits.tolist(), "found": found}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimum") / "venv"
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "below.pth").write_text(sysconfig.get_paths()["purelib"])
    python = folder / "bin" / "python"
    pip_install(python, "optimum-onnx>=0.1")
    return python


def test_optimum_and_its_pipeline_give_what_the_predictor_gives(
    python: Path, shapes: Path, tmp_path: Path
) -> None:
    model = headkit.adapt(active_backbone(), 3)
    headkit.export(
        model, tmp_path / "model.onnx", label_names=["bright", "dark", "striped"], config=True
    )
    image = shapes / "striped" / "0.png"
    done = subprocess.run(
        [str(python), "-c", PROBE, str(tmp_path), str(image)],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    predictor = headkit.Predictor(tmp_path / "model.onnx")
    pixels = np.asarray(result["pixels"], np.float32)
    assert np.allclose(np.asarray(result["logits"]), predictor.logits(pixels), atol=1e-6)
    (expected,) = predictor(image, top_k=3)
    assert [found["label"] for found in result["found"]] == [p["label"] for p in expected]
    scores = [found["score"] for found in result["found"]]
    assert scores == pytest.approx([p["score"] for p in expected], abs=1e-5)
