"""Check the arguments of ``fit`` against each other and the data, before the extraction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.errors import ContractError, DataError
from headkit.adapters.fitting.classifier import Plan
from headkit.adapters.fitting.linear.solve import check_positive
from headkit.adapters.fitting.thresholds import check_goal
from headkit.adapters.heads.kinds import KINDS
from headkit.adapters.heads.tasks import TaskName, get_task
from headkit.extraction import check_sizes


def check_arguments(
    *,
    holdout: float | None,
    l2: float | Sequence[float] | None,
    kind: str | None,
    thresholds: str | float | None,
    views: int,
    batch_size: int,
    workers: int | None,
) -> None:
    """Raise ``ValueError`` or ``ContractError`` unless each argument is in its range."""
    if holdout is not None and not 0 < holdout < 1:
        raise ValueError(f"holdout is {holdout}, expected a fraction between 0 and 1")
    if l2 is not None:
        check_positive("l2", l2)
    if kind is not None and kind not in KINDS:
        raise ContractError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if thresholds is not None:
        check_goal(thresholds)
    if views < 1:
        raise ValueError(f"views is {views}, expected at least 1")
    check_sizes(batch_size, workers)


def check_thresholds(thresholds: str | float | None, task: TaskName) -> None:
    """Raise ``ValueError`` if thresholds are requested for a task that has none."""
    spec = get_task(task)
    if thresholds is not None and (spec.exclusive or not spec.has_classes):
        raise ValueError(
            f"thresholds is {thresholds!r}, but the task is {task}, and only the labels of a "
            "multilabel head have thresholds: omit thresholds (--thresholds)"
        )


def check_holdout(holdout: float | None, val: Any, val_source: ImageDataset | None) -> None:
    """Raise ``ValueError`` if images are held out although others measure the head.

    Args:
        holdout: See ``fit``.
        val: See ``fit``.
        val_source: The validation images, of ``val`` or of the data's own split.
    """
    if holdout is None or val_source is None:
        return
    if val is not None:
        raise ValueError(
            f"holdout is {holdout} (--holdout), but val (--val) is given too, and only one of them "
            "can measure the head: omit one"
        )
    raise ValueError(
        f"holdout is {holdout} (--holdout), but the data have a validation split, "
        f"{val_source.name}, which measures the head like val (--val): omit holdout, or pass the "
        "training images alone as data (--data)"
    )


def check_penalty(
    l2: float | Sequence[float] | None, plan: Plan, sets: Sequence[Sequence[str]]
) -> None:
    """Raise ``ContractError`` if a penalty is given for a head that is not solved for one.

    Args:
        l2: See ``fit``.
        plan: See ``plan_classifier``.
        sets: See ``level_sets``.
    """
    if l2 is not None and not plan.linear and not sets:
        raise ContractError(
            f"l2 is {l2}, but AdamW trains this head of the kind {plan.kind}, without such a "
            "penalty: omit l2 (--l2)"
        )


def check_extension(train: ImageDataset, val: ImageDataset | None, views: int) -> None:
    """Raise ``DataError`` if data cannot extend a head."""
    if train.features is not None:
        raise DataError(f"{train.name} has features, but a head is extended by images")
    if val is not None:
        raise DataError(
            "the data have a validation split, but an extended head is measured by "
            "cross-validation: pass the images for measuring as test (--test)"
        )
    if views > 1:
        raise DataError(
            f"views is {views}, but the cache has only one crop of the old images: omit views"
        )
