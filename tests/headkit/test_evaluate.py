"""Evaluation of heads and exported models, against plain timm and scikit-learn."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from sklearn import metrics as reference
from timm.data import create_transform

import headkit
from tests.backbones import SMALL, random_backbone
from tests.images import write_shapes

Run = Callable[..., tuple[int, str, str]]
NAMES = ("bright", "dark", "striped")


@pytest.fixture(scope="module")
def trained(shapes: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a head, its exported model, and the weights of its backbone."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(small_weights, folder)
    # A strong penalty leaves probabilities that are far from 0 and 1.
    head = headkit.fit(SMALL, shapes, weights=small_weights, workers=0, l2=1.0)
    head.save(folder / "head.safetensors")
    headkit.export(folder / "head.safetensors", folder / "model.onnx", weights=small_weights)
    return folder


def _evaluate(path: Path, data: Any, **options: Any) -> headkit.Evaluation:
    """Evaluate one of the two files of the fixture ``trained``."""
    if path.suffix == ".safetensors":
        options = {"weights": path.parent / "small.safetensors", "workers": 0, **options}
    return headkit.evaluate(path, data, **options)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return test images, some of which lie in the folder of another class."""
    root = write_shapes(tmp_path_factory.mktemp("mixed") / "data", images=6)
    for label, wrong, images in (("dark", "bright", 4), ("bright", "striped", 1)):
        for number in range(images):
            (root / label / f"{number}.png").rename(root / wrong / f"{label}{number}.png")
    return root


