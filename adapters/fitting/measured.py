"""Logits of images that a head has not seen, and the metrics that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.heads.head import PER_CLASS
from headkit.adapters.heads.tasks import TaskName, get_task
from headkit.adapters.heads.tasks.statistics import wilson_interval

from .adamw import predict_logits
from .metrics import fit_temperature, measure
from .out_of_fold import OutOfFold
from .thresholds import UNDECIDED, choose_thresholds

CROSS_VALIDATED = 0.65
"""What an image counts in an interval if cross-validation predicted it.

Cross-validation measures the mean of the heads that are fitted to such images. The head at hand
differs from the mean by chance (Bates, Hastie and Tibshirani, 2021). The study
``accuracy.intervals`` measures how often the intervals hold the truth."""
PARTS = 5
"""Number of parts of the images; each is measured with what the others choose."""
_INTERVAL = "_interval"
_OF_RANKS = ("mean_average_precision",)
"""Metrics that depend on the order of the logits alone."""


@dataclass(frozen=True)
class Measured:
    """Logits and targets of ``N`` images.

    Attributes:
        logits: ``[N, num_outputs]``, float64.
        y: Targets, see ``ImageDataset``.
        folds: Number of heads that predicted the images.
    """

    logits: Tensor
    y: Tensor
    folds: int = 1

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def of_folds(cls, held: OutOfFold, targets: Tensor) -> Measured:
        """Return the images that were held out of data with these targets."""
        return cls(held.logits, targets[held.images], held.folds)

    @classmethod
    def of_data(cls, model: nn.Module, examples: LabeledFeatures) -> Measured:
        """Run the head of ``model`` on features of images."""
        return cls(predict_logits(model, examples), examples.y)

    def best_temperature(self, task: TaskName) -> float:
        """Return the temperature with the least log loss, 1 without images."""
        return fit_temperature(self.logits, self.y, task) if len(self) else 1.0

    def thresholds(
        self, task: TaskName, temperature: float, goal: str | float
    ) -> list[float] | None:
        """Return the decision threshold of each label, or None for a task without any."""
        spec = get_task(task)
        if not len(self) or not spec.has_classes or spec.exclusive:
            return None
        scores = spec.scores(self.logits.numpy(), temperature)
        return choose_thresholds(scores, self.y.double().numpy(), goal)

    def metrics(
        self, task: TaskName, temperature: float, thresholds: Sequence[float] | None = None
    ) -> dict[str, Any]:
        """Return the metrics of a head, see ``measure``; none without images.

        The images must not have chosen the temperature or the thresholds.
        """
        return measure(self.logits, self.y, task, temperature, thresholds) if len(self) else {}

    def metrics_of_choices(self, task: TaskName, goal: str | float) -> dict[str, Any]:
        """Return the metrics of a head whose temperature and thresholds these images choose.

        Each fifth of the images is measured with what the other images choose.

        Args:
            task: The kind of targets.
            goal: See ``choose_thresholds``.
        """
        count = len(self)
        if not count:
            return {}
        part = np.random.default_rng(0).permutation(count) % min(PARTS, count)
        scaled = self.logits.clone()
        thresholds = np.full(tuple(self.logits.shape), UNDECIDED)
        for number in range(part.max() + 1):
            own = torch.from_numpy(part == number)
            rest = Measured(self.logits[~own], self.y[~own])
            temperature = rest.best_temperature(task)
            scaled[own] = self.logits[own] / temperature
            chosen = rest.thresholds(task, temperature, goal)
            if chosen is not None:
                thresholds[own.numpy()] = chosen
        metrics = measure(scaled, self.y, task, 1.0, thresholds)
        ranked = measure(self.logits, self.y, task)
        metrics |= {name: value for name, value in ranked.items() if name in _OF_RANKS}
        if self.folds > 1:
            for name in [name for name in metrics if name.endswith(_INTERVAL)]:
                share = metrics[name.removesuffix(_INTERVAL)]
                metrics[name] = interval_of_folds(share, len(self))
        return metrics


def interval_of_folds(share: float, images: int) -> list[float]:
    """Return the 95 % interval of a share of images that cross-validation predicted."""
    trials = CROSS_VALIDATED * images
    return [round(end, 4) for end in wilson_interval(share * trials, trials)]


def without_recall(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics without the one that has a value per class."""
    return {name: value for name, value in metrics.items() if name != PER_CLASS}
