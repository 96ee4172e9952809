"""The example of a newcomer does the whole job."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import headkit
from tests.backbones import SMALL
from tests.images import read_images, write_shapes

SCRIPT = Path(__file__).parents[2] / "examples" / "from_a_data_frame.py"


def test_example_goes_from_a_data_frame_to_predictions(small_weights: Path, tmp_path: Path) -> None:
    paths, labels, _ = read_images(write_shapes(tmp_path / "photos", images=10))
    table = pd.DataFrame({"path": list(map(str, paths)), "label": labels})
    table.to_csv(tmp_path / "photos.csv", index=False)
    done = subprocess.run(
        [
            *(sys.executable, SCRIPT, "photos.csv", "--out", "result"),
            *("--backbone", SMALL, "--weights", small_weights),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "wrote head, model, evaluation and predictions to result/" in done.stdout
    predictions = pd.read_csv(tmp_path / "result" / "predictions.csv")
    assert predictions["label"].value_counts().to_dict() == {"bright": 2, "dark": 2, "striped": 2}
    truth = dict(zip(table["path"], table["label"], strict=True))
    assert predictions["label"].tolist() == [truth[path] for path in predictions["path"]]
    accuracy = (predictions["predicted"] == predictions["label"]).mean()
    evaluation = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    assert evaluation["metrics"]["accuracy"] == pytest.approx(accuracy)
    assert accuracy > 0.8
    head = headkit.Head.load(tmp_path / "result" / "head.safetensors")
    assert head.metrics["num_train"] == head.metrics["num_val"] == 24
    again = headkit.Predictor(tmp_path / "result" / "model.onnx")(predictions["path"], top_k=1)
    assert [best["label"] for (best,) in again] == predictions["predicted"].tolist()
