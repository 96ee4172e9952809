"""Numbers: the outputs are the predictions, and the loss is the squared error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .base import PLAIN, Array, Columns, Decisions, Targets, Task
from .multilabel import check_matrix

if TYPE_CHECKING:
    from torch import Tensor


class Regression(Task):
    """Numbers as outputs. Targets are finite, float32 ``[N, num_outputs]``."""

    name = "regression"
    has_classes = False
    score, score_title = "r2", "R²"
    plots = ("predicted",)
    closed_form = True
    adapter_version = 3
    problem_type = "regression"

    def encode(self, rows: Sequence[Sequence[float]], num_outputs: int) -> Targets:
        """Return the numbers, float32 ``[N, num_outputs]``."""
        return np.array(rows, np.float32).reshape(len(rows), num_outputs)

    def check_targets(self, y: Tensor, count: int, num_outputs: int, name: str = "y") -> Tensor:
        """Return finite numbers, ``[N, num_outputs]``."""
        check_matrix(y, count, num_outputs, name)
        return y

    def num_outputs(self, y: Tensor | Targets) -> int:
        """Return the number of columns."""
        return int(y.shape[1])

    def images_per_class(self, y: Targets, num_outputs: int) -> None:
        """Return None: there are no classes."""
        return

    def strata(self, y: Targets) -> NDArray[Any]:
        """Return one group that has all images."""
        return np.zeros(len(y), np.int64)

    def scores(self, logits: NDArray[Any], temperature: float = 1.0) -> NDArray[Any]:
        """Return the logits."""
        return logits

    def confidence(self, scores: Array, y: Targets) -> tuple[Array, NDArray[np.bool_]]:
        """Raise ``ValueError``."""
        raise ValueError("regression has no probabilities, so confidence is undefined")

    def best_temperature(self, logits: Array, y: Targets) -> float:
        """Return 1."""
        return 1.0

    def measure(self, logits: Array, y: Targets, using: Decisions = PLAIN) -> dict[str, Any]:
        """Return ``mse``, ``mae`` and ``r2``, means over outputs. The temperature is ignored."""
        error = logits - y
        return {
            "mse": np.square(error).mean(),
            "mae": np.abs(error).mean(),
            "r2": _r2(logits, y).mean(),
        }

    def measure_more(self, logits: Array, y: Targets, using: Decisions = PLAIN) -> dict[str, Any]:
        """Return ``rmse``, the mean over outputs of each one's root mean squared error."""
        return {"rmse": _rmse(logits, y).mean()}

    def measure_outputs(self, logits: Array, y: Targets, using: Decisions = PLAIN) -> Columns:
        """Return ``mae``, ``rmse`` and ``r2`` of each output."""
        return {
            "mae": np.abs(logits - y).mean(0),
            "rmse": _rmse(logits, y),
            "r2": _r2(logits, y),
        }

    def tensor_scores(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the logits."""
        return logits

    def balanced_weights(self, y: Tensor, num_outputs: int) -> Tensor:
        """Raise ``ValueError``."""
        raise ValueError("regression has no classes, so it has no class weights")

    def loss(self, logits: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the squared error, the mean over images and outputs."""
        from torch.nn.functional import mse_loss

        return mse_loss(logits, y)

    def learnable_outputs(self, y: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        """Return all outputs."""
        import torch

        prior = torch.zeros(num_outputs, dtype=torch.float64, device=y.device)
        return torch.arange(num_outputs, device=y.device), prior

    def restrict(
        self, y: Tensor, outputs: Tensor, num_outputs: int, class_weights: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Return the columns of ``outputs``."""
        return y[:, outputs], None

    def losses(
        self, logits: Tensor, y: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return half the summed squared error and its derivatives."""
        import torch

        residual = logits - y.to(logits.dtype)
        losses = residual.square().sum(dtype=torch.float64) / 2
        return losses, residual, torch.ones_like(residual)

    def validation_loss(self, loss: float, num_outputs: int) -> float:
        """Return the mean squared error: the loss is half of it, summed over the outputs."""
        return 2 * super().validation_loss(loss, num_outputs)


def _rmse(logits: Array, y: Targets) -> Array:
    return np.asarray(np.sqrt(np.square(logits - y).mean(0)))


def _r2(logits: Array, y: Targets) -> Array:
    """Return R² of each output; for a constant one 1 if it is predicted exactly, else 0."""
    unexplained = np.square(logits - y).sum(0)
    total = np.square(y - y.mean(0)).sum(0)
    shares = 1 - unexplained / np.where(total > 0, total, 1)
    return np.asarray(np.where(total > 0, shares, unexplained == 0), np.float64)
