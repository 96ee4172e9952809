import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from headkit.adapters.data import stratified_holdout
from PIL import Image
from sklearn.linear_model import LogisticRegression
from timm.data import create_dataset, create_transform

import headkit

from ..conftest import random_backbone, write_shapes
from .test_solver import standardized


@pytest.fixture
def folder(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the images that a test may change."""
    return Path(shutil.copytree(shapes, tmp_path / "shapes"))


def test_fitted_head_is_the_one_that_scikit_learn_finds(small: Any, shapes: Path) -> None:
    head = headkit.fit(small, shapes, val=shapes, l2=1e-2, workers=0)
    assert head.label_names == ("bright", "dark", "striped")
    transform = create_transform(**head.pretrained_cfg, is_training=False)
    images = create_dataset("", root=str(shapes), transform=transform)
    pixels = torch.stack([image for image, _ in images])
    targets = np.array([target for _, target in images])
    with torch.inference_mode():
        plain = random_backbone()
        x = plain.forward_head(plain.forward_features(pixels), pre_logits=True).numpy()
        found = small(pixels).softmax(1).numpy()
    x = standardized(x)
    reference = LogisticRegression(C=1 / (1e-2 * len(x)), tol=1e-8, max_iter=5000).fit(x, targets)
    assert np.abs(found - reference.predict_proba(x)).max() < 1e-3
    accuracy = (found.argmax(1) == targets).mean()
    log_loss = -np.log(found[np.arange(len(x)), targets]).mean()
    assert head.metrics["accuracy"] == pytest.approx(accuracy)
    assert head.metrics["log_loss"] == pytest.approx(log_loss, abs=1e-5)


def test_same_seed_gives_the_same_head(shapes: Path) -> None:
    first, second = (
        headkit.fit(random_backbone(), shapes, seed=3, workers=0).with_changes(created="")
        for _ in range(2)
    )
    assert first.digest == second.digest
    assert first.metrics["num_val"] == 6  # a fifth of 8, rounded, in each of three classes


def test_train_and_val_folders_are_found(tmp_path: Path) -> None:
    write_shapes(tmp_path / "train")
    write_shapes(tmp_path / "val", images=2)
    head = headkit.fit(random_backbone(), tmp_path, workers=0)
    assert (head.metrics["num_train"], head.metrics["num_val"]) == (24, 6)


def test_holdout_is_stratified() -> None:
    targets = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    held = stratified_holdout(targets, 0.2, seed=0)
    assert [int(held[targets == label].sum()) for label in range(4)] == [20, 2, 1, 0]


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(headkit.DataError, match="no images in"):
        headkit.fit("test_resnet", tmp_path)
    with pytest.raises(headkit.DataError, match="no such folder"):
        headkit.fit("test_resnet", tmp_path / "none")


def test_class_without_an_image_is_named(folder: Path) -> None:
    (folder / "purple").mkdir()
    with pytest.raises(headkit.DataError, match=r"class purple of .* has no image"):
        headkit.fit("test_resnet", folder)


def test_one_class_and_loose_images_are_refused(folder: Path) -> None:
    shutil.rmtree(folder / "dark")
    Image.new("RGB", (8, 8)).save(folder / "loose.png")
    with pytest.raises(headkit.DataError, match=r"beside the class folders, such as .*loose\.png"):
        headkit.fit("test_resnet", folder)
    (folder / "loose.png").unlink()
    shutil.rmtree(folder / "striped")
    with pytest.raises(headkit.DataError, match="has one class, bright"):
        headkit.fit("test_resnet", folder)


def test_validation_class_that_training_lacks_is_named(folder: Path, shapes: Path) -> None:
    shutil.rmtree(folder / "dark")
    with pytest.raises(headkit.DataError, match="has the class dark"):
        headkit.fit("test_resnet", folder, val=shapes)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_named_skipped_and_counted(
    folder: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "dark" / "3.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING, "headkit"):
        head = headkit.fit(random_backbone(), folder, workers=workers)
    assert head.metrics["num_unreadable"] == 1
    assert head.metrics["num_train"] + head.metrics["num_val"] == 23
    assert "skipped 1 of 24 images" in caplog.text
    assert str(Path("dark") / "3.png") in caplog.text


def test_too_many_unreadable_images_are_an_error(folder: Path) -> None:
    for index in range(2):
        path = folder / "dark" / f"{index}.png"
        path.write_bytes(path.read_bytes()[:200])  # truncated
    with pytest.raises(headkit.DataError, match=r"2 of 24 images .* allowed are 5% .*dark/0\.png"):
        headkit.fit(random_backbone(), folder, workers=0)
    assert headkit.fit(random_backbone(), folder, workers=0, max_unreadable=0.1)


def test_class_whose_images_are_all_unreadable_is_named(folder: Path) -> None:
    for path in (folder / "dark").iterdir():
        path.write_bytes(b"")
    with pytest.raises(headkit.DataError, match="no image of class dark could be read"):
        headkit.fit(random_backbone(), folder, workers=0, max_unreadable=0.5)


def test_named_data_set_without_its_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headkit.adapters.data.find_spec", lambda _: None)
    with pytest.raises(headkit.DependencyMissing, match="pip install webdataset"):
        headkit.fit("test_resnet", "wds/shards")


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("dla46x_c", "own"),  # a convolution
        ("deit_tiny_distilled_patch16_224", "own"),  # two modules, a branch each
        ("crossvit_9_240", "own"),  # two modules, branches of different width
        ("levit_128s", "linear"),  # two modules with BatchNorm on one branch
        ("repvit_m0_9", "linear"),
        ("caformer_s18", "linear"),
    ],
)
def test_one_solution_is_spread_over_several_modules(
    architecture: str, kind: str, folder: Path
) -> None:
    for path in list(folder.rglob("[4-7].png")):
        path.unlink()
    model = random_backbone(architecture)
    head = headkit.fit(model, folder, val=folder, l2=0.1, workers=0)
    assert head.kind == kind
    data = create_dataset(
        "", root=str(folder), transform=create_transform(**head.pretrained_cfg, is_training=False)
    )
    pixels = torch.stack([image for image, _ in data])
    targets = torch.tensor([target for _, target in data])
    with torch.no_grad():
        logits, entered = model(pixels), headkit.features(model, pixels)
        branches = [entered] if isinstance(entered, torch.Tensor) else list(entered)
        x = torch.cat([branch.flatten(1) for branch in branches], 1).numpy()
    accuracy = (logits.argmax(1) == targets).double().mean().item()
    assert head.metrics["accuracy"] == pytest.approx(accuracy)
    x = standardized(x.astype(np.float64))
    reference = LogisticRegression(C=1 / (0.1 * len(x)), tol=1e-8, max_iter=5000).fit(x, targets)
    found = logits.softmax(1).numpy()
    assert np.abs(found - reference.predict_proba(x)).max() < 1e-2


def test_architecture_whose_logits_are_more_than_a_mean_is_refused(shapes: Path) -> None:
    with pytest.raises(headkit.ContractError, match="more than the mean"):
        headkit.fit(random_backbone("efficientvim_m1"), shapes, workers=0)
