"""A head is extended with new images while the old ones are only in the cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import headkit
from tests.backbones import SMALL, random_backbone


@pytest.fixture
def parts(shapes: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Old images of two classes; new images of one of them and of a third class."""
    for label in ("bright", "dark"):
        shutil.copytree(shapes / label, tmp_path / "old" / label)
    shutil.copytree(shapes / "striped", tmp_path / "new" / "striped")
    (tmp_path / "new" / "dark").mkdir()
    for number in (6, 7):
        old = tmp_path / "old" / "dark" / f"{number}.png"
        old.rename(tmp_path / "new" / "dark" / old.name)
    return tmp_path / "old", tmp_path / "new"


@pytest.mark.parametrize("levels", ["auto", "last"])
def test_extended_head_is_as_good_as_one_fitted_to_all_images(
    levels: str, parts: tuple[Path, Path], shapes: Path, tmp_path: Path
) -> None:
    old, new = parts
    options: dict[str, Any] = {
        "workers": 0,
        "cache": tmp_path / "cache",
        "levels": levels,
        "runtime": "torch",
    }
    first = headkit.fit(random_backbone(), old, **options)
    assert first.label_names == ("bright", "dark")
    path = first.save(tmp_path / "first.safetensors")
    shutil.rmtree(old)
    head = headkit.fit(random_backbone(), new, extend=path, **options)
    assert head.label_names == ("bright", "dark", "striped")
    assert head.metrics["num_train"] == head.metrics["num_val"] == 24
    whole = headkit.fit(random_backbone(), shapes, **options)
    assert head.metrics["accuracy"] >= whole.metrics["accuracy"] - 1 / 24
    for name, tensor in whole.tensors.items():
        difference = np.abs(head.tensors[name] - tensor).max() / np.abs(tensor).max()
        assert difference < 0.35  # the folds differ, so strength and calibration may
    found = headkit.evaluate(head, shapes, backbone=random_backbone(), workers=0)
    assert found.metrics["accuracy"] == 1


def test_extension_says_what_is_missing(parts: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = parts
    options: dict[str, Any] = {"workers": 0, "cache": tmp_path / "cache", "runtime": "torch"}
    head = headkit.fit(random_backbone(), old, **options)
    with pytest.raises(headkit.DataError, match="does not know which images"):
        headkit.fit(random_backbone(), new, extend=head, workers=0, cache=tmp_path / "other")
    with pytest.raises(headkit.DataError, match=r"14 of the 14 images.*with other levels"):
        headkit.fit(random_backbone(), new, extend=head, levels="last", **options)
    with pytest.raises(headkit.DataError, match=r"14 of the 14 images.*with another runtime"):
        headkit.fit(random_backbone(), new, extend=head, **{**options, "runtime": "onnxruntime"})
    with pytest.raises(headkit.DataError, match="may have been edited since"):
        headkit.fit(random_backbone(), new, extend=head.select(["dark", "bright"]), **options)
    with pytest.raises(headkit.DataError, match="views is 2"):
        headkit.fit(random_backbone(), new, extend=head, views=2, **options)
    with pytest.raises(headkit.DataError, match="measured by cross-validation"):
        headkit.fit(random_backbone(), new, val=new, extend=head, **options)
    other = random_backbone(seed=1)
    with pytest.raises(headkit.BackboneMismatch, match="was trained on test_resnet"):
        headkit.fit(other, new, extend=head, **options)


@pytest.mark.parametrize("changed", [{"img_size": 96}, {"crop_pct": 0.5}, {"crop_mode": "squash"}])
def test_extension_names_the_size_and_crop_that_differ(
    changed: dict[str, Any], parts: tuple[Path, Path], small_weights: Path, tmp_path: Path
) -> None:
    old, new = parts
    options: dict[str, Any] = {"weights": small_weights, "workers": 0, "cache": tmp_path / "cache"}
    head = headkit.fit(SMALL, old, **options)
    name = next(iter(changed)).replace("img_size", "input_size")
    with pytest.raises(
        headkit.DataError, match=rf"size or crop: .*{name} .*--img-size, --crop-pct"
    ):
        headkit.fit(SMALL, new, extend=head, **options, **changed)


@pytest.mark.parametrize("options", [{"holdout": 0.4}, {"levels": "last"}, {"kind": "mlp"}])
def test_extension_trains_on_images_that_were_never_held_out(
    options: dict[str, Any], parts: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = parts
    for number in range(1, 8):
        (old / "bright" / f"{number}.png").unlink()  # a class with one image, of 7 in total
    common: dict[str, Any] = {"workers": 0, "cache": tmp_path / "cache", "runtime": "torch"}
    head = headkit.fit(random_backbone(), old, **options, **common)
    assert head.metrics["num_val"] < head.metrics["num_train"] == 7
    extended = headkit.fit(random_backbone(), new, extend=head, **common)
    assert extended.metrics["num_train"] == 7 + 10
    assert extended.metrics["num_duplicates"] == 0
    few = dict(extended.metrics["fewest_images"])
    assert few == {0: 1, 1: 8, 2: 8}  # bright, dark and striped
    again = headkit.fit(random_backbone(), old, extend=extended, **common)
    assert again.metrics["num_train"] == 17 + 7
    assert again.metrics["num_duplicates"] == 7  # each image of old was in the head already


def test_head_without_metrics_is_extended(parts: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = parts
    for label in ("bright", "dark"):
        for path in sorted((old / label).iterdir())[1:]:
            path.unlink()
    options: dict[str, Any] = {"workers": 0, "cache": tmp_path / "cache"}
    head = headkit.fit(random_backbone(), old, **options)
    assert head.metrics["num_val"] == 0
    extended = headkit.fit(random_backbone(), new, extend=head, **options)
    assert extended.metrics["num_train"] == 2 + 10


def test_images_that_an_earlier_version_did_not_record_are_not_lost_in_silence(
    parts: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = parts
    options: dict[str, Any] = {"workers": 0, "cache": tmp_path / "cache"}
    some = headkit.fit(random_backbone(), old, holdout=0.5, **options)
    forget_images_that_were_not_held_out(some, tmp_path / "cache")
    with pytest.raises(headkit.DataError, match=r"knows 7 of the 14 images.*fit all images"):
        headkit.fit(random_backbone(), new, extend=some, **options)
    every = headkit.fit(random_backbone(), old, **options)
    forget_images_that_were_not_held_out(every, tmp_path / "cache")
    extended = headkit.fit(random_backbone(), new, extend=every, **options)
    assert extended.metrics["num_train"] == 24


def forget_images_that_were_not_held_out(head: headkit.Head, cache: Path) -> None:
    """Write what earlier versions kept of a head: rows for the held-out images alone."""
    (path,) = cache.glob(f"features/*/predictions-{head.digest[:24]}.safetensors")
    tensors = safetensors.numpy.load_file(path)
    images = tensors.pop("images")
    tensors |= {name: tensors[name][images] for name in ("pixels", "targets")}
    safetensors.numpy.save_file(tensors, path, {"head": head.digest})


def test_extension_takes_the_runtime_and_the_levels_of_the_head(
    parts: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = parts
    options: dict[str, Any] = {"workers": 0, "cache": tmp_path / "cache"}
    first: dict[str, Any] = {**options, "runtime": "onnxruntime", "levels": "last", "views": 2}
    head = headkit.fit(random_backbone(), old, **first)
    assert "crops of each image" not in caplog.text
    extended = headkit.fit(random_backbone(), new, extend=head, **options)
    assert extended.metrics["num_train"] == 24
    assert not extended.levels
    assert "trained on 2 crops of each image" in caplog.text
