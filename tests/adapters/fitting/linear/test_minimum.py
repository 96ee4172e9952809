import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, logsumexp
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils.class_weight import compute_class_weight

from headkit.adapters.fitting.linear.solve import STRENGTHS, VAR_SMOOTHINGS, solve
from headkit.adapters.heads.tasks import get_task

from .problems import Array, blobs, log_loss, logits_of, probabilities, standardized, tensors


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
    monkeypatch.setattr("headkit.adapters.fitting.linear.regularization_path.MAX_DOUBLE_SIZE", 0)
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
    monkeypatch.setattr("headkit.adapters.fitting.linear.regularization_path.MAX_DOUBLE_SIZE", 0)
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
    monkeypatch.setattr("headkit.adapters.fitting.linear.regularization_path.MAX_RIDGE_SIDE", 10)
    solution = solve(*tensors(x, y), 2, task="regression", l2=1e-2, tolerance=1e-13)
    assert solution.path[0].iterations > 0
    assert torch.allclose(solution.linear.weight, direct.linear.weight, rtol=1e-5, atol=1e-6)


def test_class_weights_are_scikit_learns() -> None:
    x, y = blobs(500, 8, 3)
    kept = (y != 2) | (np.arange(500) % 9 == 0)
    x, y = x[kept], y[kept]
    balanced = get_task("multiclass").balanced_weights(torch.from_numpy(y), 3)
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
