"""Measure a head that was fitted, and build the head of the file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from headkit.adapters.features.cache import FeatureCache
from headkit.adapters.features.extract import ExtractedFeatures
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.features.predictions import Predictions, keep_predictions
from headkit.adapters.fitting.fit_head import fit_head
from headkit.adapters.fitting.measured import Measured, without_recall
from headkit.adapters.fitting.out_of_fold import Fitted
from headkit.adapters.fitting.report import write_report
from headkit.adapters.fitting.thresholds import F1
from headkit.adapters.heads.attach import head_of
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.summary import remarks, store_few_images, store_skipped
from headkit.adapters.heads.tasks import get_task

from .data import Training

logger = logging.getLogger("headkit")

IN_SUMMARY = "in_summary"
"""Attribute of log records that repeat what the metrics of the head say, see ``heads.summary``."""


def fit_alone(training: Training, extra_metrics: Mapping[str, Any] | None = None) -> Head:
    """Fit a head to the frozen backbone, and measure it.

    Args:
        training: What to train on.
        extra_metrics: More entries of the head's metrics.
    """
    share = training.options.holdout
    held = None if share is None else training.choose_images(share)
    fitted = fit_head(training.backbone, training.examples, training.blocks, held, training.how)
    return build_head(training, fitted, training.others, extra_metrics)


def build_head(
    training: Training,
    fitted: Fitted,
    others: Mapping[str, ExtractedFeatures],
    extra_metrics: Mapping[str, Any] | None = None,
) -> Head:
    """Measure a head that was put onto its backbone, and return it.

    Args:
        training: What it was trained on.
        fitted: The head on its backbone, and predictions for held-out images.
        others: Features of the images of ``training.apart``, computed with this backbone.
        extra_metrics: More entries of the head's metrics.
    """
    source, extracted, options = training.source, training.extracted, training.options
    spec, goal = get_task(source.task), F1 if options.thresholds is None else options.thresholds
    of_folds = Measured.of_folds(fitted.held, torch.from_numpy(extracted.targets))
    temperature = of_folds.best_temperature(source.task)
    decisions = of_folds.thresholds(source.task, temperature, goal)
    measure = partial(Measured.metrics, task=source.task, temperature=temperature)
    apart = {
        name: Measured.of_data(fitted.model, LabeledFeatures.from_views([one]))
        for name, one in others.items()
    }
    measured = apart.get("val", of_folds)
    if "val" in apart:
        metrics = measure(measured, thresholds=decisions)
    else:
        metrics = of_folds.metrics_of_choices(source.task, goal)
    if not metrics:
        logger.warning(
            "no image can be held out, so the head will have no metrics: pass val (--val) or more "
            "images per class"
        )
    sources = [source, *training.apart.values()]
    skipped = [(one.reason, one.count) for some in sources for one in some.skipped]
    every = (extracted, *others.values())
    metrics |= {
        "validation": _name_validation("val" in apart, fitted.held.folds),
        "num_train": len(extracted.targets),
        "num_val": len(measured),
        "num_unreadable": sum(len(one.unreadable) for one in every),
        **training.duplicates,
        **fitted.choices,
        **(extra_metrics or {}),
        **store_few_images(spec.images_per_class(extracted.targets, len(training.names))),
        **store_skipped(skipped),
    }
    if "test" in apart:
        on_test = measure(apart["test"], thresholds=decisions)
        metrics["test"] = {"num_images": len(apart["test"]), **without_recall(on_test)}
    head = head_of(
        fitted.model,
        training.names,
        task=source.task,
        metrics=metrics,
        temperature=temperature,
        notes=options.notes,
    )
    if decisions is not None:
        head = head.with_changes(thresholds=tuple(decisions))
    if isinstance(extracted.cache, FeatureCache) and training.extraction.cache is not False:
        predictions = Predictions(
            of_folds.logits.numpy(),
            fitted.held.images.numpy(),
            extracted.pixel_digests,
            extracted.targets,
            options.views,
        )
        keep_predictions(extracted.cache, head.digest, predictions)
    if options.report is not None and len(measured):
        write_report(options.report, head, measured.logits, measured.y)
    for remark in remarks(metrics, training.names, head.task):
        level = logging.WARNING if remark.serious else logging.INFO
        logger.log(level, "%s", remark.text, extra={IN_SUMMARY: True})
    return head


def _name_validation(own: bool, folds: int) -> str:
    if own:
        return "own"
    return "none" if not folds else "holdout" if folds == 1 else "cross_validation"
