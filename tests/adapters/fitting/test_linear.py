import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, logsumexp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from headkit.adapters.fitting.linear import blocks as solver_rows
from headkit.adapters.fitting.linear import path as solver_path
from headkit.adapters.fitting.linear.solve import (
    STRENGTHS,
    VAR_SMOOTHINGS,
    Linear,
    solve,
)
from headkit.adapters.heads.tasks import task_named

Array = np.ndarray[Any, Any]


def standardized(x: Array, like: Array | None = None) -> Array:
    like = x if like is None else like
    variance = like.var(0)
    return np.asarray((x - like.mean(0)) / np.sqrt(variance + VAR_SMOOTHINGS[0] * variance.mean()))


def blobs(n: int, d: int, classes: int, seed: int = 0) -> tuple[Array, Array]:
    """Overlapping classes; features of very different scale and a mean that is not 0."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, n)
    centers = generator.normal(size=(classes, d))
    return (centers[y] + generator.normal(size=(n, d))) * generator.uniform(0.1, 10, d) + 3, y


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array, Array, Array]:
    """Digits behind a random layer of 640 ReLUs, as from a network: train and validation."""
    images, y = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    x = np.maximum(images @ generator.normal(size=(64, 640)) / 8 - 2, 0).astype(np.float32)
    order = generator.permutation(len(x))
    x, y = x[order], y[order]
    return x[:1300], y[:1300], x[1300:], y[1300:]


def logits_of(linear: Linear, x: Array) -> Array:
    return np.asarray(x.astype(np.float64) @ linear.weight.numpy().T + linear.bias.numpy())


def log_loss(logits: Array, y: Array) -> float:
    return float((logsumexp(logits, 1) - logits[np.arange(len(y)), y]).mean())


def accuracy(linear: Linear, x: Array, y: Array) -> float:
    return float((logits_of(linear, x).argmax(1) == y).mean())


def probabilities(linear: Linear, x: Array) -> Array:
    logits = logits_of(linear, x)
    return np.asarray(np.exp(logits - logsumexp(logits, 1, keepdims=True)))


def tensors(x: Array, y: Array) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(x), torch.from_numpy(y)


class Blocks:
    """Rows in blocks of ``sizes`` in turn; counts the blocks that are alive at the same time."""

    def __init__(self, x: torch.Tensor, *sizes: int) -> None:
        self.x, self.sizes, self.shape = x, sizes, (x.shape[0], x.shape[1])
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most_alive = 0

    def blocks(self) -> Iterator[torch.Tensor]:
        start, turn = 0, 0
        while start < len(self.x):
            size = self.sizes[turn % len(self.sizes)]
            block = self.x[start : start + size].clone()
            self.alive.add(block)
            self.most_alive = max(self.most_alive, len(self.alive))
            yield block
            start, turn = start + size, turn + 1


# The minimum


@pytest.mark.parametrize(("classes", "l2"), [(2, 1e-3), (5, 1e-2), (5, 1.0)])
def test_same_minimum_as_scikit_learn(classes: int, l2: float) -> None:
    x, y = blobs(300, 12, classes)
    z = standardized(x)
    # With two classes scikit-learn fits one weight vector w; two free ones are w / 2 and -w / 2,
    # whose penalty is half as large.
    strength = l2 * 300 if classes > 2 else l2 * 300 / 2
    reference = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=5000)
    expected = reference.fit(z, y).predict_proba(z)
    solution = solve(*tensors(x, y), classes, l2=l2, tolerance=1e-12)
    assert np.abs(probabilities(solution.linear, x) - expected).max() < 1e-5
    assert solution.path[0].converged


def test_weights_are_those_of_an_independent_minimization() -> None:
    x, y = blobs(200, 6, 4)
    z, onehot, l2 = standardized(x), np.eye(4)[y], 0.02

    def objective(flat: Array) -> tuple[float, Array]:
        w, b = flat[:24].reshape(4, 6), flat[24:]
        logits = z @ w.T + b
        p = np.exp(logits - logsumexp(logits, 1, keepdims=True))
        loss = log_loss(logits, y) + l2 / 2 * (w**2).sum()
        residual = (p - onehot) / 200
        return loss, np.concatenate([(residual.T @ z + l2 * w).ravel(), residual.sum(0)])

    found = minimize(objective, np.zeros(28), jac=True, method="BFGS", options={"gtol": 1e-9})
    variance = x.var(0)
    expected = found.x[:24].reshape(4, 6) / np.sqrt(variance + VAR_SMOOTHINGS[0] * variance.mean())
    solution = solve(*tensors(x, y), 4, l2=l2, tolerance=1e-13)
    assert np.abs(solution.linear.weight.numpy() - expected).max() < 1e-6
    assert solution.path[0].objective == pytest.approx(found.fun, abs=1e-10)


@pytest.mark.parametrize("count", [640, 1300])
def test_single_precision_ends_at_the_minimum_of_double_precision(
    digits: tuple[Array, Array, Array, Array], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver_path, "DOUBLE", 0)
    x, y = digits[0][:count], digits[1][:count]
    z = standardized(x.astype(np.float64))
    reference = LogisticRegression(C=1 / (1e-2 * count), tol=1e-10, max_iter=5000).fit(z, y)
    expected = reference.predict_proba(z)
    least = -np.log(expected[np.arange(count), y]).mean() + 5e-3 * (reference.coef_**2).sum()
    for tolerance, bound in [(1e-5, 1e-2), (1e-12, 1e-5)]:
        solution = solve(*tensors(x, y), 10, l2=1e-2, tolerance=tolerance)
        assert solution.path[0].converged
        # The step that is left out promises less than the tolerance; the minimum is not far below.
        assert abs(solution.path[0].objective / least - 1) < 30 * tolerance + 1e-7
        assert np.abs(probabilities(solution.linear, x) - expected).max() < bound


def test_a_mean_a_thousand_times_the_spread_costs_no_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(solver_path, "DOUBLE", 0)
    x, y = blobs(400, 20, 3)
    x = (x + 1000 * x.std(0)).astype(np.float32)
    z = standardized(x.astype(np.float64))
    reference = LogisticRegression(C=1 / (1e-2 * 400), tol=1e-10, max_iter=5000).fit(z, y)
    solution = solve(*tensors(x, y), 3, l2=1e-2, tolerance=1e-10)
    expected = reference.predict_proba(z)
    assert np.abs(probabilities(solution.linear, x) - expected).max() < 1e-4


def test_equal_input_gives_equal_bits(digits: tuple[Array, Array, Array, Array]) -> None:
    x, y, x_val, y_val = map(torch.from_numpy, digits)
    first, second = (solve(x, y, 10, x_val=x_val, y_val=y_val) for _ in range(2))
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert torch.equal(first.linear.bias, second.linear.bias)
    assert first.path == second.path


@pytest.mark.parametrize("weighted", [False, True])
def test_each_label_has_the_minimum_of_scikit_learns_binary_problem(weighted: bool) -> None:
    x, classes = blobs(400, 10, 6)
    y = np.stack([classes < 2, classes % 2 == 1, classes == 5], 1).astype(np.float64)
    z, l2 = standardized(x), 3e-3
    positive = np.array([3.0, 0.5, 8.0]) if weighted else np.ones(3)
    solution = solve(
        *tensors(x, y),
        3,
        task="multilabel",
        l2=l2,
        class_weights=torch.from_numpy(positive) if weighted else None,
        tolerance=1e-12,
    )
    found = expit(logits_of(solution.linear, x))
    for k in range(3):
        total = (1 + (positive[k] - 1) * y[:, k]).sum()
        reference = LogisticRegression(
            C=1 / (l2 * total), class_weight={0: 1, 1: positive[k]}, tol=1e-10, max_iter=5000
        ).fit(z, y[:, k])
        assert np.abs(found[:, k] - reference.predict_proba(z)[:, 1]).max() < 1e-5


@pytest.mark.parametrize("shape", [(300, 15), (40, 200), (600, 700)])
def test_ridge_is_scikit_learns_along_the_whole_path(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=shape) * generator.uniform(0.1, 10, shape[1]) + 5
    y = x[:, :3] @ generator.normal(size=(3, 2)) + generator.normal(size=(shape[0], 2)) + 7
    z = standardized(x)
    held = generator.normal(size=(50, shape[1])) + 5
    y_held = held[:, :3] @ generator.normal(size=(3, 2))
    solution = solve(
        *tensors(x, y),
        2,
        task="regression",
        var_smoothing=1.0,
        x_val=torch.from_numpy(held),
        y_val=torch.from_numpy(y_held),
    )
    assert [step.l2 for step in solution.path] == list(STRENGTHS)
    losses = {}
    for step in solution.path:
        reference = Ridge(alpha=step.l2 * shape[0]).fit(z, y)
        predicted = reference.predict(standardized(held, x))
        losses[step.l2] = ((predicted - y_held) ** 2).mean()
        assert step.val_loss == pytest.approx(losses[step.l2], rel=1e-6)
    assert solution.l2 == min(losses, key=lambda l2: losses[l2])
    expected = Ridge(alpha=solution.l2 * shape[0]).fit(z, y).predict(z)
    assert np.abs(logits_of(solution.linear, x) - expected).max() < 1e-6


def test_ridge_that_is_too_large_to_decompose_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = blobs(300, 30, 3)
    y = x[:, :2] ** 2
    direct = solve(*tensors(x, y), 2, task="regression", l2=1e-2)
    monkeypatch.setattr(solver_path, "DIRECT", 10)
    solution = solve(*tensors(x, y), 2, task="regression", l2=1e-2, tolerance=1e-13)
    assert solution.path[0].iterations > 0
    assert torch.allclose(solution.linear.weight, direct.linear.weight, rtol=1e-5, atol=1e-6)


def test_class_weights_are_scikit_learns() -> None:
    x, y = blobs(500, 8, 3)
    kept = (y != 2) | (np.arange(500) % 9 == 0)
    x, y = x[kept], y[kept]
    balanced = task_named("multiclass").balanced_weights(torch.from_numpy(y), 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    assert np.abs(balanced.numpy() - expected).max() < 1e-12
    z, l2 = standardized(x), 1e-2
    # "balanced" weights sum to N, so that scikit-learn's sum is N times the weighted mean.
    reference = LogisticRegression(
        C=1 / (l2 * len(x)), class_weight="balanced", tol=1e-10, max_iter=5000
    ).fit(z, y)
    solution = solve(*tensors(x, y), 3, l2=l2, class_weights=balanced, tolerance=1e-12)
    found = probabilities(solution.linear, x)
    assert np.abs(found - reference.predict_proba(z)).max() < 1e-5


# The choice of a strength


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
def test_standardization_is_chosen_by_which_features_tell_the_classes(
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
def test_other_tasks_choose_without_validation_too(task: Any) -> None:
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


# Features that do not fit in memory


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("count", [100, 1300])
def test_blocks_give_the_same_solution_as_a_tensor(
    digits: tuple[Array, Array, Array, Array], task: Any, count: int
) -> None:
    x, y, x_val, y_val = map(torch.from_numpy, digits)
    x, y = x[:count], y[:count]
    if task != "multiclass":
        y, y_val = torch.eye(10)[y], torch.eye(10)[y_val]
    whole = solve(x, y, 10, task=task, x_val=x_val, y_val=y_val, tolerance=1e-10)
    blocks, val_blocks = Blocks(x, 7, 64, 300, 1), Blocks(x_val, 100)
    parts = solve(blocks, y, 10, task=task, x_val=val_blocks, y_val=y_val, tolerance=1e-10)
    assert parts.l2 == whole.l2
    difference = logits_of(whole.linear, digits[2]) - logits_of(parts.linear, digits[2])
    assert np.abs(difference).max() < 1e-3


def test_blocks_can_be_held_out() -> None:
    x, y = tensors(*blobs(2500, 10, 4))
    parts, whole = solve(Blocks(x, 333), y, 4), solve(x, y, 4)
    assert parts.l2 == whole.l2
    assert torch.allclose(parts.linear.weight, whole.linear.weight, atol=1e-3)


def test_few_blocks_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver_path, "DOUBLE", 0)
    monkeypatch.setattr(solver_rows, "CHUNK", 2**12)
    monkeypatch.setattr(solver_rows, "BLOCK", 2**14)
    x, y = tensors(*blobs(5000, 64, 4))
    rows = Blocks(x.float(), 64)
    solve(rows, y, 4)
    assert rows.most_alive <= 3


def test_blocks_that_contradict_their_shape_are_refused() -> None:
    rows = Blocks(torch.ones(10, 3), 4)
    rows.shape = (12, 3)
    with pytest.raises(ValueError, match="the blocks have 10 rows, the shape says 12"):
        solve(rows, torch.zeros(12, dtype=torch.int64), 2, l2=1)
    rows.shape = (10, 4)
    with pytest.raises(ValueError, match=r"shape \(4, 3\), expected \[n, 4\]"):
        solve(rows, torch.zeros(10, dtype=torch.int64), 2, l2=1)


# Few images, rare classes, degenerate features


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
    with pytest.raises(ValueError, match="no validation image"):
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


def test_a_label_that_all_images_have_or_none_is_a_certainty_within_reason() -> None:
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


# What is refused


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_no_numbers_are_refused(bad: float) -> None:
    x = torch.ones(10, 3)
    x[7, 2] = bad
    with pytest.raises(ValueError, match="feature 2 has values that are NaN, infinite"):
        solve(x, torch.arange(10) % 2, 2, l2=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"l2": 0}, "l2 is 0, expected a positive number"),
        ({"l2": (1.0, float("nan"))}, "l2 is nan"),
        ({"l2": ()}, "l2 is empty"),
        ({"y": torch.tensor([0, 1, 2])}, "class indices 0 to 2, expected 0 to 1"),
        ({"y": torch.tensor([0, -1, 1])}, "class indices -1 to 1"),
        ({"y": torch.tensor([0, 1])}, r"y has shape \(2,\), expected \(3,\)"),
        ({"y": torch.ones(3)}, "float32, expected class indices"),
        ({"y": torch.full((3, 2), 0.5), "task": "multilabel"}, "values other than 0 and 1"),
        ({"y": torch.full((3, 2), torch.nan), "task": "regression"}, "NaN or infinite"),
        ({"x": torch.ones(0, 2), "y": torch.ones(0).long()}, r"x has shape \(0, 2\)"),
        ({"x_val": torch.ones(1, 2)}, "x_val and y_val belong together"),
        ({"x_val": torch.ones(1, 4), "y_val": torch.zeros(1).long()}, "x_val has 4 features"),
        ({"class_weights": torch.ones(3)}, "class_weights must be 2 positive numbers"),
        ({"class_weights": torch.tensor([1.0, 0.0])}, "class_weights must be 2 positive numbers"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.ones(3, 2), "y": torch.tensor([0, 1, 0]), "num_outputs": 2}
    with pytest.raises(ValueError, match=message):
        solve(**{**arguments, **changes})


# The products


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
@pytest.mark.parametrize(("outputs", "width"), [(1, 1), (3, 5), (10, 64), (70, 33)])
def test_products_are_those_of_matrices(n: int, outputs: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    z, weight, r = (
        torch.randn(*shape, generator=generator)
        for shape in [(n, width), (outputs, width), (n, outputs)]
    )
    forward, backward = solver_rows.times(z, weight), solver_rows.transposed_times(r, z)
    assert np.abs(forward.numpy() - z.double().numpy() @ weight.double().numpy().T).max() < 1e-4
    assert np.abs(backward.numpy() - r.double().numpy().T @ z.double().numpy()).max() < 1e-4
