"""The interface of a task: everything that differs between classes, labels and numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

TaskName = Literal["multiclass", "multilabel", "regression"]
DEFAULT: TaskName = "multiclass"
"""The task of a head whose description names none."""
Array = NDArray[np.float64]
Targets = NDArray[Any]


class Task(ABC):
    """What the outputs of a head mean.

    ``N`` is a number of images. ``num_outputs`` is the length of the logits.

    Attributes:
        name: as users and files write it.
        has_classes: outputs are classes or labels with probabilities, rather than numbers.
        exclusive: each image has exactly one class.
        score: the metric that ranks heads, the higher the better.
        score_title: of ``score`` on an axis of a plot.
        plots: of a report: ``confusion``, ``reliability``, ``predicted``.
        closed_form: the best linear map solves a system of linear equations.
        onnx_operator: turns scaled logits into probabilities; empty without probabilities.
        onnx_attributes: of that operator.
        adapter_version: number of the task in an ``.onnx_adapter`` file, which holds no text.
        problem_type: name of the task in a ``config.json`` of the Hugging Face Hub.
    """

    name: ClassVar[TaskName]
    has_classes: ClassVar[bool] = True
    exclusive: ClassVar[bool] = False
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
        """Return targets from what is known of each image: indices of its classes, or numbers."""

    @abstractmethod
    def check_targets(self, y: Tensor, count: int, num_outputs: int, name: str = "y") -> Tensor:
        """Return the targets of ``count`` images as the solver takes them.

        Raises:
            ValueError: ``y``, which messages call ``name``, has another shape or invalid values.
        """

    @abstractmethod
    def num_outputs(self, y: Tensor | Targets) -> int:
        """Return how many outputs the targets need."""

    def label_names(self, y: Tensor | Targets) -> tuple[str, ...]:
        """Return names for outputs that have none: their numbers, from 0."""
        return tuple(str(number) for number in range(self.num_outputs(y)))

    @abstractmethod
    def images_per_class(self, y: Targets, num_outputs: int) -> NDArray[Any] | None:
        """Return the number of images of each class ``[num_outputs]``; None without classes."""

    @abstractmethod
    def strata(self, y: Targets) -> NDArray[Any]:
        """Return the groups that a hold-out takes its share of.

        Returns:
            ``[N]``, the group of each image; or bool ``[N, groups]`` where groups overlap.
        """

    # Probabilities and metrics, in NumPy

    @abstractmethod
    def scores(self, logits: NDArray[Any], temperature: float = 1.0) -> NDArray[Any]:
        """Return probabilities ``[N, num_outputs]``, float64; without classes the logits."""

    @abstractmethod
    def confidence(self, scores: Array, y: Targets) -> tuple[Array, NDArray[np.bool_]]:
        """Return the probabilities that a reliability diagram judges, and which came true.

        Raises:
            ValueError: the task has no probabilities.
        """

    @abstractmethod
    def best_temperature(self, logits: Array, y: Targets) -> float:
        """Return the temperature with the least log loss, see ``statistics.best_temperature``.

        It is 1 without classes. There must be an image.
        """

    @abstractmethod
    def measure(self, logits: Array, y: Targets, temperature: float = 1.0) -> dict[str, Any]:
        """Return the metrics of logits ``[N, num_outputs]`` at a temperature, not rounded."""

    # Training, in torch

    @abstractmethod
    def tensor_scores(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Return what ``scores`` returns, in the precision of the logits."""

    @abstractmethod
    def balanced_weights(self, y: Tensor, num_outputs: int) -> Tensor:
        """Return weights ``[num_outputs]`` that are inverse to the number of images.

        Raises:
            ValueError: the task has no classes to weigh.
        """

    @abstractmethod
    def loss(self, logits: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the mean loss of logits ``[N, num_outputs]``, a scalar.

        ``weights`` ``[num_outputs]`` are those of the classes, or of positive labels.
        """

    # What the solver of linear heads needs, in torch

    def fold_groups(self, y: Tensor) -> Tensor:
        """Return the group ``[N]``, int64, that cross validation spreads over its folds."""
        return y.new_zeros(len(y)).long()

    @abstractmethod
    def learnable_outputs(self, y: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        """Return which outputs can be learned, and prior biases ``[num_outputs]`` of the others.

        The likelihood of an output that no image (or each one) has grows forever with its bias. The
        next image has it with a probability of about 1 / N (Laplace's rule of succession).
        """

    @abstractmethod
    def restrict(
        self, y: Tensor, outputs: Tensor, num_outputs: int, class_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return targets for these outputs alone, and weights for ``losses``.

        Returns:
            The targets; and None, or weights ``[N, 1]`` of images or ``[len(outputs)]`` of
            positive labels.

        Raises:
            ValueError: no image is of one of these outputs.
        """

    def total_weight(self, y: Tensor, weight: Tensor | None) -> Tensor:
        """Return by what to divide summed losses: a scalar or one number per output, float64."""
        import torch

        if weight is None:
            return torch.tensor(float(len(y)), dtype=torch.float64, device=y.device)
        return weight.sum(dtype=torch.float64)

    @abstractmethod
    def losses(
        self, logits: Tensor, y: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of some images and its first and second derivatives by each logit.

        Args:
            logits: ``[n, num_outputs]``.
            y: targets of these images from ``restrict``.
            weight: from ``restrict``; if it is of images, then of these.

        Returns:
            The loss, float64, summed or that of each output; the derivatives
            ``[n, num_outputs]``.
        """

    def biases(self, prior: Tensor, learned: Tensor, outputs: Tensor) -> Tensor:
        """Return the biases of all outputs, from ``learnable_outputs`` and from the solver."""
        biases = prior.clone()
        biases[outputs] = learned
        return biases

    def validation_loss(self, loss: float, num_outputs: int) -> float:
        """Return the mean loss of an image as a number to compare heads by."""
        return loss / max(1, num_outputs)
