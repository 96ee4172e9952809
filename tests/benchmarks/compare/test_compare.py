import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file

import headkit
from headkit.adapters.heads.tasks.statistics import wilson_interval
from headkit.benchmarks.compare import compare as module
from headkit.benchmarks.compare.compare import _beats, is_within_noise
from headkit.cli.app import app
from tests.backbones import random_backbone
from tests.images import read_images, write_shapes

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


def test_comparison_of_data_in_memory_knows_them_again_by_their_content(
    weights: Weights, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[str] = []
    fit = headkit.fit

    def counted(backbone: Any, *arguments: Any, **options: Any) -> Any:
        fitted.append(backbone.pretrained_cfg["architecture"])
        return fit(backbone, *arguments, **options)

    monkeypatch.setattr(module, "fit", counted)
    paths, labels, pixels = read_images(shapes)
    one = {"test_resnet": weights["test_resnet"]}
    options: dict[str, Any] = {"workers": 0, "cache": tmp_path / "cache"}
    pairs = zip(pixels, labels, strict=True)  # can be read once
    two = {name: weights[name] for name in ("test_resnet", "test_efficientnet")}
    assert len(headkit.compare(pairs, two, tmp_path, **options)["rows"]) == 2
    assert len(fitted) == 2
    headkit.compare((pixels.copy(), labels), one, tmp_path, **options)
    assert len(fitted) == 2
    other = pixels.copy()
    other[20, 5, 5] += 1
    headkit.compare((pixels, labels), one, tmp_path, val=(other, labels), **options)
    assert len(fitted) == 3
    frame = pd.DataFrame({"file": list(map(str, paths)), "kind": labels})
    columns: dict[str, Any] = {"path_column": "file", "label_column": "kind"}
    result = headkit.compare(frame, one, tmp_path, **columns, **options)
    assert len(fitted) == 4
    of_folder = headkit.fit(
        headkit.load_backbone("test_resnet", weights["test_resnet"]), shapes, **options
    )
    assert result["rows"][0]["score"] == of_folder.metrics["accuracy"]


def test_backbone_that_fails_is_a_row_with_its_error(
    weights: Weights, shapes: Path, tmp_path: Path
) -> None:
    two = {"test_resnet": weights["test_resnet"], "test_vit": tmp_path / "none.safetensors"}
    rows = {row["name"]: row for row in _compare(shapes, two, tmp_path)["rows"]}
    assert "none.safetensors" in rows["test_vit"]["error"]
    assert "latency_ms" in rows["test_resnet"]


def test_message_of_a_failed_backbone_is_whole(
    run: Any, weights: Weights, shapes: Path, tmp_path: Path
) -> None:
    wrong = weights["test_resnet"]
    with pytest.raises(headkit.HeadkitError) as raised:
        headkit.load_backbone("test_vit", wrong)
    message = str(raised.value)
    result = _compare(shapes, {"test_vit": wrong}, tmp_path / "python")
    assert result["rows"][0]["error"] == message
    status, out, err = run(
        *("compare", "--data", shapes, "--backbones", f"test_vit={wrong}", "--workers", 0),
        *("--out", tmp_path / "command"),
    )
    assert status == 1
    assert f"test_vit failed: {message}" in out
    assert message in err


def test_tensors_of_every_backbone_are_matched_by_position_with_remap(
    run: Any, shapes: Path, tmp_path: Path
) -> None:
    state = random_backbone().state_dict()
    torch.save({f"net.{n}": tensor for n, tensor in enumerate(state.values())}, tmp_path / "w.pth")
    status, _, err = run(
        *("compare", "--data", shapes, "--backbones", f"test_resnet={tmp_path / 'w.pth'}"),
        *("--out", tmp_path / "out", "--workers", 0, "--remap", "--json"),
    )
    assert status == 0, err
    head = headkit.Head.load(tmp_path / "out" / "heads" / "test_resnet.safetensors")
    assert head.backbone.fingerprint == headkit.head_of(random_backbone()).backbone.fingerprint


def test_options_of_timm_reach_every_backbone(shapes: Path, tmp_path: Path) -> None:
    two = ["test_resnet", "test_efficientnet"]
    result = _compare(shapes, two, tmp_path, pretrained=False, in_chans=3, drop_rate=0.1)
    assert [row.get("error") for row in result["rows"]] == [None, None]
    with pytest.raises(ValueError, match=r"pass backbones=\{ARCHITECTURE: FILE\}"):
        headkit.compare(shapes, two, tmp_path, weights=tmp_path / "w.safetensors")


def test_every_keyword_of_fit_is_a_keyword_of_compare(
    weights: Weights, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only ``weights`` belongs to one backbone."""
    arrived: dict[str, Any] = {}

    def load(name: str, file: Any, **options: Any) -> Any:
        arrived.update(options)
        return random_backbone(name)

    def fit(backbone: Any, data: Any, **options: Any) -> Any:
        arrived.update(options)
        raise headkit.ContractError("enough")

    monkeypatch.setattr(module, "load_backbone", load)
    monkeypatch.setattr(module, "fit", fit)
    parameters = inspect.signature(headkit.fit).parameters
    keywords = {name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    sent: dict[str, Any] = {name: object() for name in keywords - {"weights", "progress", "report"}}
    sent["val"] = shapes  # anything else is data in memory, which compare opens itself
    headkit.compare(shapes, ["test_resnet"], tmp_path, report=tmp_path / "report", **sent)
    assert {**sent, "report": tmp_path / "report" / "test_resnet"} == arrived


def test_every_option_of_the_command_fit_is_one_of_compare() -> None:
    from headkit.cli.options.fit import fit_options

    command: Any = typer.main.get_command(app)
    own, other = (
        {option for parameter in command.commands[name].params for option in parameter.opts}
        for name in ("fit", "compare")
    )
    assert own - other == {"--backbone", "--weights"}  # --backbones takes pairs of both
    assert {"--remap", "--report", "--class-from", "--max-unreadable"} <= other
    parameters = inspect.signature(headkit.fit).parameters
    keywords = {name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    assert keywords - {"weights", "progress"} == fit_options().keys()


def test_reports_of_backbones_are_in_folders_of_their_own(
    weights: Weights, shapes: Path, tmp_path: Path
) -> None:
    one = {"test_resnet": weights["test_resnet"]}
    _compare(shapes, one, tmp_path / "out", report=tmp_path / "reports")
    assert (tmp_path / "reports" / "test_resnet" / "report.json").is_file()


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
    assert "95 % interval" in out
    assert "weak classes" in out
    # What holds for all heads is said once.
    assert out.count("note: 3 classes have fewer than 10 training images") == 1


def test_weak_classes_of_a_backbone_are_named(
    run: Any, weights: Weights, shapes: Path, tmp_path: Path
) -> None:
    write_shapes(tmp_path / "val", images=4)
    for label in ("dark", "striped"):
        shutil.rmtree(tmp_path / "val" / label)
        shutil.copytree(tmp_path / "val" / "bright", tmp_path / "val" / label)
    status, out, _ = run(
        *("compare", "--data", shapes, "--val", tmp_path / "val", "--out", tmp_path / "out"),
        *("--backbones", f"test_resnet={weights['test_resnet']}", "--workers", 0),
    )
    assert status == 0
    assert "0.1381 to 0.6094" in out
    assert "2 of 3 classes have a recall below half of the mean (0.33): dark 0.00, striped" in out
    (row,) = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert [one["label"] for one in row["weak_classes"]] == ["dark", "striped"]


def _row(score: float, images: int, latency: float) -> dict[str, Any]:
    interval = wilson_interval(round(score * images), images)
    return {
        "score": score,
        "task": "multiclass",
        "metrics": {"accuracy_interval": interval},
        "latency_ms": {"median_ms": latency},
    }


def test_a_difference_within_chance_is_none() -> None:
    few, many = 100, 100_000
    assert is_within_noise(_row(0.90, few, 1), _row(0.93, few, 1))
    assert not is_within_noise(_row(0.90, many, 1), _row(0.93, many, 1))
    assert not is_within_noise(_row(0.50, few, 1), _row(0.93, few, 1))
    plain = {**_row(0.9, few, 1), "metrics": {}}
    assert not is_within_noise(plain, _row(0.9001, few, 1))
    # A slower backbone that is better by chance alone is beaten.
    assert _beats(_row(0.90, few, 1), _row(0.93, few, 2))
    assert not _beats(_row(0.90, many, 1), _row(0.93, many, 2))
