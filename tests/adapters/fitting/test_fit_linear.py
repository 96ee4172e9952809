"""Levels and strength are chosen by images that are left out, and no image predicts itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headkit.adapters.backbone.level import Level
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.fitting.fit_linear import FittedLinear, LinearFit, fit_linear
from headkit.adapters.fitting.folds import make_folds
from headkit.adapters.fitting.linear.solve import solve
from headkit.adapters.fitting.selection import (
    LeftOut,
    choose,
    losses_of_rows,
    weights_of_parts,
)
from headkit.adapters.heads.tasks import get_task

NAMES = ("last", "blocks.0", "blocks.1")
CLASSES, WIDTH = 4, 30
AUTO = (("last",), NAMES)
ONE = torch.ones(1, dtype=torch.float64)


def _problem(images: int, informative: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features of three levels side by side, of which one tells the classes apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(images) % CLASSES
    x = torch.randn(images, len(NAMES) * WIDTH, generator=generator)
    start = NAMES.index(informative) * WIDTH
    x[:, start : start + WIDTH] += 4 * torch.eye(CLASSES, WIDTH)[y]
    return x, y


def _examples(x: Tensor, y: Tensor, images: Tensor | None = None) -> LabeledFeatures:
    width = x.shape[1] // len(NAMES)
    images = torch.arange(len(y)) if images is None else images
    first = torch.tensor([n not in images[:row].tolist() for row, n in enumerate(images.tolist())])
    levels = tuple(Level(name, width, "NCHW") for name in NAMES[1:])
    return LabeledFeatures(x, y, [(width,)] * len(NAMES), images, first, levels)


def _fit(
    x: Tensor,
    y: Tensor,
    task: str = "multiclass",
    held: Tensor | None = None,
    sets: tuple[tuple[str, ...], ...] = AUTO,
    **options: Any,
) -> FittedLinear:
    spec = get_task(task)
    outputs = int(y.max()) + 1 if spec.exclusive else y.shape[1]
    how = LinearFit(sets, spec, outputs, **options)
    return fit_linear(_examples(x, y), torch.arange(len(y)), held, how)


def _accuracy(fitted: FittedLinear, y: Tensor) -> float:
    return float((fitted.held.logits.argmax(1) == y[fitted.held.images]).double().mean())


def test_levels_that_tell_the_classes_apart_are_read() -> None:
    x, y = _problem(160, "blocks.1")
    fitted = _fit(x, y)
    assert fitted.levels == NAMES
    assert fitted.choices["selection"]["levels"] == list(NAMES)
    losses = fitted.choices["selection"]["losses"]
    assert losses["last + blocks.0 … blocks.1"] < losses["last"]
    assert _accuracy(fitted, y) > 0.8
    assert _accuracy(_fit(x, y, sets=AUTO[:1]), y) < 0.4


def test_levels_that_are_clearly_worse_are_not_read() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % CLASSES
    x = torch.cat([2 * torch.eye(CLASSES, 600)[y], torch.zeros(400, 1200)], 1)
    x += torch.randn(400, 1800, generator=generator) * torch.tensor([0.5] * 600 + [9.0] * 1200)
    assert _fit(x, y).levels == ("last",)


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("images", [80, 420])
def test_targets_of_a_fold_do_not_change_its_predictions(
    task: str, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by one bit: they take no part in anything that leads to the predictions."""
    x, y = _problem(images, "last")
    if task != "multiclass":
        y = torch.eye(CLASSES)[y]
    folds = make_folds(y, torch.arange(images), get_task(task), 0)
    monkeypatch.setattr("headkit.adapters.fitting.fit_linear.make_folds", lambda *_: folds)
    first = _fit(x, y, task)
    held = folds.of_row == 1
    changed = y.clone()
    changed[held] = y[held].roll(1, 0) if task == "multiclass" else 1 - y[held]
    second = _fit(x, changed, task)
    same = (first.held.logits == second.held.logits).all(1)
    assert torch.equal(same, held)


def test_random_labels_are_predicted_by_chance() -> None:
    accuracies = []
    for seed in range(6):
        x, _ = _problem(120, "last", seed)
        y = torch.randperm(120, generator=torch.Generator().manual_seed(seed)) % CLASSES
        accuracies.append(_accuracy(_fit(x, y), y))
    assert abs(np.mean(accuracies) - 1 / CLASSES) < 0.06


def test_equal_input_gives_equal_bits() -> None:
    x, y = _problem(60, "blocks.0")
    first, second = _fit(x, y), _fit(x, y)
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert torch.equal(first.held.logits, second.held.logits)


