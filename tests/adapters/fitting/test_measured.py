"""Metrics of images that a head has not seen, whose temperature and thresholds others choose."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, f1_score, recall_score

from headkit.adapters.fitting.measured import Measured
from headkit.adapters.fitting.metrics import fit_temperature
from headkit.adapters.fitting.out_of_fold import OutOfFold
from headkit.adapters.fitting.thresholds import choose_thresholds


@pytest.mark.parametrize(("hits", "images"), [(0, 20), (20, 20), (20, 40), (900, 1000)])
def test_interval_of_cross_validation_counts_a_share_of_the_images(hits: int, images: int) -> None:
    logits = torch.eye(2, dtype=torch.float64)[[1] * hits + [0] * (images - hits)]
    y = torch.ones(images, dtype=torch.long)
    numbers = torch.arange(images)
    plain = binomtest(hits, images).proportion_ci(0.95, "wilson")
    fewer = binomtest(hits * 65 // 100, images * 65 // 100).proportion_ci(0.95, "wilson")
    labels = torch.stack([y, y], 1).float()
    both = 2 * torch.stack([logits[:, 1]] * 2, 1) - 1
    for folds, expected in ((1, plain), (5, fewer)):
        held = OutOfFold(numbers, logits, folds)
        found = Measured.of_folds(held, y).metrics_of_choices("multiclass", "f1")
        assert found["accuracy_interval"] == pytest.approx(list(expected), abs=1e-4)
        held = OutOfFold(numbers, both, folds)
        found = Measured.of_folds(held, labels).metrics_of_choices("multilabel", "f1")
        assert found["exact_match_interval"] == pytest.approx(list(expected), abs=1e-4)
    assert Measured.of_folds(OutOfFold.nothing(2), y).metrics_of_choices("multiclass", "f1") == {}


def test_log_loss_is_that_of_a_temperature_that_the_image_did_not_choose() -> None:
    """On logits of pure noise, a temperature of the same images states less than is true."""
    generator = torch.Generator().manual_seed(0)
    stated, own = [], []
    for _ in range(40):
        logits = torch.randn(30, 3, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (30,), generator=generator)
        found = Measured(logits, y)
        stated.append(found.metrics_of_choices("multiclass", "f1")["log_loss"])
        temperature = found.best_temperature("multiclass")
        own.append(found.metrics("multiclass", temperature)["log_loss"])
    assert np.mean(own) < np.log(3) < np.mean(stated)


@pytest.mark.parametrize("goal", ["f1", 0.9])
def test_labels_count_as_present_from_thresholds_that_the_image_did_not_choose(
    goal: str | float,
) -> None:
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(100, 3, generator=generator) < torch.tensor([0.5, 0.2, 0.05])).float()
    logits = (2 * y - 2 + torch.randn(100, 3, generator=generator)).double()
    found = Measured(logits, y).metrics_of_choices("multilabel", goal)
    part = np.random.default_rng(0).permutation(100) % 5
    present = np.zeros((100, 3), bool)
    for number in range(5):
        rest = torch.from_numpy(part != number)
        temperature = fit_temperature(logits[rest], y[rest], "multilabel")
        scores = torch.sigmoid(logits / temperature).numpy()
        chosen = choose_thresholds(scores[rest.numpy()], y[rest].numpy(), goal)
        present[part == number] = (scores >= chosen)[part == number]
    assert found["macro_f1"] == pytest.approx(f1_score(y, present, average="macro"), abs=1e-6)
    recall = recall_score(y, present, average=None)
    assert found["recall"] == pytest.approx(recall.tolist(), abs=1e-4)
    expected = average_precision_score(y, logits, average="macro")
    assert found["mean_average_precision"] == pytest.approx(expected, abs=1e-6)


def test_thresholds_of_a_head_decide_in_its_metrics() -> None:
    logits = torch.tensor([[2.0, -1.0], [1.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = Measured(logits, y).metrics("multilabel", 1.0, [0.8, 0.4])
    assert found["exact_match"] == 1
    assert found["recall"] == [1, 1]
    assert Measured(logits, y).metrics("multilabel", 1.0)["exact_match"] == pytest.approx(1 / 3)
