"""A head is extended with new images while the old ones are only in the cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headkit
from tests.backbones import random_backbone


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
    with pytest.raises(headkit.DataError, match=r"lacks the features of 14 of the 14 images"):
        headkit.fit(random_backbone(), new, extend=head, levels="last", **options)
    with pytest.raises(headkit.DataError, match="views is 2"):
        headkit.fit(random_backbone(), new, extend=head, views=2, **options)
    with pytest.raises(headkit.DataError, match="measured by cross-validation"):
        headkit.fit(random_backbone(), new, val=new, extend=head, **options)
    other = random_backbone(seed=1)
    with pytest.raises(headkit.BackboneMismatch, match="was trained on test_resnet"):
        headkit.fit(other, new, extend=head, **options)