def test_one_strength_of_one_set_is_the_solution_of_all_images() -> None:
    x, y = _problem(100, "last")
    fitted = _fit(x, y, sets=(NAMES,), l2=0.1)
    expected = solve(x, y, CLASSES, l2=0.1, var_smoothing=0.01).linear
    assert torch.allclose(fitted.linear.weight, expected.weight, atol=1e-6)
    assert fitted.choices["l2"] == 0.1
    assert len(fitted.held.images) == 100


def test_one_image_per_class_fits_without_a_measurement() -> None:
    x, y = _problem(CLASSES, "last")
    fitted = _fit(x, y)
    assert fitted.choices["selection"]["losses"] == {}
    assert not len(fitted.held.images)
    assert fitted.levels == NAMES
    logits = x.double() @ fitted.linear.weight.T + fitted.linear.bias
    assert logits.argmax(1).tolist() == y.tolist()


def test_labels_that_all_or_no_images_have_get_a_certain_logit() -> None:
    x, y = _problem(60, "last")
    labels = torch.stack([(y == 0).float(), torch.ones(60), torch.zeros(60)], 1)
    fitted = _fit(x, labels, "multilabel", sets=(NAMES,))
    logits = x.double() @ fitted.linear.weight.T + fitted.linear.bias
    assert bool((logits[:, 1] > 3).all())
    assert bool((logits[:, 2] < -3).all())


def test_weights_of_classes_move_the_balance() -> None:
    x, y = _problem(120, "last")
    kept = (y != 0) | (torch.arange(120) <= 40)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    x, y = x[kept] + 3 * noise[kept], y[kept]
    weights = torch.tensor([10.0, 1.0, 1.0, 1.0])
    plain, weighted = _fit(x, y), _fit(x, y, class_weights=weights)
    balanced = _fit(x, y, class_weights="balanced")
    shares = [int((one.held.logits.argmax(1) == 0).sum()) for one in (plain, balanced, weighted)]
    assert shares[0] < shares[1] < shares[2]


@pytest.mark.parametrize("sizes", [(2, 2), (2, 3), (1, 2), (2,) * 8, (1, 1, 2), (3, 3), (20, 2)])
def test_few_images_a_class_are_predicted_out_of_fold(sizes: tuple[int, ...]) -> None:
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(len(sizes), 18, generator=generator) * 5
    x = means[y] + torch.randn(len(y), 18, generator=generator)
    fitted = _fit(x, y)
    assert len(fitted.held.images) == sum(size for size in sizes if size > 1)
    assert bool(fitted.held.logits.isfinite().all())
    assert _accuracy(fitted, y) > 0.5


def test_two_images_of_a_regression_predict_each_other() -> None:
    fitted = _fit(torch.eye(2).repeat(1, 3), torch.tensor([[0.0], [1.0]]), "regression")
    assert fitted.held.logits[:, 0].tolist() == pytest.approx([1.0, 0.0])


def test_copies_and_views_of_an_image_stay_together() -> None:
    rows = torch.arange(40).repeat(5)
    x = torch.randn(40, 18, generator=torch.Generator().manual_seed(0))[rows]
    y = rows % 2
    how = LinearFit((NAMES,), get_task("multiclass"), 2)
    copies = fit_linear(_examples(x, y), rows, None, how)
    assert len(copies.held.images) == 200
    assert abs(_accuracy(copies, y) - 0.5) < 0.25
    views = fit_linear(_examples(x, y, rows), torch.arange(40), None, how)
    assert views.held.images.tolist() == list(range(40))


def test_many_images_are_held_out_once() -> None:
    x, y = _problem(2400, "blocks.1")
    fitted = _fit(x, y)
    assert len(fitted.held.images) == 480
    assert fitted.held.folds == 1
    assert fitted.levels == NAMES
    assert _accuracy(fitted, y) > 0.8


def test_held_out_images_influence_no_choice() -> None:
    x, y = _problem(160, "blocks.1")
    held = torch.arange(160) % 4 == torch.arange(160) // 4 % 4
    first = _fit(x, y, held=held)
    changed = torch.where(held, (y + 1) % CLASSES, y)
    second = _fit(x, changed, held=held)
    assert torch.equal(first.held.logits, second.held.logits)
    assert first.held.images.tolist() == held.nonzero()[:, 0].tolist()
    assert not len(_fit(x, y, held=torch.zeros(160, dtype=torch.bool)).held.images)


