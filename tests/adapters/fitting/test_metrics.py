from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from sklearn import metrics as reference
from torch import Tensor

from headkit.adapters.fitting.metrics import (
    fit_temperature,
    measure,
    measure_more,
    measure_outputs,
    most_confused,
)
from headkit.adapters.heads.tasks.statistics import HIGHEST, LOWEST, calibration_error


def _multiclass(noise: float, scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (400,), generator=generator)
    z = torch.nn.functional.one_hot(y, 5) + noise * torch.randn(400, 5, generator=generator)
    return scale * z.double(), y


def _multilabel() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(400, 4, generator=generator) > 0.7).float()
    z = 2 * y - 1 + torch.randn(400, 4, generator=generator)
    return 3 * (z.double() * 4).round() / 4, y  # with ties


@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
def test_temperature_is_the_minimum_that_scipy_finds(scale: float) -> None:
    z, y = _multiclass(0.7, scale)
    found = minimize_scalar(
        lambda t: reference.log_loss(y.numpy(), (z / t).softmax(1).numpy()),
        bounds=(LOWEST, HIGHEST),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(z, y, "multiclass") == pytest.approx(found.x, rel=1e-3)


def test_temperature_of_labels_is_the_minimum_that_scipy_finds() -> None:
    z, y = _multilabel()
    found = minimize_scalar(
        lambda t: reference.log_loss(y.flatten().numpy(), (z / t).sigmoid().flatten().numpy()),
        bounds=(LOWEST, HIGHEST),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(z, y, "multilabel") == pytest.approx(found.x, rel=1e-3)


def test_temperature_stays_one_if_no_other_is_better() -> None:
    z, y = _multiclass(0.0, 1.0)  # all classes are separated
    assert fit_temperature(z, y, "multiclass") == 1
    assert fit_temperature(torch.randn(50, 5), torch.zeros(50, dtype=torch.long), "multiclass") > 1
    assert fit_temperature(torch.randn(9, 1), torch.randn(9, 1), "regression") == 1


def test_metrics_of_classes_are_scikit_learns() -> None:
    z, y = _multiclass(0.7, 3.0)
    found = measure(z, y, "multiclass", 2.0)
    predicted, probabilities = z.argmax(1).numpy(), (z / 2).softmax(1).numpy()
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(y, predicted), abs=1e-6)
    assert found["log_loss"] == pytest.approx(reference.log_loss(y, probabilities), abs=1e-6)
    recall = reference.recall_score(y, predicted, average=None)
    assert found["recall"] == pytest.approx(recall, abs=1e-4)
    few = measure(z[y != 3], y[y != 3], "multiclass")
    assert few["recall"][3] is None


def test_calibration_error_is_the_gap_in_each_bin() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.55, 1.0], dtype=torch.float64)
    correct = torch.tensor([True, True, False, False, True])
    expected = (abs(3.85 - 3) + abs(0.55 - 0)) / 5
    assert calibration_error(confidence.numpy(), correct.numpy()) == pytest.approx(expected)
    generator = np.random.default_rng(0)
    confidence = torch.from_numpy(generator.uniform(0.5, 1, 100_000))
    correct = torch.from_numpy(generator.uniform(size=100_000)) < confidence
    assert calibration_error(confidence.numpy(), correct.numpy()) < 0.01


def test_metrics_of_labels_are_scikit_learns() -> None:
    z, y = _multilabel()
    found = measure(z, y, "multilabel", 2.0)
    predicted = (z > 0).numpy()
    truth = y.numpy().astype(bool)
    assert found["exact_match"] == pytest.approx(reference.accuracy_score(truth, predicted))
    for average in ("micro", "macro"):
        expected = reference.f1_score(truth, predicted, average=average)
        assert found[f"{average}_f1"] == pytest.approx(expected, abs=1e-6)
    expected = reference.average_precision_score(truth, z.numpy(), average="macro")
    assert found["mean_average_precision"] == pytest.approx(expected, abs=1e-6)
    probabilities = (z / 2).sigmoid()
    expected = reference.log_loss(truth.ravel(), probabilities.flatten().numpy())
    assert found["log_loss"] == pytest.approx(expected, abs=1e-6)
    y[:, 1] = 0  # a label without a positive has no precision to average
    expected = reference.average_precision_score(truth[:, [0, 2, 3]], z[:, [0, 2, 3]].numpy())
    found = measure(z, y, "multilabel")
    assert found["mean_average_precision"] == pytest.approx(expected, abs=1e-6)
    assert found["recall"][1] is None


