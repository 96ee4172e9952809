from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from headkit.adapters.fitting.linear.solve import STRENGTHS, VAR_SMOOTHINGS, solve

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


def test_path_is_as_good_as_scikit_learns_grid(digits: tuple[Array, Array, Array, Array]) -> None:
    x, y, x_val, y_val = digits
    z, z_val = standardized(x), standardized(x_val, x)
    grid = {}
    for l2 in STRENGTHS[3:]:
        reference = LogisticRegression(C=1 / (l2 * len(x)), max_iter=3000).fit(z, y)
        p = reference.predict_proba(z_val)
        grid[l2] = -np.log(p[np.arange(len(y_val)), y_val]).mean()
    held: Any = {"x_val": torch.from_numpy(x_val), "y_val": torch.from_numpy(y_val)}
    solution = solve(*tensors(x, y), 10, var_smoothing=1.0, **held)
    found = log_loss(logits_of(solution.linear, x_val), y_val)
    assert found < 1.005 * min(grid.values())
    chosen = next(step for step in solution.path if step.l2 == solution.l2)
    assert chosen.converged
    assert chosen.val_loss == pytest.approx(found, rel=1e-6)
    # What was only visited is known to a tenth on the way, and weaker strengths are not visited
    # once the loss has turned up.
    for step in solution.path:
        if step.l2 in grid and step.l2 >= solution.l2:
            assert step.val_loss == pytest.approx(grid[step.l2], rel=0.1)
    assert len(solution.path) < len(STRENGTHS)
    assert found < (solution.path[-1].val_loss or 0) < grid[solution.path[-1].l2]


def test_path_costs_little_more_than_one_fit(digits: tuple[Array, Array, Array, Array]) -> None:
    x, y, x_val, y_val = map(torch.from_numpy, digits)
    path, paths = (
        solve(x, y, 10, x_val=x_val, y_val=y_val, var_smoothing=shares)
        for shares in (1.0, VAR_SMOOTHINGS)
    )
    z = standardized(digits[0])
    reference = LogisticRegression(C=1 / (path.l2 * len(z)), max_iter=3000).fit(z, digits[1])
    # One iteration reads the features as often as one of scikit-learn's.
    iterations = sum(step.iterations for step in path.path)
    assert iterations < 4 * reference.n_iter_[0]
    assert sum(step.iterations for step in paths.path) < 2 * iterations


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("faint", [True, False])
def test_variance_smoothing_depends_on_which_features_separate_the_classes(
    faint: bool, held: bool
) -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 4, 3000)
    telling = generator.normal(size=(4, 20))[y] + 2 * generator.normal(size=(3000, 20))
    others = generator.normal(size=(3000, 180))
    # What tells the classes varies less than the rest, or more.
    x = np.concatenate([telling * (0.05 if faint else 20), others], 1)
    train, val = slice(0, 400), slice(400, None)
    validation: Any = {"x_val": torch.from_numpy(x[val]), "y_val": torch.from_numpy(y[val])}
    one, chosen = (
        solve(*tensors(x[train], y[train]), 4, var_smoothing=shares, **validation if held else {})
        for shares in (1.0, None)
    )
    assert chosen.var_smoothing == (0.01 if faint else 1.0)
    losses = [log_loss(logits_of(found.linear, x[val]), y[val]) for found in (one, chosen)]
    assert losses[1] < 0.9 * losses[0] if faint else losses[1] == losses[0]
    shares = [step.var_smoothing for step in chosen.path]
    assert shares == sorted(shares, reverse=True)
    final = next(
        step
        for step in chosen.path
        if (step.l2, step.var_smoothing) == (chosen.l2, chosen.var_smoothing)
    )
    assert final.converged


def test_cross_validation_finds_a_strength_as_good_as_the_best_one(
    digits: tuple[Array, Array, Array, Array],
) -> None:
    x, y, x_val, y_val = digits
    x, y = x[:150], y[:150]
    solution = solve(*tensors(x, y), 10, var_smoothing=1.0)
    losses = {
        l2: log_loss(logits_of(solve(*tensors(x, y), 10, l2=l2).linear, x_val), y_val)
        for l2 in STRENGTHS
    }
    assert len(solution.path) == len(STRENGTHS)
    assert losses[solution.l2] < 1.2 * min(losses.values())
    alone = solve(*tensors(x, y), 10, l2=solution.l2, tolerance=1e-9)
    found = probabilities(solution.linear, x_val)
    assert np.abs(found - probabilities(alone.linear, x_val)).max() < 0.02


def test_a_fifth_of_many_images_is_held_out() -> None:
    x, y = blobs(20000, 10, 4)
    solution = solve(*tensors(x[:10000], y[:10000]), 4, var_smoothing=1.0)
    again = solve(*tensors(x[:10000], y[:10000]), 4, l2=solution.l2, tolerance=1e-9)
    found, expected = probabilities(solution.linear, x), probabilities(again.linear, x)
    assert np.abs(found - expected).max() < 0.02
    # 2,000 images tell the loss of new ones to about a tenth.
    chosen = next(step for step in solution.path if step.l2 == solution.l2)
    unseen = log_loss(logits_of(solution.linear, x[10000:]), y[10000:])
    assert chosen.val_loss == pytest.approx(unseen, rel=0.25)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks_choose_a_strength_without_validation_images(task: Any) -> None:
    x, classes = blobs(1100, 60, 4)
    x += np.random.default_rng(1).normal(size=x.shape) * 3 * x.std(0)
    y = np.eye(4)[classes]
    solution = solve(*tensors(x[:100], y[:100]), 4, task=task, var_smoothing=1.0)
    assert len(solution.path) == len(STRENGTHS)
    reached = {
        l2: accuracy(solve(*tensors(x[:100], y[:100]), 4, task=task, l2=l2).linear, *unseen)
        for unseen in [(x[100:], classes[100:])]
        for l2 in STRENGTHS
    }
    assert reached[solution.l2] > max(reached.values()) - 0.03
    assert reached[solution.l2] > reached[STRENGTHS[-1]] + 0.02
