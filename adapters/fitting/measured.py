"""Logits of images that a head has not seen, and the metrics that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.heads.head import PER_CLASS
from headkit.adapters.heads.tasks import TaskName, get_task
from headkit.adapters.heads.tasks.statistics import wilson_interval

from .adamw import predict_logits
from .metrics import fit_temperature, measure
from .out_of_fold import OutOfFold
from .thresholds import choose_thresholds

CROSS_VALIDATED = 0.8
"""What an image counts in an interval if cross-validation predicted it.

Cross-validation measures the mean of the heads that are fitted to such images. The head at hand
differs from the mean by chance, which adds about a quarter to the variance (measured in the study
``accuracy.intervals``; Bates, Hastie and Tibshirani, 2021)."""
_INTERVAL = "_interval"


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

    def metrics(self, task: TaskName, temperature: float) -> dict[str, Any]:
        """Return the metrics at a temperature, see ``measure``; none without images."""
        if not len(self):
            return {}
        metrics = measure(self.logits, self.y, task, temperature)
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