def test_metrics_of_numbers_are_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(200, 3, generator=generator)
    z = y + 0.5 * torch.randn(200, 3, generator=generator)
    found = measure(z, y, "regression")
    assert found["mse"] == pytest.approx(reference.mean_squared_error(y, z), abs=1e-6)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(y, z), abs=1e-6)
    assert found["r2"] == pytest.approx(reference.r2_score(y, z), abs=1e-6)
    y[:, 0] = 1
    assert measure(z, y, "regression")["r2"] == pytest.approx(reference.r2_score(y, z), abs=1e-6)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_temperature_never_raises_the_log_loss(task: Any) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        scale, count = 10 ** generator.uniform(-3, 3), int(generator.integers(1, 30))
        z = scale * generator.normal(size=(count, 3))
        drawn = generator.integers(0, 3, count)
        y = drawn if task == "multiclass" else np.eye(3, dtype=np.int64)[drawn]
        found = fit_temperature(z, y, task)
        assert LOWEST - 1e-9 <= found <= HIGHEST + 1e-9
        calibrated, plain = measure(z, y, task, found)["log_loss"], measure(z, y, task)["log_loss"]
        assert calibrated <= plain


def test_arrays_and_tensors_of_any_precision_measure_the_same() -> None:
    z, y = _multiclass(0.7, 3.0)
    z = z.float()
    expected = measure(z.double().numpy(), y.numpy(), "multiclass", 1.5)
    assert measure(z, y, "multiclass", 1.5) == expected
    assert fit_temperature(z, y, "multiclass") == fit_temperature(
        z.double().numpy(), y, "multiclass"
    )


def test_extreme_logits_stay_finite() -> None:
    z, y = np.array([[1e6, -1e6], [-1e6, 1e6]]), np.array([0, 0])
    assert measure(z, y, "multiclass")["log_loss"] == pytest.approx(1e6)
    assert measure(z, np.array([[1, 0], [1, 0]]), "multilabel")["log_loss"] == pytest.approx(5e5)
    assert fit_temperature(z, y, "multiclass") == HIGHEST
    with pytest.raises(ValueError, match="logits are empty"):
        measure(z[:0], y[:0], "multiclass")


@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_of_an_evaluation_of_classes_are_scikit_learns(classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, classes, (300,), generator=generator)
    z = 2 * torch.nn.functional.one_hot(y, classes)
    z = z + 1.5 * torch.randn(300, classes, generator=generator).double()
    predicted, probabilities = z.argmax(1).numpy(), (z / 1.7).softmax(1).numpy()
    found = measure_more(z, y, "multiclass", 1.7)
    for average in ("macro", "micro"):
        expected = reference.precision_recall_fscore_support(y, predicted, average=average)
        for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            assert found[f"{average}_{name}"] == pytest.approx(value, abs=1e-6)
    weighted = reference.f1_score(y, predicted, average="weighted")
    assert found["weighted_f1"] == pytest.approx(weighted, abs=1e-6)
    balanced = reference.balanced_accuracy_score(y, predicted)
    assert found["balanced_accuracy"] == pytest.approx(balanced, abs=1e-6)
    brier = reference.brier_score_loss(
        y, probabilities[:, 1] if classes == 2 else probabilities, labels=list(range(classes))
    )
    assert found["brier"] == pytest.approx(brier, abs=1e-6)
    outputs = measure_outputs(z, y, "multiclass", 1.7)
    columns = reference.precision_recall_fscore_support(y, predicted)
    for name, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert outputs[name] == pytest.approx(column.tolist(), abs=1e-6)


def test_classes_that_are_never_predicted_or_absent_are_undefined_and_averaged_as_in_scikit() -> (
    None
):
    z, y = _multiclass(0.7, 3.0)
    z = torch.nn.functional.pad(z, (0, 1), value=-100.0)  # class 5 is neither true nor predicted
    z[:, 1] = -50.0  # class 1 is never predicted
    z, y = z[y != 3], y[y != 3]  # class 3 has no images, but is predicted
    outputs = measure_outputs(z, y, "multiclass")
    columns = reference.precision_recall_fscore_support(
        y, z.argmax(1).numpy(), labels=list(range(6)), zero_division=np.nan
    )
    for name, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        expected = [None if np.isnan(value) else value for value in column]
        assert [one is None for one in outputs[name]] == [one is None for one in expected]
        assert [one or 0 for one in outputs[name]] == pytest.approx(
            [one or 0 for one in expected], abs=1e-6
        )
    assert (outputs["precision"][1], outputs["recall"][3], outputs["f1"][5]) == (None, None, None)
    macro = reference.precision_recall_fscore_support(
        y, z.argmax(1).numpy(), average="macro", zero_division=0
    )
    found = measure_more(z, y, "multiclass")
    for name, value in zip(("precision", "recall", "f1"), macro[:3], strict=True):
        assert found[f"macro_{name}"] == pytest.approx(value, abs=1e-6)


