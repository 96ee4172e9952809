from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from headkit.adapters.fitting.linear.solve import STRENGTHS, solve

from .problems import (
    Array,
    accuracy,
    blobs,
    log_loss,
    logits_of,
    probabilities,
    standardized,
    tensors,
)


def shots(x: Array, y: Array, images: int, seed: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    chosen = [generator.choice(np.flatnonzero(y == c), images, False) for c in range(10)]
    return x[np.concatenate(chosen)], y[np.concatenate(chosen)]


@pytest.mark.parametrize("images", [1, 4, 16])
def test_few_images_are_learned_as_well_as_by_scikit_learn_and_by_class_means(
    digits: tuple[Array, Array, Array, Array], images: int
) -> None:
    x, y, x_val, y_val = digits
    found, default, means = [], [], []
    for seed in range(4):
        few, targets = shots(x, y, images, seed)
        solution = solve(*tensors(few, targets), 10)
        assert solution.linear.weight.isfinite().all()
        assert solution.linear.bias.isfinite().all()
        found.append(accuracy(solution.linear, x_val, y_val))
        z, z_val = standardized(few), standardized(x_val, few)
        default.append(LogisticRegression(max_iter=1000).fit(z, targets).score(z_val, y_val))
        centres = np.stack([z[targets == c].mean(0) for c in range(10)])
        nearest = ((z_val[:, None] - centres) ** 2).sum(2).argmin(1)
        means.append((nearest == y_val).mean())
    assert np.mean(found) > np.mean(default) - 0.01
    assert np.mean(found) > np.mean(means) - 0.01


def test_many_features_of_few_images_have_the_same_minimum() -> None:
    x, y = blobs(30, 500, 3)
    z = standardized(x)
    reference = LogisticRegression(C=1 / (1e-2 * 30), tol=1e-10, max_iter=5000).fit(z, y)
    solution = solve(*tensors(x, y), 3, l2=1e-2, tolerance=1e-12)
    other, _ = blobs(50, 500, 3, seed=1)
    expected = reference.predict_proba(standardized(other, x))
    assert np.abs(probabilities(solution.linear, other) - expected).max() < 1e-5


def test_a_class_without_images_is_unlikely_and_changes_nothing_for_the_others() -> None:
    x, y = blobs(300, 8, 3)
    y = np.array([0, 2, 5])[y]
    solution = solve(*tensors(x, y), 7, l2=1e-2, tolerance=1e-12)
    found = probabilities(solution.linear, x)
    absent = found[:, [1, 3, 4, 6]]
    assert absent.max() < 0.01
    assert absent.mean() < 1 / 300
    assert absent.min() > 1e-9
    alone = LogisticRegression(C=1 / 3, tol=1e-10, max_iter=5000).fit(standardized(x), y)
    others = found[:, [0, 2, 5]] / found[:, [0, 2, 5]].sum(1, keepdims=True)
    assert np.abs(others - alone.predict_proba(standardized(x))).max() < 1e-5


def test_validation_images_of_a_class_that_was_not_trained_are_left_out() -> None:
    x, y = tensors(*blobs(300, 8, 3))
    trained, known = y[:200] < 2, y[200:] < 2
    train, targets = x[:200][trained], y[:200][trained]
    mixed = solve(train, targets, 3, x_val=x[200:], y_val=y[200:])
    clean = solve(train, targets, 3, x_val=x[200:][known], y_val=y[200:][known])
    assert mixed.l2 == clean.l2
    losses = [step.val_loss for step in mixed.path]
    assert losses == pytest.approx([step.val_loss for step in clean.path], rel=1e-9)
    with pytest.raises(ValueError, match="none of the validation images"):
        solve(train, targets, 3, x_val=x[200:][~known], y_val=y[200:][~known])


def test_one_image_beside_a_thousand_is_learned(digits: tuple[Array, Array, Array, Array]) -> None:
    x, y, *_ = digits
    nine = np.flatnonzero(y == 9)
    kept = np.concatenate([np.flatnonzero(y != 9), nine[:1]])
    z = standardized(x[kept].astype(np.float64))
    reference = LogisticRegression(C=1 / (1e-3 * len(kept)), tol=1e-10, max_iter=5000)
    expected = reference.fit(z, y[kept]).predict_proba(z)
    solution = solve(*tensors(x[kept], y[kept]), 10, l2=1e-3, tolerance=1e-11)
    found = probabilities(solution.linear, x[kept])
    assert np.abs(found - expected).max() < 1e-4
    assert found[-1].argmax() == 9
    # It cannot be held out, and the others can.
    chosen = solve(*tensors(x[kept], y[kept]), 10)
    assert len(chosen.path) > len(STRENGTHS)
    assert accuracy(chosen.linear, digits[2], digits[3]) > 0.8


def test_a_constant_label_gets_the_probability_of_laplaces_rule() -> None:
    x, classes = blobs(200, 5, 2)
    y = np.stack([classes, np.zeros(200), np.ones(200)], 1).astype(np.float64)
    solution = solve(*tensors(x, y), 3, task="multilabel")
    p = expit(logits_of(solution.linear, x))
    # Laplace's rule of succession: 1 / (N + 2).
    assert p[:, 1] == pytest.approx(1 / 202)
    assert p[:, 2] == pytest.approx(201 / 202)
    assert ((p[:, 0] > 0.5) == classes).mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_feature_that_never_varies_gets_no_weight(dtype: torch.dtype) -> None:
    x = torch.randn(5000, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0.1
    solution = solve(x, (x[:, 0] > 0).long(), 2, l2=1e-3)
    assert torch.equal(solution.linear.weight[:, 1], torch.zeros(2, dtype=torch.float64))
    assert solution.linear.weight.isfinite().all()
    assert solution.linear.weight[1, 0] > 1


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_features_that_are_all_equal_give_the_share_of_each_class(task: Any) -> None:
    y = torch.arange(100) % 4 == 0
    targets = y.long() if task == "multiclass" else torch.stack([~y, y], 1).float()
    solution = solve(torch.full((100, 5), 3.7), targets, 2, task=task)
    logits = torch.full((1, 5), 3.7, dtype=torch.float64) @ solution.linear.weight.T
    logits += solution.linear.bias
    given = {
        "multiclass": logits.softmax(1),
        "multilabel": logits.sigmoid(),
        "regression": logits,
    }[task]
    assert given[0].numpy() == pytest.approx([0.75, 0.25], abs=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_a_handful_of_images_does_not_crash(task: Any, count: int) -> None:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(count) % 3
    solution = solve(x, y if task == "multiclass" else torch.eye(3)[y], 3, task=task)
    assert solution.linear.weight.shape == (3, 6)
    assert solution.linear.weight.isfinite().all()
    assert solution.linear.bias.isfinite().all()


def test_features_that_hardly_vary_do_not_drown_the_others_in_a_few_images() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 1010)
    loud = (2 * y[:, None] - 1) + 2 * generator.normal(size=(1010, 20))
    quiet = 0.01 * generator.normal(size=(1010, 1000))
    x = np.concatenate([loud, quiet], 1)
    solution = solve(*tensors(x[:20], y[:20]), 2, l2=1e-3)
    z = StandardScaler().fit(x[:20]).transform(x)
    unfloored = LogisticRegression(C=1 / (1e-3 * 20), max_iter=5000).fit(z[:20], y[:20])
    reached = accuracy(solution.linear, x[20:], y[20:])
    assert reached > unfloored.score(z[20:], y[20:]) + 0.1
    assert reached > 0.85


def test_separable_classes_and_a_weak_penalty_converge() -> None:
    x, y = blobs(100, 20, 2)
    x[:, 0] += 1000 * y
    solution = solve(*tensors(x, y), 2, l2=1e-6)
    assert solution.path[0].converged
    assert accuracy(solution.linear, x, y) == 1
    assert log_loss(logits_of(solution.linear, x), y) < 1e-3