def test_the_larger_set_wins_unless_it_is_clearly_worse() -> None:
    of_row = torch.arange(40) % 4
    small = torch.rand(40, generator=torch.Generator().manual_seed(0)).double()

    def choice(worse: float) -> int:
        large = small + torch.linspace(0, 2 * worse, 40)
        losses = LeftOut(
            (0, 1, 2, 3), torch.arange(40), (small[None, :, None], large[None, :, None])
        )
        return choose([losses], of_row, [1.0], 2, ONE).candidate

    assert choice(0.0) == 1
    assert choice(-0.1) == 1
    assert choice(0.1) == 0


def test_images_of_a_fold_do_not_choose_for_it() -> None:
    of_row = torch.tensor([0, 0, 1, 1, 2, 2])
    first = torch.tensor([[0.0, 0.0, 1.0, 1.0], [9.0, 9.0, 0.0, 0.0]]).double()
    second = torch.tensor([[0.0] * 4, [100.0] * 4]).double()
    left_out = [
        LeftOut((0, 1), torch.tensor([0, 1, 2, 3]), (first[:, :, None],)),
        LeftOut((1, 2), torch.tensor([2, 3, 4, 5]), (second[:, :, None],)),
    ]
    assert choose(left_out, of_row, [1.0, 0.1], 1, ONE, without=0).strength == 1
    assert choose(left_out, of_row, [1.0, 0.1], 1, ONE).strength == 0
    assert choose([], of_row, [10.0, 1.0, 0.1], 2, ONE).candidate == 1


def test_losses_are_those_of_the_tasks() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    labels = (torch.rand(20, 3, generator=generator) > 0.5).double()
    for name, y in [("multiclass", torch.arange(20) % 3), ("multilabel", labels)]:
        task = get_task(name)
        expected = task.measure(z.numpy(), y.numpy())["log_loss"]
        loss = losses_of_rows(z, y, task) @ weights_of_parts(y, task)
        assert float(loss.mean()) == pytest.approx(expected)
    task, numbers = get_task("regression"), labels * torch.tensor([1.0, 1e6, 1e-9])
    constant = numbers.mean(0).expand(20, 3)
    loss = losses_of_rows(constant, numbers, task) @ weights_of_parts(numbers, task)
    assert float(loss.mean()) == pytest.approx(1.0)


def test_units_of_numbers_do_not_change_the_choice() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, len(NAMES) * 4, generator=generator)
    y = torch.cat([x @ torch.randn(x.shape[1], 1, generator=generator), torch.zeros(40, 1)], 1)
    constant = _fit(x, y, "regression", sets=(NAMES,))
    found, true = constant.held.logits[:, 0], y[:, 0].double()
    assert float((found - true).square().sum() / (true - true.mean()).square().sum()) < 0.1
    y[7, 1] = 1.0  # the other output varies by one image alone, which may be in any fold
    chosen = [
        _fit(x, y * torch.tensor([first, second]), "regression", sets=(NAMES,)).choices["l2"]
        for first, second in [(1.0, 1.0), (1.0, 1000.0), (1e-7, 1.0), (1e7, 1e-7)]
    ]
    assert len(set(chosen)) == 1


@pytest.mark.parametrize("weights", [[-1.0, 1.0], [float("nan"), 1.0], [0.0, 1.0], [1.0]])
def test_class_weights_that_are_not_positive_are_refused(weights: list[float]) -> None:
    x, y = _problem(40, "last")
    with pytest.raises(ValueError, match="class_weights must be 2 positive numbers"):
        _fit(x, y % 2, class_weights=torch.tensor(weights))


def test_strengths_may_be_numbers_of_numpy_but_no_text() -> None:
    x, y = _problem(40, "last")
    assert _fit(x, y, l2=np.float32(0.5)).choices["l2"] == 0.5
    assert _fit(x, y, l2=[np.int64(1), 2]).choices["l2"] in (1.0, 2.0)
    with pytest.raises(ValueError, match=r"l2 is '0\.1', expected a positive number, or several"):
        _fit(x, y, l2="0.1")


@pytest.mark.parametrize("images", [20, 2400])
@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_feature_that_is_no_number_is_named(images: int, task: str) -> None:
    x, y = _problem(images, "last")
    x[0, 3] = float("nan")
    target = y if task == "multiclass" else y[:, None].double()
    with pytest.raises(ValueError, match="feature 3 has values that are NaN"):
        _fit(x, target, task)