def test_most_confused_pairs_are_the_largest_off_the_diagonal() -> None:
    z, y = _multiclass(1.5, 1.0)
    matrix = reference.confusion_matrix(y, z.argmax(1).numpy())
    off = [(i, j, int(matrix[i, j])) for i in range(5) for j in range(5) if i != j and matrix[i, j]]
    found = most_confused(z, y)
    assert sorted((c.true, c.predicted, c.count) for c in found) == off
    counts = [c.count for c in found]
    assert counts == sorted(counts, reverse=True)
    assert most_confused(z, y, 2) == found[:2]
    assert all(c.images == int((y == c.true).sum()) for c in found)


def test_metrics_of_an_evaluation_of_labels_are_scikit_learns() -> None:
    z, y = _multilabel()
    y[:, 3] = 0  # a label without images
    predicted = (z > 0).numpy()
    found = measure_more(z, y, "multilabel", 2.0)
    for average in ("macro", "micro"):
        expected = reference.precision_recall_fscore_support(
            y, predicted, average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall"), expected, strict=False):
            assert found[f"{average}_{name}"] == pytest.approx(value, abs=1e-6)
    brier = reference.brier_score_loss(y.flatten(), (z / 2).sigmoid().flatten())
    assert found["brier"] == pytest.approx(brier, abs=1e-6)
    outputs = measure_outputs(z, y, "multilabel", 2.0)
    columns = reference.precision_recall_fscore_support(y, predicted, zero_division=np.nan)
    for name, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        expected = [None if np.isnan(value) else value for value in column]
        assert [one is None for one in outputs[name]] == [one is None for one in expected]
        assert [one or 0 for one in outputs[name]] == pytest.approx(
            [one or 0 for one in expected], abs=1e-5
        )
    precision = [reference.average_precision_score(y[:, k], z[:, k]) for k in range(3)]
    assert outputs["average_precision"][:3] == pytest.approx(precision, abs=1e-5)
    assert outputs["average_precision"][3] is None


def test_metrics_of_an_evaluation_of_numbers_are_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(2)
    y = torch.randn(50, 3, generator=generator).double() * torch.tensor([1.0, 100.0, 1e-4])
    y[:, 1] = 5.0  # constant
    z = y + y.std(0) * 0.3 * torch.randn(50, 3, generator=generator).double()
    found = measure_more(z, y, "regression")
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(y, z), abs=1e-6)
    outputs = measure_outputs(z, y, "regression")
    raw = {"multioutput": "raw_values"}
    assert outputs["mae"] == pytest.approx(reference.mean_absolute_error(y, z, **raw), rel=1e-5)
    rmse = reference.root_mean_squared_error(y, z, **raw)
    assert outputs["rmse"] == pytest.approx(rmse, rel=1e-5)
    assert outputs["r2"] == pytest.approx(reference.r2_score(y, z, **raw), abs=1e-5)


@pytest.mark.parametrize(("hits", "images"), [(0, 1), (1, 1), (0, 30), (118, 172), (9999, 10_000)])
def test_interval_of_the_accuracy_is_scipys_wilson_interval(hits: int, images: int) -> None:
    z = torch.eye(2)[[1] * hits + [0] * (images - hits)]
    y = torch.ones(images, dtype=torch.long)
    expected = binomtest(hits, images).proportion_ci(0.95, "wilson")
    found = measure(z, y, "multiclass")["accuracy_interval"]
    assert found == pytest.approx(list(expected), abs=1e-4)
    assert 0 <= found[0] <= hits / images <= found[1] <= 1
    labels = torch.stack([y, y], 1)
    found = measure(2 * torch.stack([z[:, 1]] * 2, 1) - 1, labels, "multilabel")
    assert found["exact_match_interval"] == pytest.approx(list(expected), abs=1e-4)
