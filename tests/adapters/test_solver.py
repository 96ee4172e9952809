import numpy as np
import pytest
import torch
from headkit.adapters.solver import logistic_regression
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler


@pytest.mark.parametrize(("classes", "l2"), [(2, 1e-3), (5, 1e-2), (5, 1.0)])
def test_same_minimum_as_scikit_learn(classes: int, l2: float) -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, classes, 300)
    centers = generator.normal(size=(classes, 12))
    x = (centers[y] + generator.normal(size=(300, 12))) * generator.uniform(0.1, 10, 12) + 3
    scaler = StandardScaler().fit(x)
    # With two classes scikit-learn fits one weight vector w; two free ones are w / 2 and -w / 2,
    # whose penalty is half as large.
    strength = l2 * 300 if classes > 2 else l2 * 300 / 2
    reference = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=5000)
    expected = reference.fit(scaler.transform(x), y).predict_proba(scaler.transform(x))
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
