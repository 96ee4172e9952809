"""Train a classifier of any kind on fixed features, by gradient descent."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import classifier_tensors
from headkit.adapters.backbone.forward import classify
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.heads.tasks import Task, TaskName, get_task

RATES = (1e-2, 3e-3, 1e-3, 3e-4)
"""Learning rates that are tried; the best on validation data is kept."""
BATCH = 256
BLIND_RATE, BLIND_EPOCHS = 1e-3, 20
"""What is done without validation data."""


@dataclass(frozen=True)
class Trained:
    """What training came to.

    Attributes:
        rate: learning rate.
        epochs: until the best one.
        val_loss: then, see ``Task.loss``; none without validation data.
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
) -> Trained:
    """Train the classifier of ``model`` in place, by AdamW (Loshchilov and Hutter, 2019).

    Each learning rate starts from the same weights and stops when the validation loss has not
    improved for ``patience`` epochs; the classifier of the best epoch of all stays. Without
    validation data it is ``BLIND_EPOCHS`` at ``BLIND_RATE``.

    Args:
        model: with a new classifier on it, in eval mode: BatchNorm keeps its statistics.
        examples: to train on.
        validation: to choose the epoch and the rate on.
        task: which loss, see ``Task.loss``.
        class_weights: see ``Task.loss``.
        rates: learning rates to try.
        weight_decay: of AdamW.
        max_epochs: passes over the examples at most.
        patience: epochs without improvement.
        seed: of the order of the examples.
    """
    start, spec = _copied(model), get_task(task)
    best, kept = Trained(BLIND_RATE, BLIND_EPOCHS, None), start
    for rate in (BLIND_RATE,) if validation is None else rates:
        model.load_state_dict(start, strict=False)
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=weight_decay)
        generator = torch.Generator().manual_seed(seed)
        if validation is None:
            for _ in range(BLIND_EPOCHS):
                _pass(model, examples, spec, optimizer, class_weights, generator)
            return best
        lowest, waited = math.inf, 0
        for epoch in range(1, max_epochs + 1):
            _pass(model, examples, spec, optimizer, class_weights, generator)
            value = validation_loss(model, validation, spec)
            waited = 0 if value < lowest else waited + 1
            lowest = min(lowest, value)
            if math.isfinite(value) and value < (best.val_loss or math.inf):
                best, kept = Trained(rate, epoch, value), _copied(model)
            if waited == patience or not math.isfinite(value):
                break
    model.load_state_dict(kept, strict=False)
    return best


def _pass(
    model: nn.Module,
    examples: LabeledFeatures,
    task: Task,
    optimizer: torch.optim.Optimizer,
    class_weights: Tensor | None,
    generator: torch.Generator,
) -> None:
    device = next(model.parameters()).device
    for parts, targets in examples.blocks():
        branches, y = tuple(part.to(device) for part in parts), targets.to(device)
        for chosen in torch.split(torch.randperm(len(y), generator=generator), BATCH):
            optimizer.zero_grad()
            logits = classify(model, tuple(branch[chosen] for branch in branches))
            torch.autograd.backward(task.loss(logits, y[chosen], class_weights))
            optimizer.step()


@torch.no_grad()
def predict_logits(model: nn.Module, examples: LabeledFeatures) -> Tensor:
    """Return the logits of all examples, float64 ``[N, num_outputs]``."""
    device = next(model.parameters()).device
    parts = [
        classify(model, tuple(part.to(device) for part in some)).double().cpu()
        for branches, _ in examples.blocks()
        for some in zip(*(torch.split(branch, 4 * BATCH) for branch in branches), strict=True)
    ]
    return torch.cat(parts)


def validation_loss(model: nn.Module, examples: LabeledFeatures, task: Task) -> float:
    """Return the unweighted loss, see ``Task.loss``."""
    return task.loss(predict_logits(model, examples), _as_double(examples.y)).item()


def _as_double(y: Tensor) -> Tensor:
    return y.double() if y.is_floating_point() else y


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(classifier_tensors(model)))
