"""Fit a head to all images, and measure it on images that no fit saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from headkit.adapters.data.holdout import holdout
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.heads.attach import adapt
from headkit.adapters.heads.tasks import TaskName, get_task

from .adamw import predict_logits, train, train_further
from .classifier import Plan, set_classifier
from .fit_linear import LinearFit, fit_linear
from .out_of_fold import Fitted, Predict, predict_out_of_fold

SHARE = 0.2
"""Share of the images that is held out to measure, or to choose, how AdamW trains a head."""


@dataclass(frozen=True)
class HeadFit:
    """How to fit a head.

    Attributes:
        plan: Kind of head, see ``plan_classifier``.
        sets: Sets of levels to choose from, the simplest first; empty for a head that reads the
            last features alone.
        num_outputs: Length of the logits.
        task: What the logits mean.
        class_weights: Weight of each class ``[num_outputs]``, or ``balanced``.
        l2: Strengths of the penalty of a linear head, see ``solve``.
        seed: Seed of everything that is random.
    """

    plan: Plan
    sets: tuple[tuple[str, ...], ...]
    num_outputs: int
    task: TaskName
    class_weights: Tensor | Literal["balanced"] | None
    l2: float | Sequence[float] | None
    seed: int


def fit_head(
    backbone: nn.Module,
    examples: LabeledFeatures,
    blocks: Tensor,
    held: Tensor | None,
    how: HeadFit,
) -> Fitted:
    """Fit a head to all examples, put it onto the backbone, and predict images that it did not see.

    Linear heads are measured by nested cross-validation, see ``fit_linear``. Heads that are trained
    by AdamW are measured on a fifth of the images that is held out once.

    Args:
        backbone: The frozen model, which carries the head afterwards.
        examples: Features and targets.
        blocks: Number of each image's block, int64; images of a block are copies of each other.
        held: For each image, True to hold it out once instead. If no image is held out, the head
            is not measured.
        how: How to fit.
    """
    if not how.plan.linear and not how.sets:
        return _fit_trained(backbone, examples, blocks, held, how)
    rows = None if held is None else held[examples.images]
    task = get_task(how.task)
    linear_fit = LinearFit(how.sets, task, how.num_outputs, how.class_weights, how.l2, how.seed)
    found = fit_linear(examples, blocks, rows, linear_fit)
    model = set_classifier(
        backbone, how.plan, found.levels, found.linear, examples, how.num_outputs
    )
    return Fitted(model, found.choices, found.held)


def _fit_trained(
    backbone: nn.Module,
    examples: LabeledFeatures,
    blocks: Tensor,
    held: Tensor | None,
    how: HeadFit,
) -> Fitted:
    """Train by AdamW: choose rate and epochs on a part, measure on another, train on all."""
    last = examples.branches_only
    rows = _hold_out(last, blocks, how) if held is None else held[last.images]

    def train_on(some: LabeledFeatures) -> tuple[nn.Module, dict[str, Any]]:
        with torch.random.fork_rng():
            torch.manual_seed(how.seed)
            model = adapt(backbone, how.num_outputs, how.plan.kind)
        inner = _hold_out(some, blocks, how)
        weights = _class_weights(some, how)
        start = {name: value.clone() for name, value in _trainable(model).items()}
        validation = some.select(inner & some.first_view) if bool(inner.any()) else None
        result = train(
            model,
            some if validation is None else some.select(~inner),
            validation,
            how.task,
            class_weights=weights,
            seed=how.seed,
        )
        if validation is not None:
            model.load_state_dict(start, strict=False)
            train_further(
                model,
                some,
                how.task,
                rate=result.rate,
                epochs=result.epochs,
                class_weights=weights,
                seed=how.seed,
            )
        return model, {"learning_rate": result.rate, "epochs": result.epochs}

    def fit_rows(some: LabeledFeatures) -> Predict:
        model, _ = train_on(some)
        return lambda others: predict_logits(model, others)

    folds = [rows] if bool(rows.any()) else []
    out = predict_out_of_fold(last, folds, fit_rows, how.num_outputs)
    model, choices = train_on(last)
    return Fitted(model, choices, out)


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _class_weights(examples: LabeledFeatures, how: HeadFit) -> Tensor | None:
    if isinstance(how.class_weights, str):
        return get_task(how.task).balanced_weights(examples.y, how.num_outputs)
    return how.class_weights


def _hold_out(examples: LabeledFeatures, blocks: Tensor, how: HeadFit) -> Tensor:
    """Return ``[N]``, True for the rows of a fifth of the blocks, stratified by class."""
    own = blocks[examples.images]
    _, first, members = np.unique(own.numpy(), return_index=True, return_inverse=True)
    order = np.argsort(examples.images[torch.from_numpy(first)].numpy(), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    y = examples.y[torch.from_numpy(first[order])].numpy()
    mask = holdout(y, how.task, SHARE, how.seed)
    return torch.from_numpy(mask[rank[members.reshape(-1)]])
