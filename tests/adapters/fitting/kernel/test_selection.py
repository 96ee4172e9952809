"""Levels and strength are chosen by images that are left out, and no image predicts itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from headkit.adapters.fitting.folds import Partition, make_partition
from headkit.adapters.fitting.kernel.candidates import candidate_sets
from headkit.adapters.fitting.kernel.selection import LevelSolution, solve_levels
from headkit.adapters.heads.tasks import get_task

NAMES = ("last", "blocks.0", "blocks.1", "blocks.2")
CLASSES = 4


def _problem(images: int, informative: str, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(images) % CLASSES
    features = {name: torch.randn(images, 30, generator=generator) for name in NAMES}
    features[informative] = features[informative] + 2 * torch.eye(CLASSES, 30)[y]
    return features, y


def _solve(
    features: dict[str, Tensor],
    y: Tensor,
    task: str = "multiclass",
    partition: Partition | None = None,
) -> LevelSolution:
    spec = get_task(task)
    outputs = CLASSES if spec.exclusive else y.shape[1]
    partition = partition or make_partition(y, torch.arange(len(y)), spec, 0)
    return solve_levels(features, y, spec, outputs, candidate_sets(list(NAMES)), partition)


def test_candidates_go_from_the_last_features_to_all_levels() -> None:
    assert candidate_sets(["last", "a", "b", "c", "d"]) == [
        ("last",),
        ("last", "c"),
        ("last", "d"),
        ("last", "a", "b", "c", "d"),
    ]
    assert candidate_sets(["last"]) == [("last",)]
    assert candidate_sets(["last", "a"]) == [("last",), ("last", "a")]


def test_a_level_that_tells_the_classes_apart_is_read() -> None:
    features, y = _problem(160, "blocks.1")
    solution = _solve(features, y)
    assert "blocks.1" in solution.levels
    row = torch.cat([features[name] for name in solution.levels], 1).double()
    logits = row @ solution.linear.weight.T + solution.linear.bias
    assert float((logits.argmax(1) == y).double().mean()) > 0.9
    only_last = solve_levels(
        features,
        y,
        get_task("multiclass"),
        CLASSES,
        [("last",)],
        make_partition(y, torch.arange(len(y)), get_task("multiclass"), 0),
    )
    held = [float((one.logits.argmax(1) == y).double().mean()) for one in (solution, only_last)]
    assert held[0] > 0.6
    assert held[1] < 0.4


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_targets_of_a_fold_do_not_change_its_predictions(task: str) -> None:
    features, y = _problem(80, "last")
    if task != "multiclass":
        y = torch.eye(CLASSES)[y]
    partition = make_partition(y, torch.arange(80), get_task(task), 0)
    first = _solve(features, y, task, partition)
    start, end = partition.folds[1]
    held = partition.order[start:end]
    changed = y.clone()
    changed[held] = y[held].roll(1, 0) if task == "multiclass" else 1 - y[held]
    second = _solve(features, changed, task, partition)
    place = torch.isin(first.measured, held)
    # Rounding errors remain: the targets cancel out.
    assert torch.allclose(first.logits[place], second.logits[place], rtol=0, atol=1e-8)
    assert float((first.logits[~place] - second.logits[~place]).abs().max()) > 1e-2


def test_random_labels_are_predicted_by_chance() -> None:
    accuracies = []
    for seed in range(6):
        features, _ = _problem(120, "last", seed)
        y = torch.randperm(120, generator=torch.Generator().manual_seed(seed)) % CLASSES
        solution = _solve(features, y)
        accuracies.append(
            float((solution.logits.argmax(1) == y[solution.measured]).double().mean())
        )
    assert abs(np.mean(accuracies) - 1 / CLASSES) < 0.06


def test_equal_input_gives_equal_bits() -> None:
    features, y = _problem(60, "blocks.2")
    first, second = _solve(features, y), _solve(features, y)
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert torch.equal(first.logits, second.logits)


def test_one_image_per_class_fits_without_a_measurement() -> None:
    features, y = _problem(CLASSES, "last")
    solution = _solve(features, y)
    assert solution.compared == ()
    assert not len(solution.measured)
    assert solution.levels == NAMES
    row = torch.cat([features[name] for name in NAMES], 1).double()
    logits = row @ solution.linear.weight.T + solution.linear.bias
    assert logits.argmax(1).tolist() == y.tolist()


def test_labels_that_all_or_no_images_have_get_a_certain_logit() -> None:
    features, y = _problem(60, "last")
    labels = torch.stack([(y == 0).float(), torch.ones(60), torch.zeros(60)], 1)
    solution = _solve(features, labels, "multilabel")
    row = torch.cat([features[name] for name in solution.levels], 1).double()
    logits = row @ solution.linear.weight.T + solution.linear.bias
    assert bool((logits[:, 1] > 3).all())
    assert bool((logits[:, 2] < -3).all())


def test_weights_of_images_move_the_balance() -> None:
    features, y = _problem(120, "last")
    few = (y == 0) & (torch.arange(120) > 40)
    kept = ~few
    features = {name: x[kept] for name, x in features.items()}
    y = y[kept]
    partition = make_partition(y, torch.arange(len(y)), get_task("multiclass"), 0)
    sets = [("last",)]
    plain = solve_levels(features, y, get_task("multiclass"), CLASSES, sets, partition)
    weight = torch.where(y == 0, 10.0, 1.0)
    weighted = solve_levels(
        features, y, get_task("multiclass"), CLASSES, sets, partition, weight=weight
    )
    shares = [int((one.logits.argmax(1) == 0).sum()) for one in (plain, weighted)]
    assert shares[1] > shares[0]


@pytest.mark.parametrize("sizes", [(2, 2), (2, 3), (1, 2), (2,) * 8, (1, 1, 2), (3, 3), (20, 2)])
def test_few_images_a_class_are_predicted_out_of_fold(sizes: tuple[int, ...]) -> None:
    """With two groups, no image is left to predict one of them without the other."""
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(len(sizes), 6, generator=generator) * 5
    features = {
        name: means[y] + torch.randn(len(y), 6, generator=generator) for name in ("last", "a", "b")
    }
    task = get_task("multiclass")
    partition = make_partition(y, torch.arange(len(y)), task, 0)
    solution = solve_levels(
        features, y, task, len(sizes), candidate_sets(["last", "a", "b"]), partition
    )
    assert len(solution.measured) == sum(size for size in sizes if size > 1)
    assert bool(solution.logits.isfinite().all())
    right = solution.logits.argmax(1) == y[solution.measured]
    assert float(right.double().mean()) > 0.5


def test_two_images_of_a_regression_and_copies_are_predicted() -> None:
    task = get_task("regression")
    y = torch.tensor([[0.0], [1.0]])
    features = {"last": torch.eye(2), "a": torch.eye(2)}
    partition = make_partition(y, torch.arange(2), task, 0)
    found = solve_levels(features, y, task, 1, candidate_sets(["last", "a"]), partition)
    assert found.logits[:, 0].tolist() == pytest.approx([1.0, 0.0])  # the mean of the other one
    rows = torch.arange(4).repeat(5)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))[rows]
    spec = get_task("multiclass")
    partition = make_partition(rows % 2, rows, spec, 0)
    found = solve_levels({"last": x, "a": x}, rows % 2, spec, 2, [("last", "a")], partition)
    assert bool(found.logits.isfinite().all())
