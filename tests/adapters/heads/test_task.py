import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn import metrics as reference
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional

from headkit.adapters.errors import HeadFormatError
from headkit.adapters.heads.tasks import DEFAULT, TASKS, Task, get_task
from headkit.adapters.heads.tasks.statistics import average_precision, best_temperature
from tests.heads import random_head

ROOT = Path(__file__).resolve().parents[3]
TASKS_FOLDER = ROOT / "adapters" / "heads" / "tasks"
PACKAGES = ("adapters", "benchmarks", "export", "headkit", "registry")
NAMES = ("multiclass", "multilabel", "regression")
N, OUTPUTS = 60, 4

MULTICLASS, MULTILABEL, REGRESSION = (TASKS[name] for name in NAMES)
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=NAMES)
with_classes = pytest.mark.parametrize("task", [MULTICLASS, MULTILABEL], ids=NAMES[:2])


def logits_and_targets(task: Task) -> tuple[NDArray[Any], NDArray[Any]]:
    generator = np.random.default_rng(0)
    logits = 3 * generator.normal(size=(N, OUTPUTS))
    targets: dict[str, NDArray[Any]] = {
        "multiclass": generator.integers(0, OUTPUTS, N),
        "multilabel": (generator.random((N, OUTPUTS)) > 0.6).astype(np.float32),
        "regression": generator.normal(size=(N, OUTPUTS)).astype(np.float32),
    }
    return logits, targets[task.name]


def tensors(task: Task) -> tuple[Tensor, Tensor]:
    logits, y = logits_and_targets(task)
    return torch.from_numpy(logits), torch.from_numpy(y)


# The table


def test_tasks_are_found_by_name() -> None:
    assert tuple(TASKS) == NAMES
    assert DEFAULT == "multiclass"
    for name in NAMES:
        assert get_task(name) is TASKS[name]
        assert TASKS[name].name == name
    message = "task is 'ranking', expected one of multiclass, multilabel, regression"
    with pytest.raises(ValueError, match=message):
        get_task("ranking")
    with pytest.raises(HeadFormatError, match=message):
        random_head(task="ranking")


def test_each_attribute_in_files_identifies_one_task() -> None:
    for attribute in ("adapter_version", "problem_type", "score"):
        assert len({getattr(task, attribute) for task in TASKS.values()}) == len(TASKS)
    assert [task.adapter_version for task in TASKS.values()] == [1, 2, 3]


@every_task
def test_only_classes_have_probabilities(task: Task) -> None:
    assert bool(task.onnx_operator) == task.has_classes
    assert ("reliability" in task.plots) == task.has_classes
    assert task.exclusive <= task.has_classes
    logits, y = logits_and_targets(task)
    assert task.score in task.measure(logits, y.astype(np.float64))


