"""Open the data of a head, and extract their features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.data.evaluation import HeadOutputs, NoSuchSplit, open_evaluation
from headkit.adapters.data.open import open_data
from headkit.adapters.data.options import ReadOptions
from headkit.adapters.errors import DataError
from headkit.adapters.features.duplicates import (
    choose_validation,
    count_duplicates,
    count_shared,
    number_copies,
)
from headkit.adapters.features.executors.choose import choose_executor
from headkit.adapters.features.extract import ExtractedFeatures
from headkit.adapters.features.given import given_levels
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.features.transform import View
from headkit.adapters.fitting.class_weights import check_class_weights
from headkit.adapters.fitting.classifier import level_sets, plan_classifier
from headkit.adapters.fitting.data_checks import check_classes, check_crops
from headkit.adapters.fitting.fit_head import HeadFit
from headkit.adapters.fitting.report import check_report
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.tasks import TaskName, get_task
from headkit.extraction import get_backbone
from headkit.registry.resolve import load_head

from .checks import (
    check_arguments,
    check_extension,
    check_holdout,
    check_penalty,
    check_thresholds,
)
from .extend import OldImages
from .options import ExtractionOptions, HeadOptions

logger = logging.getLogger("headkit")

OWN_TEST_SPLIT = "split"
"""Value of ``test`` that stands for the test split of the data."""
_FULL_NAME = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Training:
    """A backbone, and the images that a head is trained and measured on, with their features.

    Attributes:
        backbone: The frozen backbone.
        source: The training images.
        apart: The images that measure the head alone: ``val``, ``test``.
        extracted: Features of the training images.
        others: Features of the images of ``apart``.
        examples: Features of all crops of the training images, with their targets.
        how: How to fit a head to them.
        names: One name per output.
        duplicates: Numbers of images that occur more than once, for the metrics.
        options: How to fit and measure the head.
        extraction: How the features were extracted.
    """

    backbone: nn.Module
    source: ImageDataset
    apart: Mapping[str, ImageDataset]
    extracted: ExtractedFeatures
    others: Mapping[str, ExtractedFeatures]
    examples: LabeledFeatures
    how: HeadFit
    names: tuple[str, ...]
    duplicates: Mapping[str, int]
    options: HeadOptions
    extraction: ExtractionOptions

    @property
    def blocks(self) -> Tensor:
        """Number of each training image, int64 ``[N]``; copies of an image have the same one."""
        return number_copies(self.extracted)

    def choose_images(self, share: float, among: Tensor | None = None) -> Tensor:
        """Choose a share of the training images of each class, see ``choose_validation``.

        Args:
            share: The share, between 0 and 1.
            among: ``[N]``, True for the images to choose from. Default: all.

        Returns:
            ``[N]``, True for each chosen image.
        """
        extracted, targets = self.extracted, self.extracted.targets
        rows = np.arange(len(targets)) if among is None else np.flatnonzero(among.numpy())
        some = replace(
            extracted, targets=targets[rows], pixel_digests=extracted.pixel_digests[rows]
        )
        mask = np.zeros(len(targets), np.bool_)
        mask[rows] = choose_validation(some, self.source.task, share, self.options.seed)
        return torch.from_numpy(mask)


@contextmanager
def open_training(
    backbone: str | nn.Module,
    data: Any,
    val: Any,
    test: Any,
    options: HeadOptions,
    extraction: ExtractionOptions,
    *,
    extend: Head | str | Path | None = None,
    check: Callable[[ImageDataset], None] = lambda _: None,
    task: TaskName | None,
    reading: Mapping[str, Any],
    weights: str | Path | None,
    remap: bool,
    backbone_options: Mapping[str, Any],
) -> Iterator[Training]:
    """Check the arguments of ``fit``, open its data, and extract their features.

    Without a cache, the features are there until the context ends.

    Args:
        backbone: See ``fit``.
        data: See ``fit``.
        val: See ``fit``.
        test: See ``fit``.
        options: How to fit and measure the head.
        extraction: How to extract the features.
        extend: See ``fit``.
        check: Raises an error unless the training images can be used.
        task: See ``fit``.
        reading: How to read the data, see ``ReadOptions``.
        weights: See ``fit``.
        remap: See ``fit``.
        backbone_options: More arguments of ``load_backbone``.

    Raises:
        HeadkitError, ValueError: See ``fit``.
    """
    # Arguments are checked before the extraction, which takes minutes.
    views, seed, cache = options.views, options.seed, extraction.cache
    check_arguments(
        holdout=options.holdout,
        l2=options.l2,
        kind=options.kind,
        thresholds=options.thresholds,
        views=views,
        batch_size=extraction.batch_size,
        workers=extraction.workers,
    )
    if options.report is not None:
        check_report(options.report)
    choose_executor(extraction.executor)
    train_source, val_source = open_data(
        data, val, task=task, uses_test=test is not None, **reading
    )
    check(train_source)
    check_thresholds(options.thresholds, train_source.task)
    check_holdout(options.holdout, val, val_source)
    names = train_source.label_names
    model = get_backbone(backbone, weights, remap, backbone_options)
    old = None
    runtime = extraction.runtime
    if extend is not None:
        check_extension(train_source, val_source, views)
        old = OldImages.find(load_head(extend), cache, model, train_source)
        names = old.label_names(train_source)
        if runtime == "auto" and extraction.precision == "fp32" and old.runtime is not None:
            runtime = old.runtime  # the features of the old images are there for this one alone
    outputs = HeadOutputs(train_source.task, names)
    test_source = open_test(data, test, outputs, reading)
    weighing = check_class_weights(options.class_weights, replace(train_source, label_names=names))
    plan = plan_classifier(model, options.kind)
    measuring = {"val": val_source, "test": test_source}
    apart = {name: source for name, source in measuring.items() if source is not None}
    sources = [train_source, *apart.values()]
    present = () if old is not None and old.lacks_levels else given_levels(sources)
    sets = level_sets(model, plan, options.levels, options.kind, options.l2, present=present)
    check_penalty(options.l2, plan, sets)
    crops = [View(number, seed) for number in range(1, views)]
    requests = [(source, View()) for source in sources] + [(train_source, one) for one in crops]
    levels = [name for one in sets for name in one]
    with replace(extraction, runtime=runtime).open(model, requests, levels) as extract:
        extracted = extract(train_source)
        others = {name: extract(source) for name, source in apart.items()}
        more = [extract(train_source, one) for one in crops]
        check_crops(extracted, more)
        check_classes(train_source, extracted.targets)
        if old is not None:
            extracted = old.join(extracted, train_source, names)
        duplicates = count_duplicates(extracted)
        for name, one in others.items():
            duplicates[f"num_{name}_in_train"] = count_shared(extracted, one, _FULL_NAME[name])
        examples = LabeledFeatures.from_views([extracted, *more])
        names = names or get_task(train_source.task).label_names(examples.y)
        how = HeadFit(plan, sets, len(names), train_source.task, weighing, options.l2, seed)
        yield Training(
            model,
            train_source,
            apart,
            extracted,
            others,
            examples,
            how,
            names,
            duplicates,
            options,
            extraction,
        )


def open_test(
    data: Any, test: Any, outputs: HeadOutputs, reading: Mapping[str, Any]
) -> ImageDataset | None:
    """Open the images that measure a head beside its validation images.

    Args:
        data: The training data.
        test: Labeled images; or ``split`` for the test split of ``data``; or None.
        outputs: The outputs of the head.
        reading: How to read the data, see ``ReadOptions``.

    Raises:
        DataError: See ``open_evaluation``.
    """
    if test is None:
        return None
    options = ReadOptions(**reading)
    if isinstance(test, str) and test == OWN_TEST_SPLIT:
        try:
            return open_evaluation(data, outputs, "test", options)
        except NoSuchSplit as error:
            raise DataError(
                f"test is {OWN_TEST_SPLIT!r}, but {error.where} has "
                f"{f'only the splits {error.present}' if error.present else 'no splits'}: pass the "
                "test images as test (--test DATA), or omit test (--test)"
            ) from error
    return open_evaluation(test, outputs, None, options)