def _logits_of_timm(head: headkit.Head, root: Path) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Return logits of plain timm and the targets, in the order of the names of the files."""
    model = headkit.attach(random_backbone(), head)
    transform = create_transform(**head.pretrained_cfg, is_training=False)
    paths = [path for name in NAMES for path in sorted((root / name).iterdir())]
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        logits = model(pixels).double().numpy()
    return logits, [NAMES.index(path.parent.name) for path in paths]


@pytest.mark.parametrize("file", ["head.safetensors", "model.onnx"])
def test_evaluation_equals_scikit_learn_on_logits_of_timm(
    file: str, trained: Path, mixed: Path
) -> None:
    head = headkit.Head.load(trained / "head.safetensors")
    logits, y = _logits_of_timm(head, mixed)
    predicted = logits.argmax(1)
    z = logits / head.temperature
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    found = _evaluate(trained / file, mixed)
    assert found.num_images == 18
    metrics = found.metrics
    assert metrics["accuracy"] == pytest.approx(reference.accuracy_score(y, predicted), abs=1e-6)
    assert metrics["log_loss"] == pytest.approx(reference.log_loss(y, p), abs=1e-3)
    assert metrics["brier"] == pytest.approx(reference.brier_score_loss(y, p), abs=1e-3)
    columns = reference.precision_recall_fscore_support(y, predicted, zero_division=np.nan)
    for name, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert [row[name] for row in found.outputs] == pytest.approx(column.tolist(), abs=1e-5)
    matrix = reference.confusion_matrix(y, predicted)
    worst = found.confused[0]
    assert (worst["true"], worst["predicted"]) == ("bright", "dark")
    assert (worst["count"], worst["images"]) == (matrix[0, 1], matrix[0].sum())
    json.dumps(found.to_json())


def test_fit_and_evaluate_measure_the_same(shapes: Path, mixed: Path) -> None:
    model = random_backbone()
    head = headkit.fit(model, mixed, val=mixed, workers=0, l2=1.0)
    assert head.temperature != 1
    found = headkit.evaluate(head, mixed, backbone=random_backbone(), workers=0)
    shared = {"accuracy", "accuracy_interval", "log_loss", "ece", "recall"}
    assert shared <= head.metrics.keys()
    assert {name: found.metrics[name] for name in shared} == {
        name: head.metrics[name] for name in shared
    }


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_fit_and_evaluate_measure_labels_and_numbers_the_same(
    task: Any, shapes: Path, tmp_path: Path
) -> None:
    values = {"bright": "light|plain", "dark": "plain", "striped": "light"}
    lines = []
    for path in sorted(shapes.rglob("*.png")):
        split = "val" if int(path.stem) > 4 else "train"
        mean = np.asarray(Image.open(path)).mean() / 255
        value = f"{mean:.5f}" if task == "regression" else values[path.parent.name]
        lines.append(f"{path},{value},{split}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label,split", *lines]))
    head = headkit.fit(random_backbone(), table, task=task, workers=0)
    found = headkit.evaluate(head, table, split="val", backbone=random_backbone(), workers=0)
    names = {
        "multilabel": {"exact_match", "exact_match_interval", "log_loss", "macro_f1", "ece"},
        "regression": {"mse", "mae", "r2"},
    }[task]
    assert found.num_images == head.metrics["num_val"] == 9
    for name in names:
        assert found.metrics[name] == head.metrics[name]
    columns = {"multilabel": "average_precision", "regression": "rmse"}
    assert all(row[columns[task]] is not None for row in found.outputs)
    assert headkit.evaluate(head, table, backbone=random_backbone(), workers=0) is not None


def test_labels_are_matched_by_name_and_missing_classes_are_said(
    trained: Path, tmp_path: Path
) -> None:
    write_shapes(tmp_path / "data", images=3)
    shutil.rmtree(tmp_path / "data" / "bright")
    for file in ("head.safetensors", "model.onnx"):
        found = _evaluate(trained / file, tmp_path / "data")
        assert [row["support"] for row in found.outputs] == [0, 3, 3]
        assert found.metrics["recall"] == [None, 1, 1]
        assert any(
            "recall of 1 class is unknown" in note and note.endswith("bright")
            for note in found.notes
        )
    shutil.rmtree(tmp_path / "data" / "dark")
    one = headkit.evaluate(trained / "model.onnx", tmp_path / "data")
    assert (one.num_images, one.metrics["accuracy"]) == (3, 1)


def test_class_that_the_head_does_not_have_is_an_error_that_names_it(
    trained: Path, tmp_path: Path
) -> None:
    write_shapes(tmp_path / "data", images=2)
    (tmp_path / "data" / "dark").rename(tmp_path / "data" / "green")
    (tmp_path / "t.csv").write_text(f"path,label\n{tmp_path}/data/green/0.png,violet\n")
    for data, unknown in ((tmp_path / "data", "green"), (tmp_path / "t.csv", "violet")):
        for file in ("head.safetensors", "model.onnx"):
            with pytest.raises(
                headkit.DataError, match=f"that the head does not have: {unknown}; the head has br"
            ):
                _evaluate(trained / file, data)


def test_the_test_split_is_measured_unless_another_is_named(trained: Path, tmp_path: Path) -> None:
    for split, images in (("train", 4), ("valid", 3), ("test", 2)):
        write_shapes(tmp_path / split, images=images)
    model = trained / "model.onnx"

    def measured(**options: Any) -> int:
        return headkit.evaluate(model, tmp_path, **options).num_images

    assert measured() == 6
    assert (measured(split="val"), measured(split="validation")) == (9, 9)
    assert measured(split="train") == 12
    shutil.rmtree(tmp_path / "test")
    assert measured() == 9
    with pytest.raises(headkit.DataError, match="has no split test: it has train, val"):
        measured(split="test")
    with pytest.raises(headkit.DataError, match=r"no splits, but the split test .* omit split"):
        headkit.evaluate(model, tmp_path / "train", split="test")
    with pytest.raises(ValueError, match="split is 'tset', expected train, val or test"):
        measured(split="tset")


def test_rows_of_the_split_of_a_table_are_measured(
    trained: Path, shapes: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    rows = [
        f"{shapes / name / str(n)}.png,{name},{'test' if n < 2 else 'train'}"
        for name in NAMES
        for n in range(8)
    ]
    table.write_text("\n".join(["path,label,split", *rows]))
    model = trained / "model.onnx"
    assert headkit.evaluate(model, table).num_images == 6
    assert headkit.evaluate(model, table, split="train").num_images == 18
    with pytest.raises(headkit.DataError, match="has no split val"):
        headkit.evaluate(model, table, split="val")
    table.write_text("\n".join(["path,label", *(row.rpartition(",")[0] for row in rows)]))
    assert headkit.evaluate(model, table).num_images == 24


def _memory_forms(root: Path) -> dict[str, Any]:
    paths = sorted(root.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    frame = pandas.DataFrame({"path": list(map(str, paths)), "label": labels})
    return {
        "arrays": (pixels, labels),
        "paths": (list(map(str, paths)), labels),
        "pairs": list(zip(paths, labels, strict=True)),
        "frame": frame,
        "splits": {"train": (pixels[:4], labels[:4]), "test": (pixels, labels)},
        "rows with a split": frame.assign(split="test"),
    }


@pytest.mark.parametrize("file", ["head.safetensors", "model.onnx"])
def test_data_in_memory_are_measured_like_the_folder(file: str, trained: Path, mixed: Path) -> None:
    folder = _evaluate(trained / file, mixed)
    for form, data in _memory_forms(mixed).items():
        found = _evaluate(trained / file, data)
        assert found.metrics["recall"] == folder.metrics["recall"], form
        assert found.num_images == 18
    with pytest.raises(headkit.DataError, match="green"):
        _evaluate(trained / file, [(mixed / "dark" / "5.png", "green")])
    with pytest.raises(headkit.DataError, match="has no splits, but the split test"):
        _evaluate(trained / file, _memory_forms(mixed)["pairs"], split="test")


@pytest.mark.parametrize("file", ["head.safetensors", "model.onnx"])
def test_streamed_data_are_measured_like_the_folder(
    file: str, trained: Path, mixed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("webdataset")
    names = ["striped", "bright", "dark"]  # another order than that of the head
    (tmp_path / "classes.txt").write_text("\n".join(names))
    with tarfile.open(tmp_path / "test-0000.tar", "w") as shard:
        for number, path in enumerate(sorted(mixed.rglob("*.png"))):
            label = str(names.index(path.parent.name)).encode()
            for suffix, content in ((".png", path.read_bytes()), (".cls", label)):
                info = tarfile.TarInfo(f"{number:04d}{suffix}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    found = _evaluate(trained / file, f"wds/{tmp_path}@test-{{0000..0000}}.tar")
    folder = _evaluate(trained / file, mixed)
    assert found.num_images == 18
    assert found.metrics["recall"] == folder.metrics["recall"]
    assert found.metrics["log_loss"] == pytest.approx(folder.metrics["log_loss"], abs=1e-5)


def test_features_are_measured_by_the_head_and_refused_by_a_model(
    trained: Path, mixed: Path
) -> None:
    found = headkit.extract(random_backbone(), mixed, workers=0)
    whole = _evaluate(trained / "head.safetensors", mixed)
    by_name = _evaluate(trained / "head.safetensors", found)
    assert by_name.metrics["accuracy"] == whole.metrics["accuracy"]
    labels = [found.label_names[y] for y in found.y]
    plain = _evaluate(trained / "head.safetensors", (found.x, labels))
    assert plain.metrics["log_loss"] == pytest.approx(whole.metrics["log_loss"], abs=1e-5)
    with pytest.raises(headkit.DataError, match="an exported model takes images"):
        headkit.evaluate(trained / "model.onnx", found)


@pytest.mark.parametrize("file", ["head.safetensors", "model.onnx"])
def test_unreadable_images_are_counted_and_too_many_are_an_error(
    file: str, trained: Path, tmp_path: Path
) -> None:
    root = write_shapes(tmp_path / "data", images=7)
    (root / "dark" / "0.png").write_bytes(b"no image")
    found = _evaluate(trained / file, root)
    assert (found.num_images, found.metrics["num_unreadable"]) == (20, 1)
    assert [row["support"] for row in found.outputs] == [7, 6, 7]
    assert "skipped 1 image that cannot be read" in found.notes
    with pytest.raises(headkit.DataError, match=r"1 of 21 images .* expected at most 1%"):
        _evaluate(trained / file, root, max_unreadable=0.01)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(headkit.DataError, match="21 of 21 images"):
        _evaluate(trained / file, root, max_unreadable=1)


def test_features_of_the_fit_are_found_in_the_cache(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = headkit.fit(random_backbone(), shapes, workers=0, cache=tmp_path)
    backbone = random_backbone()
    backbone.conv1.register_forward_pre_hook(lambda *_: pytest.fail("the backbone ran"))
    found = headkit.evaluate(head, shapes, backbone=backbone, workers=0, cache=tmp_path)
    assert found.num_images == 24


def test_backbone_keeps_its_classifier(shapes: Path, mixed: Path) -> None:
    head = headkit.fit(random_backbone(), shapes, workers=0)
    backbone = random_backbone()
    before = backbone.fc.weight.clone()
    headkit.evaluate(head, mixed, backbone=backbone, workers=0)
    assert backbone.fc is not None
    assert torch.equal(backbone.fc.weight, before)
    with pytest.raises(headkit.BackboneMismatch):
        headkit.evaluate(head, mixed, backbone=random_backbone(seed=1), workers=0)


def test_model_with_preprocessing_or_many_heads_is_measured(
    trained: Path, mixed: Path, tmp_path: Path
) -> None:
    path = trained / "head.safetensors"
    raw = headkit.export(
        path, tmp_path / "raw.onnx", preprocess=True, weights=trained / "small.safetensors"
    ).path
    merged = headkit.evaluate(trained / "model.onnx", mixed)
    assert headkit.evaluate(raw, mixed).metrics["recall"] == merged.metrics["recall"]
    multi = headkit.export(
        {"one": path, "two": path}, tmp_path / "multi.onnx", "multi", backbone=random_backbone()
    ).path
    assert headkit.evaluate(multi, mixed, name="two").metrics == merged.metrics
    predictor = headkit.Predictor(trained / "model.onnx")
    assert headkit.evaluate(predictor, mixed).metrics == merged.metrics
    with pytest.raises(headkit.ExportError, match="one, two"):
        headkit.evaluate(multi, mixed)
    with pytest.raises(ValueError, match="has its own backbone: omit weights"):
        headkit.evaluate(multi, mixed, weights=tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="a head file has one head: omit name"):
        _evaluate(path, mixed, name="two")


def test_command_writes_text_json_and_reports(
    run: Run, trained: Path, mixed: Path, tmp_path: Path
) -> None:
    command = ("evaluate", trained / "model.onnx", "--data", mixed)
    status, out, err = run(*command, "--out", tmp_path / "report.csv")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].endswith(": 18 images")
    assert "accuracy 0.7222 (95 % interval 0.4913 to 0.8750)" in lines[1]  # 13 of 18
    assert any(line.startswith("class") and line.endswith("images") for line in lines)
    assert any(line.startswith("most confused: 4 of 9 bright as dark; 1 of 7") for line in lines)
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(NAMES)
    assert float(rows[0]["recall"]) == pytest.approx(5 / 9, abs=1e-4)

    status, out, err = run(*command, "--json", "--out", tmp_path / "report.json")
    assert status == 0, err
    assert json.loads(out) == json.loads((tmp_path / "report.json").read_text())
    assert json.loads(out)["metrics"]["accuracy_interval"] == [0.4913, 0.875]

    status, out, err = run(*command, "--out", tmp_path / "report.txt")
    assert (status, out) == (2, "")
    assert "its suffix is '.txt', expected .json or .csv" in err


def test_command_loads_the_backbone_of_a_head(
    run: Run, trained: Path, mixed: Path, small_weights: Path, tmp_path: Path
) -> None:
    head = tmp_path / "head.safetensors"
    shutil.copy(trained / "head.safetensors", head)
    status, out, err = run(
        "evaluate", head, "--data", mixed, "--weights", small_weights, "--workers", 0
    )
    assert status == 0, err
    assert "accuracy 0.7222" in out


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("none.onnx", "", "no such file"),
        ("none.safetensors", "", "none.safetensors"),
        ("head.safetensors", "none", "no data in"),
        ("model.onnx", "model.onnx", "no data in"),
        ("", "head.safetensors", "is a folder, expected a head file or an exported model"),
    ],
)
def test_bad_input_of_the_command_is_one_line(
    model: str, data: str, message: str, run: Run, trained: Path, mixed: Path
) -> None:
    status, out, err = run("evaluate", trained / model, "--data", trained / data if data else mixed)
    assert (status, out) == (2, "")
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
