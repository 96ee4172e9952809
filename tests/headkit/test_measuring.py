"""Which images measure a head, and which ones choose its temperature."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import log_softmax
from timm.data import create_dataset, create_transform

import headkit
from headkit.adapters.features.predictions import find_predictions
from headkit.adapters.heads.tasks.statistics import HIGHEST, LOWEST
from tests.backbones import random_backbone
from tests.images import write_shapes


def test_a_share_is_held_out_once_if_it_is_requested(shapes: Path) -> None:
    head = headkit.fit(random_backbone(), shapes, workers=0, holdout=0.2)
    assert head.metrics["validation"] == "holdout"
    assert head.metrics["num_val"] == 6  # a fifth of 8, rounded, in each of three classes
    assert head.metrics["num_train"] == 24  # the head is fitted to all images


def test_metrics_belong_to_the_logits_of_the_head_on_the_validation_images(
    shapes: Path, tmp_path: Path
) -> None:
    model = random_backbone()
    Image.open(shapes / "dark" / "0.png").save(tmp_path / "mistaken.png")
    shutil.copytree(shapes, tmp_path / "val")
    shutil.move(tmp_path / "mistaken.png", tmp_path / "val" / "bright")
    head = headkit.fit(model, shapes, val=tmp_path / "val", l2=1.0, workers=0)
    data = create_dataset(
        "",
        root=str(tmp_path / "val"),
        transform=create_transform(**head.pretrained_cfg, is_training=False),
    )
    with torch.no_grad():
        logits = model(torch.stack([image for image, _ in data])).double().numpy()
    y = np.array([target for _, target in data])

    def log_loss(temperature: float) -> float:
        z = logits / temperature
        z -= z.max(1, keepdims=True)
        return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]).mean())

    assert head.metrics["log_loss"] == pytest.approx(log_loss(head.temperature), abs=1e-5)
    assert head.metrics["recall"] == [0.8889, 1, 1]


def test_copies_of_an_image_stay_on_one_side(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(8):  # the same picture, other bytes
        picture = Image.open(folder / "dark" / f"{number}.png")
        picture.save(folder / "dark" / f"copy{number}.png", compress_level=0)
    with caplog.at_level(logging.WARNING, "headkit"):
        head = headkit.fit(random_backbone(), folder, workers=0)
    assert head.metrics["num_duplicates"] == 8
    assert head.metrics["num_val"] == 32
    once = headkit.fit(random_backbone(), folder, workers=0, holdout=0.2)
    assert once.metrics["num_val"] == 2 + 2 * 2 + 2
    assert "8 of 32 images are duplicates of another image" in caplog.text
    assert "different label" not in caplog.text


def test_validation_images_among_the_training_images_are_reported(
    folder: Path, shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(folder / "dark" / "1.png", folder / "bright" / "dark1.png")
    with caplog.at_level(logging.WARNING, "headkit"):
        head = headkit.fit(random_backbone(), folder, val=shapes, workers=0)
    assert head.metrics["num_val_in_train"] == 24
    assert "24 of 24 validation images are also training images" in caplog.text
    assert "1 of the duplicates have a different label from the original image" in caplog.text


def test_test_images_among_the_training_images_are_reported(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for label in ("bright", "dark", "striped"):
        (tmp_path / "test" / label).mkdir(parents=True)
        for number in (6, 7):
            image = folder / label / f"{number}.png"
            image.rename(tmp_path / "test" / label / image.name)
    apart = headkit.fit(random_backbone(), folder, test=tmp_path / "test", workers=0)
    assert apart.metrics["num_test_in_train"] == 0
    assert "num_val_in_train" not in apart.metrics
    for number in range(3):
        shutil.copy(
            folder / "dark" / f"{number}.png", tmp_path / "test" / "dark" / f"a{number}.png"
        )
    head = headkit.fit(random_backbone(), folder, test=tmp_path / "test", workers=0)
    assert head.metrics["num_test_in_train"] == 3
    assert head.metrics["test"]["num_images"] == 9
    assert "3 of 9 test images are also training images" in caplog.text
    assert "3 test images are also in the training data, which inflates the metrics" in caplog.text


def test_held_out_images_and_val_exclude_each_other(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holdout is 0.2 \(--holdout\), but val \(--val\)"):
        headkit.fit(random_backbone(), folder, val=folder, holdout=0.2, workers=0)
    write_shapes(tmp_path / "split" / "train", images=2)
    write_shapes(tmp_path / "split" / "val", images=2)
    with pytest.raises(
        ValueError, match=r"--holdout\), but the data have a validation split, .*val"
    ):
        headkit.fit(random_backbone(), tmp_path / "split", holdout=0.2, workers=0)


def test_temperature_comes_from_the_images_that_are_held_out(folder: Path, tmp_path: Path) -> None:
    for number in (1, 4, 6):
        (folder / "dark" / f"{number}.png").rename(folder / "striped" / f"dark{number}.png")
    cache = tmp_path / "cache"
    head = headkit.fit(random_backbone(), folder, workers=0, holdout=0.25, cache=cache)
    found = find_predictions(head.digest, cache)
    assert found is not None
    assert 0 < len(found.images) < 24

    def loss(temperature: float) -> float:
        scores = log_softmax(found.logits / temperature, axis=1)
        return float(-scores[np.arange(len(scores)), found.targets[found.images]].mean())

    assert loss(head.temperature) <= min(map(loss, np.geomspace(LOWEST, HIGHEST, 200))) + 1e-6


def test_one_image_per_class_gives_a_head_without_metrics(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in folder.rglob("[1-7].png"):
        path.unlink()
    model = random_backbone()
    with caplog.at_level(logging.WARNING, "headkit"):
        head = headkit.fit(model, folder, workers=0)
    assert "no image can be held out" in caplog.text
    assert (head.metrics["num_train"], head.metrics["num_val"]) == (3, 0)
    assert "accuracy" not in head.metrics
    transform = create_transform(**head.pretrained_cfg, is_training=False)
    data = create_dataset("", root=str(folder), transform=transform)
    with torch.no_grad():
        found = model(torch.stack([image for image, _ in data])).argmax(1)
    assert found.tolist() == [target for _, target in data]


def test_report_contains_the_confusions_and_the_reliability(folder: Path, tmp_path: Path) -> None:
    (folder / "dark" / "0.png").rename(folder / "bright" / "dark0.png")
    head = headkit.fit(random_backbone(), folder, val=folder, workers=0, report=tmp_path / "report")
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    matrix = np.array(found["confusion"])
    assert matrix.sum(1).tolist() == [9, 7, 8]
    assert matrix.trace() / 24 == pytest.approx(head.metrics["accuracy"], abs=1e-6)
    bins = found["reliability"]
    error = sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / 24
    assert error == pytest.approx(head.metrics["ece"], abs=1e-5)
    for name in ("confusion", "reliability"):
        with Image.open(tmp_path / "report" / f"{name}.png") as plot:
            assert min(plot.size) > 500
    (tmp_path / "file").touch()
    with pytest.raises(headkit.OutputError, match="cannot create the folder"):
        headkit.fit("test_resnet", folder, report=tmp_path / "file")


def test_test_split_measures_the_head_and_influences_no_choice(tmp_path: Path) -> None:
    write_shapes(tmp_path / "train")
    write_shapes(tmp_path / "test", images=2)
    alone = headkit.fit(random_backbone(), tmp_path / "train", workers=0)
    head = headkit.fit(random_backbone(), tmp_path, test="split", workers=0)
    other = headkit.fit(random_backbone(), tmp_path / "train", test=tmp_path / "test", workers=0)
    for one in (head, other):
        assert one.metrics["test"]["num_images"] == 6
        assert one.metrics["accuracy"] == alone.metrics["accuracy"]
        for name, tensor in alone.tensors.items():
            assert np.array_equal(one.tensors[name], tensor)
    assert "skipped" not in head.metrics
    found = headkit.evaluate(head, tmp_path, backbone=random_backbone(), workers=0)
    assert found.metrics["accuracy"] == head.metrics["test"]["accuracy"]
