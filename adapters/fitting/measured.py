"""Logits of images that a head has not seen, and the metrics that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.heads.head import PER_CLASS
from headkit.adapters.heads.tasks import TaskName, get_task

from .adamw import predict_logits
from .metrics import fit_temperature, measure
from .out_of_fold import OutOfFold
from .thresholds import choose_thresholds


@dataclass(frozen=True)
class Measured:
    """Logits and targets of ``N`` images.

    Attributes:
        logits: ``[N, num_outputs]``, float64.
        y: Targets, see ``ImageDataset``.
    """

    logits: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def of_folds(cls, held: OutOfFold, targets: Tensor) -> Measured:
        """Return the images that were held out of data with these targets."""
        return cls(held.logits, targets[held.images])

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
        return measure(self.logits, self.y, task, temperature) if len(self) else {}


def without_recall(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics without the one that has a value per class."""
    return {name: value for name, value in metrics.items() if name != PER_CLASS}
