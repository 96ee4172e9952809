from typing import Any

import numpy as np
import pytest
import torch
from headkit.adapters.solver import logistic_regression
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler


def standardized(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    variance = x.var(0)
    return np.asarray((x - x.mean(0)) / np.sqrt(variance + 0.1 * variance.mean()))


@pytest.mark.parametrize(("classes", "l2"), [(2, 1e-3), (5, 1e-2), (5, 1.0)])
def test_same_minimum_as_scikit_learn(classes: int, l2: float) -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, classes, 300)
    centers = generator.normal(size=(classes, 12))
    x = (centers[y] + generator.normal(size=(300, 12))) * generator.uniform(0.1, 10, 12) + 3
    z = standardized(x)
    # With two classes scikit-learn fits one weight vector w; two free ones are w / 2 and -w / 2,
    # whose penalty is half as large.
    strength = l2 * 300 if classes > 2 else l2 * 300 / 2
    reference = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=5000)
    expected = reference.fit(z, y).predict_proba(z)
    solution = logistic_regression(
        torch.from_numpy(x), torch.from_numpy(y), classes, l2=l2, tolerance=1e-9
    )
    logits = torch.from_numpy(x) @ solution.weight.T + solution.bias
    assert np.abs(logits.softmax(1).numpy() - expected).max() < 1e-5


def test_feature_that_never_varies_gets_no_weight() -> None:
    x = torch.randn(50, 3)
    x[:, 1] = 7
    solution = logistic_regression(x, (x[:, 0] > 0).long(), 2)
    assert torch.equal(solution.weight[:, 1], torch.zeros(2, dtype=torch.float64))
    assert solution.weight.isfinite().all()


def test_strength_must_be_positive() -> None:
    with pytest.raises(ValueError, match="l2 is 0"):
        logistic_regression(torch.ones(2, 1), torch.tensor([0, 1]), 2, l2=0)


def test_features_that_hardly_vary_do_not_drown_the_others_in_a_few_images() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 1010)
    loud = (2 * y[:, None] - 1) + 2 * generator.normal(size=(1010, 20))
    quiet = 0.01 * generator.normal(size=(1010, 1000))
    x = np.concatenate([loud, quiet], 1)
    solution = logistic_regression(torch.from_numpy(x[:20]), torch.from_numpy(y[:20]), 2)
    logits = torch.from_numpy(x[20:]) @ solution.weight.T + solution.bias
    z = StandardScaler().fit(x[:20]).transform(x)
    unfloored = LogisticRegression(C=1 / (1e-3 * 20), max_iter=5000).fit(z[:20], y[:20])
    accuracy = (logits.argmax(1).numpy() == y[20:]).mean()
    assert accuracy > unfloored.score(z[20:], y[20:]) + 0.1
    assert accuracy > 0.85
