"""Predictions for images that are left out equal those of a fit without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from headkit.adapters.fitting.kernel.gram import LevelKernel, average
from headkit.adapters.fitting.kernel.leave_out import RidgeInverse

N, RIDGE = 42, 0.3
GROUPS = ((0, 7), (7, 14), (14, 15), (15, 30), (30, 38))  # the last four rows are never left out


@pytest.fixture(scope="module", params=[False, True], ids=["equal", "weighted"])
def problem(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Two levels of different widths and scales, and scikit-learn's features for both."""
    generator = torch.Generator().manual_seed(0)
    levels = [
        torch.randn(N, 200, generator=generator) + 3,
        9 * torch.randn(N, 50, generator=generator),
    ]
    y = torch.randn(N, 3, generator=generator).double()
    weight = torch.rand(N, generator=generator).double() + 0.5 if request.param else None
    kernels = [LevelKernel.from_features(x) for x in levels]
    inverse = RidgeInverse(average(kernels), y, RIDGE, weight)
    columns = []
    for x in levels:
        centred = x.double().numpy() - x.double().numpy().mean(0)
        columns.append(centred / np.sqrt(2 * np.square(centred).sum() / N))
    return {
        "levels": levels,
        "kernels": kernels,
        "inverse": inverse,
        "x": np.concatenate(columns, 1),
        "y": y.numpy(),
        "weight": None if weight is None else weight.numpy(),
    }


def _sklearn(problem: dict[str, Any], rows: np.ndarray) -> Ridge:
    weight = problem["weight"]
    return Ridge(alpha=RIDGE).fit(
        problem["x"][rows], problem["y"][rows], None if weight is None else weight[rows]
    )


def test_weights_and_bias_are_those_of_scikit_learn(problem: dict[str, Any]) -> None:
    inverse, kernels, levels = problem["inverse"], problem["kernels"], problem["levels"]
    matrix = torch.cat(
        [one.weight(x, inverse.alpha) / 2 for one, x in zip(kernels, levels, strict=True)], 1
    )
    means = torch.cat([one.mean for one in kernels])
    bias = inverse.bias(average(kernels)) - matrix @ means
    found = torch.cat(levels, 1).double() @ matrix.T + bias
    expected = _sklearn(problem, np.arange(N)).predict(problem["x"])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_a_group_is_predicted_as_if_it_had_not_been_there(problem: dict[str, Any]) -> None:
    found = problem["inverse"].leave_out(GROUPS).numpy()
    for start, end in GROUPS:
        rest = np.setdiff1d(np.arange(N), np.arange(start, end))
        expected = _sklearn(problem, rest).predict(problem["x"][start:end])
        np.testing.assert_allclose(found[start:end], expected, atol=1e-10)
    assert not found[38:].any()


def test_a_group_and_a_fold_are_left_out_together(problem: dict[str, Any]) -> None:
    fold, others = (7, 15), (GROUPS[0], *GROUPS[3:])
    found = problem["inverse"].leave_out_twice(fold, others).numpy()
    without_fold = np.setdiff1d(np.arange(N), np.arange(*fold))
    expected = _sklearn(problem, without_fold).predict(problem["x"][slice(*fold)])
    np.testing.assert_allclose(found[slice(*fold)], expected, atol=1e-10)
    for start, end in others:
        rest = np.setdiff1d(without_fold, np.arange(start, end))
        expected = _sklearn(problem, rest).predict(problem["x"][start:end])
        np.testing.assert_allclose(found[start:end], expected, atol=1e-10)


def test_levels_count_equally_and_a_constant_level_counts_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    wide, narrow = torch.randn(20, 900, generator=generator), torch.full((20, 3), 7.5)
    assert float(LevelKernel.from_features(1000 * wide).kernel.trace()) == pytest.approx(20)
    constant = LevelKernel.from_features(narrow)
    assert constant.scale == 0
    assert not constant.kernel.any()
    assert not constant.weight(narrow, torch.ones(20, 2, dtype=torch.float64)).any()


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN, infinite or too large"):
        LevelKernel.from_features(torch.tensor([[1.0, 2.0], [float("nan"), 1.0]]))
