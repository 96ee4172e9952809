"""The interface of a task: everything that differs between classes, labels and numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

TaskName = Literal["multiclass", "multilabel", "regression"]
DEFAULT: TaskName = "multiclass"
"""The task of a head whose description names no task."""
Array = NDArray[np.float64]
Targets = NDArray[Any]
Columns = dict[str, NDArray[Any]]
"""Values of each output, by the name of the metric."""


@dataclass(frozen=True)
class Decisions:
    """How logits become probabilities and labels.

    Attributes:
        temperature: Divisor of the logits.
        thresholds: Probabilities ``[num_outputs]`` or ``[N, num_outputs]`` from which on a label
            counts as present (multilabel; None: 0.5). Other tasks ignore them.
    """

    temperature: float = 1.0
    thresholds: Array | None = None


PLAIN = Decisions()
"""A temperature of 1, and thresholds of 0.5."""


class Task(ABC):
    """What the outputs of a head mean.

    ``N`` is a number of images. ``num_outputs`` is the length of the logits.

    Attributes:
        name: The name that users and files write.
        has_classes: True if the outputs are classes or labels with probabilities, not numbers.
        exclusive: True if each image has exactly one class.
        independent: True if each output has a probability, and a threshold, of its own.
        score: The metric that ranks heads; higher is better.
        score_title: Title of ``score`` on the axis of a plot.
        plots: Plots of a report: ``confusion``, ``reliability``, ``predicted``.
        closed_form: True if the best linear map solves a system of linear equations.
        onnx_operator: The ONNX operator that turns scaled logits into probabilities; empty if
            there are no probabilities.
        onnx_attributes: Attributes of that operator.
        adapter_version: Number of the task in an ``.onnx_adapter`` file, which cannot hold text.
        problem_type: Name of the task in a ``config.json`` of the Hugging Face Hub.
    """

    name: ClassVar[TaskName]
    has_classes: ClassVar[bool] = True
    exclusive: ClassVar[bool] = False
    independent: ClassVar[bool] = False
    score: ClassVar[str]
    score_title: ClassVar[str]
    plots: ClassVar[tuple[str, ...]]
    closed_form: ClassVar[bool] = False
    onnx_operator: ClassVar[str] = ""
    onnx_attributes: ClassVar[Mapping[str, Any]] = {}
    adapter_version: ClassVar[int]
    problem_type: ClassVar[str]

    # Targets

    @abstractmethod
    def encode(self, rows: Sequence[Sequence[float]], num_outputs: int) -> Targets:
        """Return targets; each row lists the class indices, or the numbers, of one image."""

    @abstractmethod
    def check_targets(self, y: Tensor, count: int, num_outputs: int, name: str = "y") -> Tensor:
        """Return the targets of ``count`` images in the form that the solver takes.

        Raises:
            ValueError: ``y``, which messages call ``name``, has another shape or invalid values.
        """

    @abstractmethod
    def num_outputs(self, y: Tensor | Targets) -> int:
        """Return how many outputs the targets need."""

    def label_names(self, y: Tensor | Targets) -> tuple[str, ...]:
        """Return names for outputs without names: their numbers, from 0."""
        return tuple(str(number) for number in range(self.num_outputs(y)))

    @abstractmethod
    def images_per_class(self, y: Targets, num_outputs: int) -> NDArray[Any] | None:
        """Return the number of images of each class ``[num_outputs]``; None without classes."""

    @abstractmethod
    def strata(self, y: Targets) -> NDArray[Any]:
        """Return the groups from each of which a hold-out takes its share.

        Returns:
            The group of each image ``[N]``; or bool ``[N, groups]`` if groups overlap.
        """

    # Probabilities and metrics, in NumPy

    @abstractmethod
    def scores(self, logits: NDArray[Any], temperature: float = 1.0) -> NDArray[Any]:
        """Return probabilities ``[N, num_outputs]``, float64; logits if there are no classes."""

    @abstractmethod
    def confidence(self, scores: Array, y: Targets) -> tuple[Array, NDArray[np.bool_]]:
        """Return the probabilities in a reliability diagram, and whether each prediction was right.

        Raises:
            ValueError: The task has no probabilities.
        """

    @abstractmethod
    def best_temperature(self, logits: Array, y: Targets) -> float:
        """Return the temperature with the least log loss, see ``statistics.best_temperature``.

        It is 1 if there are no classes. There must be at least one image.
        """

    @abstractmethod
    def measure(self, logits: Array, y: Targets, using: Decisions = PLAIN) -> dict[str, Any]:
        """Return the metrics of logits ``[N, num_outputs]``, unrounded."""

    @abstractmethod
    def measure_more(self, logits: Array, y: Targets, using: Decisions = PLAIN) -> dict[str, Any]:
        """Return the metrics that ``evaluate`` adds to those of ``measure``, unrounded."""

    @abstractmethod
    def measure_outputs(self, logits: Array, y: Targets, using: Decisions = PLAIN) -> Columns:
        """Return metrics of each output, ``[num_outputs]`` each; NaN if one is undefined."""

    # Training, in torch

    @abstractmethod
    def tensor_scores(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Return what ``scores`` returns, in the precision of the logits."""

    @abstractmethod
    def balanced_weights(self, y: Tensor, num_outputs: int) -> Tensor:
        """Return weights ``[num_outputs]`` that are inversely proportional to the image counts.

        Raises:
            ValueError: The task has no classes to weigh.
        """

    @abstractmethod
    def loss(self, logits: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the mean loss of logits ``[N, num_outputs]``, a scalar.

        ``weights`` ``[num_outputs]`` weigh images of each class, or positives of each label.
        """

    # For the solver of linear heads, in torch

    def fold_groups(self, y: Tensor) -> Tensor:
        """Return the group of each image, int64 ``[N]``, by which folds are stratified."""
        return y.new_zeros(len(y)).long()

    @abstractmethod
    def learnable_outputs(self, y: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        """Return the outputs that can be learned, and prior biases ``[num_outputs]`` of the others.

        If no image has an output, or every image has it, its likelihood grows without limit as its
        bias does. The prior bias expresses Laplace's rule of succession: the next image differs
        with a probability of about 1 / N.
        """

    @abstractmethod
    def restrict(
        self, y: Tensor, outputs: Tensor, num_outputs: int, class_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return targets for these outputs alone, and weights for ``losses``.

        Returns:
            The targets; and weights ``[N, 1]`` of images or ``[len(outputs)]`` of positive labels,
            or None.

        Raises:
            ValueError: No image has one of these outputs.
        """

    def total_weight(self, y: Tensor, weight: Tensor | None) -> Tensor:
        """Return the divisor of summed losses: a scalar or one number per output, float64."""
        import torch

        if weight is None:
            return torch.tensor(float(len(y)), dtype=torch.float64, device=y.device)
        return weight.sum(dtype=torch.float64)

    @abstractmethod
    def losses(
        self, logits: Tensor, y: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of some images and its first and second derivative by each logit.

        Args:
            logits: Logits ``[n, num_outputs]``.
            y: Targets of these images from ``restrict``.
            weight: Weights from ``restrict``; weights of images are those of these images.

        Returns:
            The loss, float64, as a sum or for each output; the derivatives ``[n, num_outputs]``.
        """

    def biases(self, prior: Tensor, learned: Tensor, outputs: Tensor) -> Tensor:
        """Return the biases of all outputs: the learned ones, and prior biases of the others."""
        biases = prior.clone()
        biases[outputs] = learned
        return biases

    def validation_loss(self, loss: float, num_outputs: int) -> float:
        """Return the mean loss of an image, in the unit in which heads are compared."""
        return loss / max(1, num_outputs)