def test_tasks_import_no_torch() -> None:
    code = (
        "import sys, json, headkit.adapters.heads.head, headkit.adapters.heads.tasks;"
        "print(json.dumps([m for m in ('torch', 'timm') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []


# No other module compares names


def comparisons(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that depend on a task's name: comparisons, keys of dicts, cases."""
    for node in ast.walk(tree):
        decided: list[ast.AST | None] = []
        if isinstance(node, ast.Compare):
            decided = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            decided = [*node.keys]
        elif isinstance(node, ast.match_case):
            decided = [node.pattern]
        constants = (
            part.value
            for value in decided
            if value is not None
            for part in ast.walk(value)
            if isinstance(part, ast.Constant)
        )
        if any(value in NAMES for value in constants if isinstance(value, str)):
            yield getattr(node, "lineno", 0)


def test_no_other_module_compares_a_task_with_a_name() -> None:
    files = {file.resolve() for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert len(files) > 100
    found = {
        file: list(comparisons(ast.parse(file.read_text(encoding="utf-8"))))
        for file in files
        if file.parent != TASKS_FOLDER
    }
    assert len(files) - len(found) == 6
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "code",
    [
        "if task == 'multilabel': pass",
        "x = 1 if 'regression' != head.task else 2",
        "y = task in (None, 'multiclass')",
        "z = {'multiclass': 1, 'multilabel': 2}",
        "match task:\n    case 'multiclass' | 'multilabel': pass",
    ],
)
def test_comparisons_are_detected(code: str) -> None:
    assert len(list(comparisons(ast.parse(code)))) == 1
    assert not list(comparisons(ast.parse("fit(task='multilabel'); a == 'b'")))


# Targets


def test_targets_are_encoded() -> None:
    found = MULTICLASS.encode([[2], [0]], 3)
    assert found.tolist() == [2, 0]
    assert found.dtype == np.int64
    found = MULTILABEL.encode([[0, 2], [], [1]], 3)
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert found.dtype == np.float32
    found = REGRESSION.encode([[0.1, 2], [3, -4]], 2)
    assert found.tolist() == np.array([[0.1, 2], [3, -4]], np.float32).tolist()
    assert found.dtype == np.float32


@every_task
def test_outputs_are_counted_and_numbered(task: Task) -> None:
    _, y = logits_and_targets(task)
    assert task.num_outputs(y) == task.num_outputs(torch.from_numpy(y)) == OUTPUTS
    assert task.label_names(y) == ("0", "1", "2", "3")
    checked = task.check_targets(torch.from_numpy(y), N, OUTPUTS)
    assert np.array_equal(checked.numpy(), y)
    with pytest.raises(ValueError, match=r"y_val has shape \(60,"):
        task.check_targets(torch.from_numpy(y), N + 1, OUTPUTS, "y_val")


@pytest.mark.parametrize(
    ("task", "y", "message"),
    [
        (MULTICLASS, torch.zeros(2), "y is torch.float32, expected class indices"),
        (MULTICLASS, torch.tensor([0, 3]), "class indices 0 to 3, expected 0 to 2"),
        (MULTICLASS, torch.tensor([-1, 1]), "class indices -1 to 1, expected 0 to 2"),
        (MULTILABEL, torch.full((2, 3), 0.5), "values other than 0 and 1"),
        (MULTILABEL, torch.full((2, 3), float("nan")), "NaN or infinite"),
        (REGRESSION, torch.full((2, 3), float("inf")), "NaN or infinite"),
    ],
)
def test_invalid_targets_are_refused(task: Task, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task.check_targets(y, 2, 3)


def test_images_are_counted_per_class() -> None:
    counted = MULTICLASS.images_per_class(np.array([0, 2, 2]), 4)
    assert counted is not None
    assert counted.tolist() == [1, 0, 2, 0]
    counted = MULTILABEL.images_per_class(np.array([[1, 0], [1, 1]], np.float32), 2)
    assert counted is not None
    assert counted.tolist() == [2, 1]
    assert REGRESSION.images_per_class(np.zeros((3, 2)), 2) is None


@every_task
def test_strata_are_classes_labels_or_one_group(task: Task) -> None:
    _, y = logits_and_targets(task)
    strata, groups = task.strata(y), task.fold_groups(torch.from_numpy(y))
    assert groups.shape == (N,)
    assert groups.dtype == torch.int64
    if task.exclusive:
        assert np.array_equal(strata, y)
        assert np.array_equal(groups.numpy(), y)
    else:
        assert set(groups.tolist()) == {0}
        expected = y == 1 if task.has_classes else np.zeros(N)
        assert np.array_equal(strata, expected)


# Probabilities and metrics


@every_task
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_scores_are_those_of_scipy(task: Task, temperature: float) -> None:
    logits, _ = logits_and_targets(task)
    scaled = logits / temperature
    expected = {
        "multiclass": softmax(scaled, axis=1),
        "multilabel": expit(scaled),
        "regression": logits,
    }[task.name]
    assert task.scores(logits, temperature) == pytest.approx(expected, abs=1e-14)
    found = task.tensor_scores(torch.from_numpy(logits), temperature)
    assert found.numpy() == pytest.approx(expected, abs=1e-14)
    single = torch.from_numpy(logits).float()
    assert task.tensor_scores(single, temperature).dtype == torch.float32
    assert np.isfinite(task.scores(np.array([[-800.0, 0.0, 900.0]], np.float32))).all()


@with_classes
def test_confidence_covers_the_top_class_or_every_label(task: Task) -> None:
    logits, y = logits_and_targets(task)
    scores = task.scores(logits)
    confidence, correct = task.confidence(scores, y)
    if task.exclusive:
        assert correct.mean() == reference.accuracy_score(y, scores.argmax(1))
        assert np.array_equal(confidence, np.sort(scores, 1)[:, -1])
    else:
        assert np.array_equal(confidence.reshape(N, OUTPUTS), scores)
        assert np.array_equal(correct.reshape(N, OUTPUTS), y == 1)
    with pytest.raises(ValueError, match="no probabilities"):
        REGRESSION.confidence(scores, y)


@with_classes
def test_temperature_is_the_minimum_on_a_grid(task: Task) -> None:
    logits, y = logits_and_targets(task)
    logits = logits + 2 * (np.eye(OUTPUTS)[y] if task.exclusive else 2 * y - 1)
    found = task.best_temperature(logits, y.astype(np.float64))

    def log_loss(temperature: float) -> float:
        p = task.tensor_scores(torch.from_numpy(logits), temperature)
        truth = torch.from_numpy(y)
        if task.exclusive:
            return float(functional.nll_loss(p.log(), truth))
        return float(functional.binary_cross_entropy(p, truth.double()))

    grid = np.geomspace(0.05, 20, 2000)
    assert found == pytest.approx(min(grid, key=log_loss), rel=4e-3)
    assert REGRESSION.best_temperature(logits, logits) == 1


def test_temperature_of_a_parabola() -> None:
    found = best_temperature(lambda b: (b - 0.4) ** 2, lambda b: (2 * (b - 0.4), 2.0))
    assert found == pytest.approx(2.5)


def test_average_precision_with_ties_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    score, positive = generator.integers(0, 5, 200).astype(float), generator.random(200) > 0.6
    expected = reference.average_precision_score(positive, score)
    assert average_precision(score, positive) == pytest.approx(expected)


# Training


@with_classes
def test_balanced_weights_are_scikit_learns(task: Task) -> None:
    _, y = logits_and_targets(task)
    found = task.balanced_weights(torch.from_numpy(y), OUTPUTS).numpy()
    if task.exclusive:
        expected = compute_class_weight("balanced", classes=np.arange(OUTPUTS), y=y)
    else:
        both = [compute_class_weight("balanced", classes=np.arange(2), y=one) for one in y.T]
        expected = np.array([positive / negative for negative, positive in both])
    assert found == pytest.approx(expected)
    with pytest.raises(ValueError, match="regression has no classes"):
        REGRESSION.balanced_weights(torch.zeros(3, 1), 1)


def test_class_without_an_image_weighs_one() -> None:
    assert MULTICLASS.balanced_weights(torch.tensor([0, 0, 2]), 3).tolist() == [0.5, 1, 1]


@every_task
def test_loss_is_that_of_torch(task: Task) -> None:
    logits, y = tensors(task)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    given = y if task.exclusive else y.double()
    expected = {
        "multiclass": lambda: functional.cross_entropy(logits, y, weights),
        "multilabel": lambda: functional.binary_cross_entropy_with_logits(
            logits, given, pos_weight=weights
        ),
        "regression": lambda: functional.mse_loss(logits, given),
    }[task.name]()
    assert torch.equal(task.loss(logits, given, weights), expected)


@with_classes
def test_balanced_weights_fit_logits_in_single_precision(task: Task) -> None:
    logits, y = tensors(task)
    weights = task.balanced_weights(y, OUTPUTS)
    assert task.loss(logits.float(), y, weights).dtype == torch.float32


# The solver


def mean_loss(task: Task, logits: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean loss that ``solve`` documents, computed by torch's own functions."""
    if task.exclusive:
        each = functional.cross_entropy(logits, y, weights, reduction="none")
        return each.sum() / (len(y) if weights is None else weights[y].sum())
    if not task.has_classes:
        return functional.mse_loss(logits, y.double(), reduction="none").sum() / (2 * len(y))
    each = functional.binary_cross_entropy_with_logits(
        logits, y.double(), pos_weight=weights, reduction="none"
    ).sum(0)
    images = torch.full((OUTPUTS,), float(len(y)), dtype=torch.float64)
    if weights is not None:
        images = (1 - y.double()).sum(0) + weights * y.double().sum(0)
    return (each / images).sum()


@every_task
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_and_derivatives_are_those_of_autograd(task: Task, weighted: bool) -> None:
    logits, y = tensors(task)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    weights = weights if weighted and task.has_classes else None  # type: ignore[assignment]
    targets, weight = task.restrict(y, torch.arange(OUTPUTS), OUTPUTS, weights)
    total = task.total_weight(targets, weight)
    losses, first, second = task.losses(logits.clone(), targets, weight)
    assert float((losses / total).sum()) == pytest.approx(
        float(mean_loss(task, logits, y, weights))
    )

    def loss_at(z: Tensor) -> Tensor:
        return mean_loss(task, z, y, weights)

    z = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss_at(z), z)
    assert (first / total).numpy() == pytest.approx(gradient.numpy(), abs=1e-14)
    hessian = torch.autograd.functional.hessian(loss_at, logits).reshape(2 * (N * OUTPUTS,))  # type: ignore[no-untyped-call]
    expected = hessian.diagonal().reshape(N, OUTPUTS).numpy()
    assert (second / total).numpy() == pytest.approx(expected, abs=1e-14)


def test_outputs_with_constant_targets_are_not_learned() -> None:
    outputs, prior = MULTICLASS.learnable_outputs(torch.tensor([0, 0, 3]), 4)
    assert outputs.tolist() == [0, 3]
    learned = torch.tensor([0.5, 1.5], dtype=torch.float64)
    p = MULTICLASS.biases(prior, learned, outputs).softmax(0)
    odds = p[1] / (p[0] + p[3])
    assert float(odds) == pytest.approx(1 / 3)  # one more image in N
    y = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    outputs, prior = MULTILABEL.learnable_outputs(y, 3)
    assert outputs.tolist() == [2]
    p = MULTILABEL.biases(prior, torch.zeros(1, dtype=torch.float64), outputs).sigmoid()
    assert p.tolist() == pytest.approx([1 / 4, 3 / 4, 1 / 2])
    outputs, prior = REGRESSION.learnable_outputs(torch.ones(2, 3), 3)
    assert outputs.tolist() == [0, 1, 2]


def test_targets_are_restricted_to_learnable_outputs() -> None:
    outputs = torch.tensor([0, 3])
    y, weight = MULTICLASS.restrict(torch.tensor([3, 1, 0]), outputs, 4)
    assert weight is not None
    assert y.tolist() == [1, 0, 0]
    assert weight[:, 0].tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="none of the validation images has a class"):
        MULTICLASS.restrict(torch.tensor([1, 2]), outputs, 4)
    for task in (MULTILABEL, REGRESSION):
        y, weight = task.restrict(torch.eye(4), outputs, 4)
        assert torch.equal(y, torch.eye(4)[:, [0, 3]])
        assert weight is None


@every_task
def test_validation_loss_is_the_mean_of_torch(task: Task) -> None:
    logits, y = tensors(task)
    loss = float(mean_loss(task, logits, y, None))
    expected = float(task.loss(logits, y if task.exclusive else y.double()))
    assert task.validation_loss(loss, OUTPUTS) == pytest.approx(expected)
