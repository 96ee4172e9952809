"""Any number of labels per image: a sigmoid and binary cross entropy for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .base import PLAIN, Array, Columns, Decisions, Targets, Task
from .statistics import (
    average_precision,
    best_temperature,
    calibration_error,
    precision_recall_f1,
    wilson_interval,
)

if TYPE_CHECKING:
    from torch import Tensor


class Multilabel(Task):
    """Any number of labels per image. Targets are 0 and 1, float32 ``[N, num_outputs]``."""

    name = "multilabel"
    independent = True
    score, score_title = "mean_average_precision", "mean average precision"
    plots = ("reliability",)
    onnx_operator = "Sigmoid"
    adapter_version = 2
    problem_type = "multi_label_classification"

    def encode(self, rows: Sequence[Sequence[float]], num_outputs: int) -> Targets:
        """Return 1 where an image has a label, float32 ``[N, num_outputs]``."""
        targets = np.zeros((len(rows), num_outputs), np.float32)
        images = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        targets[images, np.array([index for row in rows for index in row], np.int64)] = 1
        return targets

    def check_targets(self, y: Tensor, count: int, num_outputs: int, name: str = "y") -> Tensor:
        """Return 0 and 1, ``[N, num_outputs]``."""
        check_matrix(y, count, num_outputs, name)
        if not bool(((y == 0) | (y == 1)).all()):
            raise ValueError(f"{name} has values other than 0 and 1")
        return y

    def num_outputs(self, y: Tensor | Targets) -> int:
        """Return the number of columns."""
        return int(y.shape[1])

    def images_per_class(self, y: Targets, num_outputs: int) -> NDArray[Any]:
        """Return how many images have each label."""
        return np.asarray(y.sum(0))

    def strata(self, y: Targets) -> NDArray[Any]:
        """Return the labels, which overlap: bool ``[N, num_outputs]``."""
        return np.asarray(y > 0.5)

    def scores(self, logits: NDArray[Any], temperature: float = 1.0) -> NDArray[Any]:
        """Return the sigmoid of each logit, float64."""
        scaled = logits.astype(np.float64) / temperature
        return np.asarray(0.5 * (1 + np.tanh(scaled / 2)))  # the sigmoid, without overflow

    def confidence(self, scores: Array, y: Targets) -> tuple[Array, NDArray[np.bool_]]:
        """Return the probability of every label of every image, ``[N * num_outputs]``."""
        return scores.ravel(), y.ravel() > 0.5

    def best_temperature(self, logits: Array, y: Targets) -> float:
        """Return the temperature with the least binary cross entropy."""

        def slope(inverse: float) -> tuple[float, float]:
            p = _sigmoid(logits * inverse)
            first, second = (p - y) * logits, p * (1 - p) * logits * logits
            return float(first.mean()), float(second.mean())

        return best_temperature(lambda inverse: _cross_entropy(logits * inverse, y), slope)

    def measure(self, logits: Array, y: Targets, using: Decisions = PLAIN) -> dict[str, Any]:
        """Return the metrics of labels.

        Returns:
            ``exact_match`` (share of images with all labels right) and its 95 % interval
            ``exact_match_interval``, ``log_loss`` (mean over outputs), ``macro_f1`` and
            ``micro_f1``,
            ``mean_average_precision`` (over the labels that have images; None if no label has),
            ``ece`` (expected calibration error over all pairs of image and label), ``recall`` of
            each label (NaN for a label without images).
        """
        z = logits / using.temperature
        predicted, positive = self._present(logits, using), y > 0
        hits = (predicted & positive).sum(0)
        total = predicted.sum(0) + positive.sum(0)
        f1 = 2 * hits / np.maximum(total, 1)
        present = positive.any(0)
        precisions = [average_precision(z[:, k], positive[:, k]) for k in np.flatnonzero(present)]
        matches = (predicted == positive).all(1)
        return {
            "exact_match": matches.mean(),
            "exact_match_interval": wilson_interval(int(matches.sum()), len(matches)),
            "log_loss": _cross_entropy(z, y),
            "macro_f1": f1.mean(),
            "micro_f1": 2 * hits.sum() / max(1, total.sum()),
            "mean_average_precision": np.mean(precisions) if precisions else None,
            "ece": calibration_error(_sigmoid(z).ravel(), positive.ravel()),
            "recall": np.where(present, hits / np.maximum(positive.sum(0), 1), np.nan),
        }

    def measure_more(self, logits: Array, y: Targets, using: Decisions = PLAIN) -> dict[str, Any]:
        """Return averages of precision and recall, and ``brier``, the mean over all outputs."""
        hits, predicted, actual = _count(self._present(logits, using), y)
        precision, recall, _ = precision_recall_f1(hits, predicted, actual)
        return {
            "macro_precision": np.nan_to_num(precision).mean(),
            "macro_recall": np.nan_to_num(recall).mean(),
            "micro_precision": hits.sum() / max(1, predicted.sum()),
            "micro_recall": hits.sum() / max(1, actual.sum()),
            "brier": np.square(_sigmoid(logits / using.temperature) - (y > 0)).mean(),
        }

    def measure_outputs(self, logits: Array, y: Targets, using: Decisions = PLAIN) -> Columns:
        """Return precision, recall, F1, support and average precision of each label."""
        present = self._present(logits, using)
        precision, recall, f1 = precision_recall_f1(*_count(present, y))
        positive = y > 0
        z = logits / using.temperature
        return {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "support": positive.sum(0),
            "average_precision": np.array(
                [
                    average_precision(z[:, k], positive[:, k]) if positive[:, k].any() else np.nan
                    for k in range(z.shape[1])
                ]
            ),
        }

    def _present(self, logits: Array, using: Decisions) -> NDArray[np.bool_]:
        """Return which labels count as present, ``[N, num_outputs]``."""
        if using.thresholds is None:
            return np.asarray(logits > 0)
        return np.asarray(self.scores(logits, using.temperature) >= using.thresholds)

    def tensor_scores(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the sigmoid of each logit."""
        return (logits / temperature).sigmoid()

    def balanced_weights(self, y: Tensor, num_outputs: int) -> Tensor:
        """Return the ratio of images without the label to images with it; both are at least 1."""
        positives = y.sum(0).clamp(min=1)
        balanced: Tensor = (len(y) - positives).clamp(min=1) / positives
        return balanced

    def loss(self, logits: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the binary cross entropy, the mean over images and labels."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        weights = None if weights is None else weights.to(logits)
        return binary_cross_entropy_with_logits(logits, y, pos_weight=weights)

    def learnable_outputs(self, y: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        """Return the labels that some images have and others lack; priors are ``±log(N + 1)``."""
        import torch

        positive = (y > 0).sum(0)
        prior = torch.where(positive > 0, 1.0, -1.0) * math.log(len(y) + 1)
        return ((positive > 0) & (positive < len(y))).nonzero()[:, 0], prior.double()

    def restrict(
        self, y: Tensor, outputs: Tensor, num_outputs: int, class_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the columns of ``outputs``, and weights of their positives."""
        return y[:, outputs], None if class_weights is None else class_weights.to(y.device)[outputs]

    def total_weight(self, y: Tensor, weight: Tensor | None) -> Tensor:
        """Return the summed weights of the images for each label."""
        import torch

        if weight is None:
            return super().total_weight(y, weight)
        return len(y) + (weight.double() - 1) * y.sum(0, dtype=torch.float64)

    def losses(
        self, logits: Tensor, y: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the binary cross entropy of each label, summed over images."""
        import torch
        from torch.nn.functional import softplus

        y = y.to(logits.dtype)
        p = logits.sigmoid()
        losses = softplus(logits) - y * logits
        second = p - p * p
        p -= y
        if weight is not None:
            w = 1 + (weight.to(logits.dtype) - 1) * y
            losses, p, second = losses * w, p * w, second * w
        return losses.sum(0, dtype=torch.float64), p, second


def check_matrix(y: Tensor, count: int, num_outputs: int, name: str) -> None:
    """Raise ``ValueError`` unless ``y`` is finite and ``[count, num_outputs]``."""
    if tuple(y.shape) != (count, num_outputs):
        raise ValueError(f"{name} has shape {tuple(y.shape)}, expected {(count, num_outputs)}")
    if not bool(y.isfinite().all()):
        raise ValueError(f"{name} has values that are NaN or infinite")


def _count(predicted: NDArray[np.bool_], y: Targets) -> tuple[Array, Array, Array]:
    """Return the numbers of hits, predictions and images of each label, ``[num_outputs]`` each."""
    positive = y > 0
    counted = (predicted & positive, predicted, positive)
    hits, predictions, actual = (part.sum(0).astype(float) for part in counted)
    return hits, predictions, actual


def _sigmoid(z: Array) -> Array:
    """Return the sigmoid, accurate for small probabilities: derivatives of the loss need that."""
    return np.asarray(np.exp(-np.logaddexp(0, -z)))


def _cross_entropy(z: Array, y: Targets) -> float:
    return float((np.logaddexp(0, z) - y * z).mean())
