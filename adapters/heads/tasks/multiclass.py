"""One class per image: softmax and cross entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .base import PLAIN, Array, Columns, Decisions, Targets, Task
from .statistics import (
    average_over_classes,
    best_temperature,
    calibration_error,
    precision_recall_f1,
    wilson_interval,
)

if TYPE_CHECKING:
    from torch import Tensor


class Multiclass(Task):
    """One class per image. Targets are class indices, int64 ``[N]``."""

    name = "multiclass"
    exclusive = True
    score, score_title = "accuracy", "validation accuracy"
    plots = ("confusion", "reliability")
    onnx_operator, onnx_attributes = "Softmax", {"axis": -1}
    adapter_version = 1
    problem_type = "single_label_classification"

    def encode(self, rows: Sequence[Sequence[float]], num_outputs: int) -> Targets:
        """Return the only class of each image, int64 ``[N]``."""
        return np.array([index for (index,) in rows], np.int64)

    def check_targets(self, y: Tensor, count: int, num_outputs: int, name: str = "y") -> Tensor:
        """Return class indices, int64 ``[N]``, from 0 to ``num_outputs - 1``."""
        if tuple(y.shape) != (count,):
            raise ValueError(f"{name} has shape {tuple(y.shape)}, expected {(count,)}")
        if y.is_floating_point() or y.is_complex():
            raise ValueError(f"{name} is {y.dtype}, expected class indices")
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= num_outputs:
            raise ValueError(
                f"{name} has class indices {low} to {high}, expected 0 to {num_outputs - 1}"
            )
        return y.long()

    def num_outputs(self, y: Tensor | Targets) -> int:
        """Return the highest class index plus 1."""
        return int(y.max()) + 1

    def images_per_class(self, y: Targets, num_outputs: int) -> NDArray[Any]:
        """Return how often each class index occurs."""
        return np.bincount(y, minlength=num_outputs)

    def strata(self, y: Targets) -> NDArray[Any]:
        """Return the classes."""
        return y

    def scores(self, logits: NDArray[Any], temperature: float = 1.0) -> NDArray[Any]:
        """Return the softmax, float64."""
        return _softmax(logits.astype(np.float64) / temperature)

    def confidence(self, scores: Array, y: Targets) -> tuple[Array, NDArray[np.bool_]]:
        """Return the probability of the most likely class, ``[N]``."""
        return scores.max(1), scores.argmax(1) == y

    def best_temperature(self, logits: Array, y: Targets) -> float:
        """Return the temperature with the least cross entropy."""
        z, true = logits, np.asarray(y, np.int64)

        def slope(inverse: float) -> tuple[float, float]:
            p = _softmax(z * inverse)
            mean = (p * z).sum(1)
            first = mean - z[np.arange(len(z)), true]
            return float(first.mean()), float(((p * z * z).sum(1) - mean**2).mean())

        return best_temperature(lambda inverse: _cross_entropy(z * inverse, true), slope)

    def measure(self, logits: Array, y: Targets, using: Decisions = PLAIN) -> dict[str, Any]:
        """Return ``accuracy`` with its interval, ``log_loss``, ``ece``, and ``recall`` per class.

        ``accuracy_interval`` is the 95 % interval of Wilson. ``ece`` is the expected calibration
        error of the most likely class. The recall of a class without images is NaN.
        """
        z, true = logits / using.temperature, np.asarray(y, np.int64)
        p, best = _softmax(z), z.argmax(1)
        right = best == true
        images = np.bincount(true, minlength=z.shape[1])
        hits = np.bincount(true[right], minlength=z.shape[1])
        return {
            "accuracy": right.mean(),
            "accuracy_interval": wilson_interval(int(right.sum()), len(right)),
            "log_loss": _cross_entropy(z, true),
            "ece": calibration_error(p[np.arange(len(z)), best], right),
            "recall": np.where(images > 0, hits / np.maximum(images, 1), np.nan),
        }

    def measure_more(self, logits: Array, y: Targets, using: Decisions = PLAIN) -> dict[str, Any]:
        """Return averages over classes and the Brier score.

        ``balanced_accuracy`` is the mean recall of the classes that have images. The micro averages
        equal the accuracy. ``brier`` is the squared distance of probabilities and truth, summed
        over classes (Brier, 1950); for two classes half of it, as in scikit-learn.
        """
        true = np.asarray(y, np.int64)
        counts = _count(logits, true)
        p = _softmax(logits / using.temperature)
        p[np.arange(len(p)), true] -= 1
        brier = np.square(p).sum(1).mean() / (2 if p.shape[1] == 2 else 1)
        accuracy = counts[0].sum() / len(true)
        weights = counts[2] / len(true)
        return {
            "balanced_accuracy": np.nanmean(precision_recall_f1(*counts)[1]),
            **average_over_classes(*counts),
            **{f"micro_{name}": accuracy for name in ("precision", "recall", "f1")},
            "weighted_f1": (np.nan_to_num(precision_recall_f1(*counts)[2]) * weights).sum(),
            "brier": brier,
        }

    def measure_outputs(self, logits: Array, y: Targets, using: Decisions = PLAIN) -> Columns:
        """Return ``precision``, ``recall``, ``f1`` and ``support`` of each class."""
        counts = _count(logits, np.asarray(y, np.int64))
        precision, recall, f1 = precision_recall_f1(*counts)
        return {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "support": counts[2].astype(np.int64),
        }

    def tensor_scores(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the softmax."""
        return (logits / temperature).softmax(-1)

    def balanced_weights(self, y: Tensor, num_outputs: int) -> Tensor:
        """Return ``N / (num_outputs * images of the class)``; 1 for a class without images."""
        import torch

        counts = torch.bincount(y, minlength=num_outputs).double()
        return torch.where(counts > 0, len(y) / (num_outputs * counts.clamp(min=1)), 1.0)

    def loss(self, logits: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the cross entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, y, None if weights is None else weights.to(logits))

    def fold_groups(self, y: Tensor) -> Tensor:
        """Return the classes."""
        return y

    def learnable_outputs(self, y: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        """Return the classes that have images, and ``-log(N)`` as the bias of the other classes.

        ``biases`` adds the logarithm of the summed exponentials of the learned biases. At the mean
        of the features, each of the other classes is then about 1 / N as likely as all learned
        classes together.
        """
        import torch

        prior = torch.full((num_outputs,), -math.log(len(y)), dtype=torch.float64, device=y.device)
        return (torch.bincount(y, minlength=num_outputs) > 0).nonzero()[:, 0], prior

    def restrict(
        self, y: Tensor, outputs: Tensor, num_outputs: int, class_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return indices into ``outputs``, and weights of images: 0 for images of other classes."""
        import torch

        weight = None if class_weights is None else class_weights.to(y.device)[y][:, None]
        place = torch.full((num_outputs,), -1, device=y.device)
        place[outputs] = torch.arange(len(outputs), device=y.device)
        y = place[y]
        if bool((y < 0).any()):
            weight = (y >= 0)[:, None].double()
            if not bool(weight.any()):
                raise ValueError("none of the validation images has a class with training images")
        return y.clamp(min=0), weight

    def losses(
        self, logits: Tensor, y: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed cross entropy and its derivatives."""
        import torch

        logs = logits.log_softmax(1)
        losses = -logs.gather(1, y[:, None])
        p = logs.exp_()
        second = p - p * p
        p.scatter_add_(1, y[:, None], torch.full_like(losses, -1))
        if weight is not None:
            w = weight.to(logits.dtype)
            losses, p, second = losses * w, p * w, second * w
        return losses.sum(dtype=torch.float64), p, second

    def biases(self, prior: Tensor, learned: Tensor, outputs: Tensor) -> Tensor:
        """Return the biases; the prior ones are relative to the learned ones."""
        return super().biases(prior + learned.logsumexp(0), learned, outputs)

    def validation_loss(self, loss: float, num_outputs: int) -> float:
        """Return the cross entropy as it is."""
        return loss


def _softmax(z: Array) -> Array:
    powers = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def _cross_entropy(z: Array, y: NDArray[np.int64]) -> float:
    top = z.max(1)
    logs = top + np.log(np.exp(z - top[:, None]).sum(1))
    return float((logs - z[np.arange(len(z)), y]).mean())


def _count(logits: Array, true: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Return the numbers of hits, predictions and images of each class, ``[num_classes]`` each."""
    best, classes = logits.argmax(1), logits.shape[1]
    counted = (true[best == true], best, true)
    hits, predicted, actual = (np.bincount(c, minlength=classes).astype(float) for c in counted)
    return hits, predicted, actual
