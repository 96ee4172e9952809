"""Intervals after cross-validation are Wilson's for four fifths of the images."""

import pytest
import torch
from scipy.stats import binomtest

from headkit.adapters.fitting.measured import Measured
from headkit.adapters.fitting.out_of_fold import OutOfFold


@pytest.mark.parametrize(("hits", "images"), [(0, 20), (20, 20), (15, 25), (900, 1000)])
def test_interval_of_cross_validation_counts_four_fifths_of_the_images(
    hits: int, images: int
) -> None:
    logits = torch.eye(2, dtype=torch.float64)[[1] * hits + [0] * (images - hits)]
    y = torch.ones(images, dtype=torch.long)
    numbers = torch.arange(images)
    plain = binomtest(hits, images).proportion_ci(0.95, "wilson")
    fewer = binomtest(hits * 4 // 5, images * 4 // 5).proportion_ci(0.95, "wilson")
    labels = torch.stack([y, y], 1).float()
    both = 2 * torch.stack([logits[:, 1]] * 2, 1) - 1
    for folds, expected in ((1, plain), (5, fewer)):
        held = OutOfFold(numbers, logits, folds)
        found = Measured.of_folds(held, y).metrics("multiclass", 1.0)
        assert found["accuracy_interval"] == pytest.approx(list(expected), abs=1e-4)
        held = OutOfFold(numbers, both, folds)
        found = Measured.of_folds(held, labels).metrics("multilabel", 1.0)
        assert found["exact_match_interval"] == pytest.approx(list(expected), abs=1e-4)
    assert Measured.of_folds(OutOfFold.nothing(2), y).metrics("multiclass", 1.0) == {}
