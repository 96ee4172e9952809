"""Train a classifier of any kind on fixed features by AdamW."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import classifier_tensors
from headkit.adapters.backbone.forward import classify
from headkit.adapters.backbone.level_head import level_head_of
from headkit.adapters.compat import unwrap
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.heads.tasks import Task, TaskName, get_task

RATES = (1e-2, 3e-3, 1e-3, 3e-4)
"""Learning rates to try; the best one on validation data wins."""
BATCH_SIZE = 256
DEFAULT_RATE, DEFAULT_EPOCHS = 1e-3, 20
"""Learning rate and number of epochs if there are no validation data."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of training.

    Attributes:
        rate: The learning rate.
        epochs: Number of epochs up to the best one.
        val_loss: Validation loss after the best epoch, see ``Task.loss``; None if there are no
            validation data.
    """

    rate: float
    epochs: int
    val_loss: float | None


def train(
    model: nn.Module,
    examples: LabeledFeatures,
    validation: LabeledFeatures | None,
    task: TaskName,
    *,
    class_weights: Tensor | None = None,
    rates: Sequence[float] = RATES,
    weight_decay: float = 1e-2,
    max_epochs: int = 100,
    patience: int = 8,
    seed: int = 0,
) -> TrainingResult:
    """Train the classifier of ``model`` in place, by AdamW (Loshchilov and Hutter, 2019).

    Each learning rate starts from the same weights and stops when the validation loss has not
    improved for ``patience`` epochs. The model keeps the classifier of the best epoch of all rates.
    If there are no validation data, training takes ``DEFAULT_EPOCHS`` at ``DEFAULT_RATE``.

    Args:
        model: A model with a new classifier, in eval mode: BatchNorm keeps its statistics.
        examples: Features and targets to train on.
        validation: Features and targets that determine the best rate and epoch.
        task: The task, which determines the loss, see ``Task.loss``.
        class_weights: See ``Task.loss``.
        rates: Learning rates to try.
        weight_decay: Weight decay of AdamW.
        max_epochs: Maximum number of passes over the examples.
        patience: Number of epochs without improvement after which a rate stops.
        seed: Seed of the order of the examples.
    """
    best = TrainingResult(DEFAULT_RATE, DEFAULT_EPOCHS, None)
    if validation is None:
        train_further(
            model,
            examples,
            task,
            rate=best.rate,
            epochs=best.epochs,
            class_weights=class_weights,
            weight_decay=weight_decay,
            seed=seed,
        )
        return best
    start, spec = _copy_classifier(model), get_task(task)
    kept = start
    for rate in rates:
        model.load_state_dict(start, strict=False)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=rate, weight_decay=weight_decay)
        generator = torch.Generator().manual_seed(seed)
        lowest, epochs_waited = math.inf, 0
        for epoch in range(1, max_epochs + 1):
            _train_epoch(model, examples, spec, optimizer, class_weights, generator)
            value = validation_loss(model, validation, spec)
            epochs_waited = 0 if value < lowest else epochs_waited + 1
            lowest = min(lowest, value)
            if math.isfinite(value) and value < (best.val_loss or math.inf):
                best, kept = TrainingResult(rate, epoch, value), _copy_classifier(model)
            if epochs_waited == patience or not math.isfinite(value):
                break
    model.load_state_dict(kept, strict=False)
    return best


def train_further(
    model: nn.Module,
    examples: LabeledFeatures,
    task: TaskName,
    *,
    rate: float,
    epochs: int,
    class_weights: Tensor | None = None,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> None:
    """Train the classifier of ``model`` in place for a number of epochs at one rate, see ``train``.

    Args:
        model: See ``train``.
        examples: See ``train``.
        task: See ``train``.
        rate: Learning rate.
        epochs: Number of passes over the examples.
        class_weights: See ``train``.
        weight_decay: See ``train``.
        seed: See ``train``.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=rate, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        _train_epoch(model, examples, get_task(task), optimizer, class_weights, generator)


def _train_epoch(
    model: nn.Module,
    examples: LabeledFeatures,
    task: Task,
    optimizer: torch.optim.Optimizer,
    class_weights: Tensor | None,
    generator: torch.Generator,
) -> None:
    device = next(model.parameters()).device
    for parts, targets in examples.branches_only.blocks():
        branches, y = tuple(part.to(device) for part in parts), targets.to(device)
        for batch in torch.split(torch.randperm(len(y), generator=generator), BATCH_SIZE):
            optimizer.zero_grad()
            logits = classify(model, tuple(branch[batch] for branch in branches))
            torch.autograd.backward(task.loss(logits, y[batch], class_weights))
            optimizer.step()


@torch.no_grad()
def predict_logits(model: nn.Module, examples: LabeledFeatures) -> Tensor:
    """Return the logits of all examples, float64 ``[N, num_outputs]``.

    Args:
        model: The backbone with its head, which may read levels.
        examples: Features, with the levels that the head reads.
    """
    device = next(model.parameters()).device
    head = level_head_of(unwrap(model))
    if head is None:
        rows = (branches for branches, _ in examples.branches_only.blocks())
    else:
        row = examples.row([level.name for level in head.levels])
        rows = ((block,) for block in ([row] if isinstance(row, Tensor) else row.blocks()))
    parts = [
        classify(model, tuple(part.to(device) for part in batch)).double().cpu()
        for branches in rows
        for batch in zip(*(torch.split(branch, 4 * BATCH_SIZE) for branch in branches), strict=True)
    ]
    return torch.cat(parts)


def validation_loss(model: nn.Module, examples: LabeledFeatures, task: Task) -> float:
    """Return the unweighted mean loss, see ``Task.loss``."""
    return task.loss(predict_logits(model, examples), _as_double(examples.y)).item()


def _as_double(y: Tensor) -> Tensor:
    return y.double() if y.is_floating_point() else y


def _copy_classifier(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(classifier_tensors(model)))
