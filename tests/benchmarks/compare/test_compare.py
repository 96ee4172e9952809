import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import headkit
from headkit.benchmarks.compare import compare as module
from tests.backbones import random_backbone

Weights = dict[str, str | Path | None]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Return the weights files of three small architectures."""
    folder = tmp_path_factory.mktemp("weights")
    found: Weights = {}
    for name in ("test_resnet", "test_vit", "test_efficientnet"):
        path = folder / f"{name}.safetensors"
        save_file(random_backbone(name).state_dict(), path)
        found[name] = path
    return found


def _compare(shapes: Path, weights: Any, out: Path, **options: Any) -> dict[str, Any]:
    return headkit.compare(shapes, weights, out, val=shapes, workers=0, **options)


def test_backbones_are_compared_by_score_and_latency(
    weights: Weights, shapes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = _compare(shapes, weights, out)
    assert json.loads((out / "compare.json").read_text()) == result
    rows = result["rows"]
    assert {row["name"] for row in rows} == set(weights)
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    for row in rows:
        head = headkit.Head.load(out / "heads" / f"{row['name']}.safetensors")
        assert row["score"] == head.metrics["accuracy"]
        assert row["head_bytes"] == (out / "heads" / f"{row['name']}.safetensors").stat().st_size
        assert row["latency_ms"]["calls"] == module.ROUNDS * module.CALLS
        predictor = headkit.Predictor(out / "onnx" / f"{row['name']}.onnx")
        assert predictor(shapes / "dark" / "0.png")[0][0]["label"] in ("bright", "dark", "striped")
        beaten = [
            other
            for other in rows
            if other["score"] > row["score"]
            and other["latency_ms"]["median_ms"] < row["latency_ms"]["median_ms"]
        ]
        assert row["pareto"] is not bool(beaten) or row["score"] == rows[0]["score"]
    with Image.open(out / "pareto.png") as plot:
        assert np.asarray(plot.convert("L")).std() > 5


def test_stopped_comparison_resumes_without_repeating_work(
    weights: Weights,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted: list[str] = []
    fit = headkit.fit

    def counted(backbone: Any, *arguments: Any, **options: Any) -> Any:
        if len(fitted) == 1:
            raise KeyboardInterrupt
        fitted.append(backbone.pretrained_cfg["architecture"])
        return fit(backbone, *arguments, **options)

    monkeypatch.setattr(module, "fit", counted)
    two = {name: weights[name] for name in ("test_resnet", "test_efficientnet")}
    with pytest.raises(KeyboardInterrupt):
        _compare(shapes, two, tmp_path)
    assert fitted == ["test_resnet"]
    fitted.clear()
    assert len(_compare(shapes, two, tmp_path)["rows"]) == 2
    assert fitted == ["test_efficientnet"]
    fitted.clear()
    (tmp_path / "heads" / "test_resnet.safetensors").write_bytes(b"damaged")
    _compare(shapes, two, tmp_path)
    assert fitted == ["test_resnet"]
    fitted.clear()
    one = {"test_resnet": two["test_resnet"]}
    assert len(_compare(shapes, one, tmp_path, l2=0.1)["rows"]) == 1
    assert fitted == ["test_resnet"]


def test_backbone_that_fails_is_a_row_with_its_error(
    weights: Weights, shapes: Path, tmp_path: Path
) -> None:
    two = {"test_resnet": weights["test_resnet"], "test_vit": tmp_path / "none.safetensors"}
    rows = {row["name"]: row for row in _compare(shapes, two, tmp_path)["rows"]}
    assert "none.safetensors" in rows["test_vit"]["error"]
    assert "latency_ms" in rows["test_resnet"]


def test_invalid_comparisons_are_refused_before_any_work(
    run: Any, shapes: Path, tmp_path: Path
) -> None:
    with pytest.raises(headkit.UnknownArchitecture, match="resnet51"):
        headkit.compare(shapes, ["test_resnet", "resnet51"], tmp_path / "out")
    with pytest.raises(headkit.DataError, match=r"matches 'nothing\*'"):
        headkit.compare(shapes, ["nothing*"], tmp_path / "out")
    with pytest.raises(headkit.DataError, match="backbones is empty, expected at least one"):
        headkit.compare(shapes, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "compare.json").write_text("[]")
    status, _, err = run("compare", "--data", shapes, "--backbones", "test_vit", "--out", tmp_path)
    assert status == 2
    assert "does not hold the results of a comparison" in err


def test_command_prints_the_table(run: Any, weights: Weights, shapes: Path, tmp_path: Path) -> None:
    two = ("test_resnet", "test_efficientnet")
    listed = ",".join(f"{name}={weights[name]}" for name in two)
    status, out, _ = run(
        "compare", "--data", shapes, "--backbones", listed, "--out", tmp_path, "--workers", 0
    )
    assert status == 0
    assert all(name in out for name in two)
    assert "accuracy" in out
