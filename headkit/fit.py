"""Train a head on frozen features: extract them once, train, measure and report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headkit.adapters.backbone.config.input_size import ImageSize
from headkit.adapters.backbone.level import LevelNames
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.data.evaluation import HeadOutputs, NoSuchSplit, open_evaluation
from headkit.adapters.data.open import open_data
from headkit.adapters.data.options import ClassFrom, ReadOptions
from headkit.adapters.errors import DataError
from headkit.adapters.features.cache import FeatureCache
from headkit.adapters.features.duplicates import (
    choose_validation,
    count_duplicates,
    count_shared,
    number_copies,
)
from headkit.adapters.features.executors.choose import choose_executor
from headkit.adapters.features.extract import Progress
from headkit.adapters.features.given import given_levels
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.features.predictions import Predictions, keep_predictions
from headkit.adapters.features.transform import View
from headkit.adapters.fitting.class_weights import ClassWeights, check_class_weights
from headkit.adapters.fitting.classifier import AUTO, level_sets, plan_classifier
from headkit.adapters.fitting.data_checks import check_classes, check_crops
from headkit.adapters.fitting.fit_head import HeadFit, fit_head
from headkit.adapters.fitting.measured import Measured, without_recall
from headkit.adapters.fitting.report import check_report, write_report
from headkit.adapters.fitting.thresholds import F1
from headkit.adapters.heads.attach import head_of
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.kinds import Kind
from headkit.adapters.heads.summary import remarks, store_few_images, store_skipped
from headkit.adapters.heads.tasks import TaskName, get_task
from headkit.registry.resolve import load_head

from .checks import (
    check_arguments,
    check_extension,
    check_holdout,
    check_penalty,
    check_thresholds,
)
from .extend import OldImages
from .extraction import get_backbone, open_extraction

logger = logging.getLogger("headkit")

OWN_TEST_SPLIT = "split"
"""Value of ``test`` that stands for the test split of the data."""
_FULL_NAME = {"val": "validation", "test": "test"}
IN_SUMMARY = "in_summary"
"""Attribute of log records that repeat what the metrics of the head say, see ``heads.summary``."""


def fit(
    backbone: str | nn.Module,
    data: Any,
    *,
    val: Any = None,
    test: Any = None,
    extend: Head | str | Path | None = None,
    task: TaskName | None = None,
    class_from: ClassFrom | None = None,
    path_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    kind: Kind | None = None,
    levels: LevelNames = AUTO,
    weights: str | Path | None = None,
    remap: bool = False,
    img_size: ImageSize | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    holdout: float | None = None,
    l2: float | Sequence[float] | None = None,
    class_weights: ClassWeights | None = None,
    thresholds: str | float | None = None,
    views: int = 1,
    runtime: str = "auto",
    precision: str = "fp32",
    executor: str = "local",
    cache: bool | str | Path = True,
    seed: int = 0,
    batch_size: int = 16,
    workers: int | None = None,
    max_unreadable: float = 0.05,
    report: str | Path | None = None,
    notes: str = "",
    progress: Progress | None = None,
    **timm_kwargs: Any,
) -> Head:
    """Train a head on the features of a frozen backbone, and measure it.

    The features are extracted once, with the backbone's own eval preprocessing, and kept in a
    cache. A linear head reads the last features and, unless that is clearly worse, intermediate
    levels of the backbone (``fit_linear``, ``linear.solve``); any other kind is trained with AdamW
    (``adamw.train``). If ``backbone`` is a model, it carries the new head afterwards.

    The head is fitted to all training images. Its metrics are those of nested cross-validation:
    each image is predicted by a fit that has not seen it, and that made its own choices without it.
    If you pass ``val``, the metrics are those of its images. Neither ``val`` nor ``test`` influence
    any choice.

    Args:
        backbone: A timm entry point, or a timm model, which may be compiled or wrapped.
        data: Training images with their labels: a folder with one folder per class, a CSV file with
            the columns ``path`` and ``label``, or a name that timm's readers know. Or data in
            memory: ``(X, y)``, where X are pixels (uint8 ``[N, height, width, 3]`` or ``[N, height,
            width]``), a list of images or paths, or features (float ``[N, num_features]``); a list
            of pairs (image or path, label); a torch ``Dataset`` of such pairs; a
            ``datasets.Dataset``; a DataFrame with the columns of a CSV file; or the result of
            ``extract``. See ``open_data``.
        val: Images to measure the head on, in any of these forms. Default: the validation split of
            ``data``, or else cross-validation on the training images.
        test: More images to measure the head on, as ``test`` of its metrics; in any of these forms,
            or ``split`` for the test split of ``data``.
        extend: A head to which ``data`` adds images or classes: a head, a head file or a reference
            to a store. The features of its own training images must still be in the cache; then
            their files are not needed. The new head is fitted to the old and the new images. Some
            things only the old files could tell: whether an old image also has a new label, and how
            it looks in another crop or to another runtime.
        task: ``multiclass``, ``multilabel`` or ``regression``. Default: the task of the data.
        class_from: Folder that names the class, ``top`` or ``parent``, see ``ReadOptions``.
        path_column: Name of a table's column of image paths, see ``ReadOptions``.
        label_column: Name of a table's column of labels, or several, see ``ReadOptions``.
        label_separator: Text between the labels of one image in a table, see ``ReadOptions``.
        kind: Kind of head, see ``adapt``. Default: the architecture's own classifier if it is
            linear or part of how the architecture computes logits, else ``linear``.
        levels: What a linear head reads. ``auto`` chooses by cross-validation between the last
            features and all levels, unless you pass ``l2``; ``last``: the last features alone;
            ``all``: the last features and all levels; or names of levels, see ``headkit.levels``.
            Data that are features must have the levels that the head reads; ``auto`` then chooses
            between the last features and the levels that the data have.
        weights: Weights file of the backbone, see ``load_backbone``.
        remap: Match the tensors of ``weights`` by position, see ``load_backbone``.
        img_size: Edge of the input images in pixels, or height and width, see ``load_backbone``.
        crop_pct: Edge of the crop divided by the edge of the resized image, see timm.
        crop_mode: ``center``, ``squash`` or ``border``, see timm.
        holdout: Share of each class that is held out once to measure the head, between 0 and 1, in
            place of cross-validation; the temperature and the thresholds then come from these
            images too. It excludes ``val``. Default: cross-validation of a linear head for at most
            2,000 images, else 0.2.
        l2: Strength of the L2 penalty of a linear head, or several, of which cross-validation
            chooses one; with ``levels="auto"``, the head then reads the last features alone.
            Default: a range of strengths, see ``solve``.
        class_weights: ``balanced`` to weigh classes inversely to their number of images, or weights
            by label name; other classes weigh 1. Metrics are never weighted.
        thresholds: How to choose the decision threshold of each label of a multilabel head: ``f1``,
            or a precision that each label must reach, see ``choose_thresholds``. They are chosen
            with the predictions of cross-validation. Default: ``f1`` for a multilabel head; others
            have no thresholds.
        views: Number of crops of each training image: the eval crop, then random crops, which are
            flipped at random.
        runtime: Runtime of the backbone: ``auto``, ``torch``, ``onnxruntime`` or ``openvino``. On a
            CPU, ``auto`` is ``onnxruntime``, or ``openvino`` for bf16. On a GPU, or if few images
            are left to compute, it is ``torch``.
        precision: Precision of the backbone's arithmetic, ``fp32`` or ``bf16``.
        executor: Where features are extracted: ``local``, with processes of this machine, or
            ``ray``, on all cores of a Ray cluster, see ``extract_with_ray``.
        cache: Folder in which features are kept. True is the user's cache folder; False keeps none.
        seed: Random seed of the held-out images, of the crops and of the training.
        batch_size: Number of images per forward pass.
        workers: Number of processes that decode images; 0 decodes in this process. Default: one per
            core.
        max_unreadable: Largest share of images that may be skipped as unreadable, 0 to 1.
        report: Folder for a confusion matrix, a reliability diagram and their numbers.
        notes: Free text that is stored in the head.
        progress: Called with the name of the data set, the number of images read, and their total,
            which is None if it is unknown.
        **timm_kwargs: See ``load_backbone``.

    Raises:
        UnknownArchitecture, WeightsError: See ``load_backbone``.
        DataError: See ``open_data``; or too many images cannot be read, or features lack a level.
        DependencyMissing: The runtime or the executor is not installed.
        ContractError: The architecture does not support this kind of head, or this ``img_size``.
        OutputError: The cache or the report cannot be written.
        ValueError: An argument is out of its range.
    """
    # Arguments are checked before the extraction, which takes minutes.
    check_arguments(
        holdout=holdout,
        l2=l2,
        kind=kind,
        thresholds=thresholds,
        views=views,
        batch_size=batch_size,
        workers=workers,
    )
    if report is not None:
        check_report(report)
    choose_executor(executor)
    reading: dict[str, Any] = {
        "class_from": class_from,
        "path_column": path_column,
        "label_column": label_column,
        "label_separator": label_separator,
    }
    train_source, val_source = open_data(
        data, val, task=task, uses_test=test is not None, **reading
    )
    check_thresholds(thresholds, train_source.task)
    check_holdout(holdout, val, val_source)
    names = train_source.label_names
    inputs: dict[str, Any] = {"img_size": img_size, "crop_pct": crop_pct, "crop_mode": crop_mode}
    backbone = get_backbone(backbone, weights, remap, {**inputs, **timm_kwargs})
    old = None
    if extend is not None:
        check_extension(train_source, val_source, views)
        old = OldImages.find(load_head(extend), cache, backbone, train_source)
        names = old.label_names(train_source)
        if runtime == "auto" and precision == "fp32" and old.runtime is not None:
            runtime = old.runtime  # the features of the old images are there for this one alone
    outputs = HeadOutputs(train_source.task, names)
    test_source = open_test(data, test, outputs, reading)
    weighing = check_class_weights(class_weights, replace(train_source, label_names=names))
    plan = plan_classifier(backbone, kind)
    measuring = {"val": val_source, "test": test_source}
    apart = {name: source for name, source in measuring.items() if source is not None}
    sources = [train_source, *apart.values()]
    present = () if old is not None and old.lacks_levels else given_levels(sources)
    sets = level_sets(backbone, plan, levels, kind, l2, present=present)
    check_penalty(l2, plan, sets)
    requests = [(source, View()) for source in sources]
    requests += [(train_source, View(n, seed)) for n in range(1, views)]
    with open_extraction(
        backbone,
        requests,
        runtime=runtime,
        precision=precision,
        executor=executor,
        cache=cache,
        batch_size=batch_size,
        workers=workers,
        max_unreadable=max_unreadable,
        progress=progress,
        levels=[name for one in sets for name in one],
    ) as extraction:
        extracted = extraction(train_source)
        others = {name: extraction(source) for name, source in apart.items()}
        crops = [extraction(train_source, View(n, seed)) for n in range(1, views)]
        check_crops(extracted, crops)
        check_classes(train_source, extracted.targets)
        if old is not None:
            extracted = old.join(extracted, train_source, names)
        duplicates = count_duplicates(extracted)
        for name, one in others.items():
            duplicates[f"num_{name}_in_train"] = count_shared(extracted, one, _FULL_NAME[name])
        examples = LabeledFeatures.from_views([extracted, *crops])
        names = names or get_task(train_source.task).label_names(examples.y)
        mask = None
        if holdout is not None:
            chosen = choose_validation(extracted, train_source.task, holdout, seed)
            mask = torch.from_numpy(chosen)
        how = HeadFit(plan, sets, len(names), train_source.task, weighing, l2, seed)
        fitted = fit_head(backbone, examples, number_copies(extracted), mask, how)
        of_folds = Measured.of_folds(fitted.held, torch.from_numpy(extracted.targets))
        temperature = of_folds.best_temperature(train_source.task)
        goal = F1 if thresholds is None else thresholds
        decisions = of_folds.thresholds(train_source.task, temperature, goal)
        on_others = {
            name: Measured.of_data(fitted.model, LabeledFeatures.from_views([one]))
            for name, one in others.items()
        }
    measured = on_others.get("val", of_folds)
    if "val" in on_others:
        metrics = measured.metrics(train_source.task, temperature, decisions)
    else:
        metrics = of_folds.metrics_of_choices(train_source.task, goal)
    if not metrics:
        logger.warning(
            "no image can be held out, so the head will have no metrics: pass val (--val) or more "
            "images per class"
        )
    skipped = [(one.reason, one.count) for source in sources for one in source.skipped]
    metrics |= {
        "validation": _name_validation(val_source is not None, fitted.held.folds),
        "num_train": len(extracted.targets),
        "num_val": len(measured),
        "num_unreadable": sum(len(one.unreadable) for one in (extracted, *others.values())),
        **duplicates,
        **fitted.choices,
        **store_few_images(
            get_task(train_source.task).images_per_class(extracted.targets, len(names))
        ),
        **store_skipped(skipped),
    }
    if "test" in on_others:
        on_test = on_others["test"]
        metrics["test"] = {
            "num_images": len(on_test),
            **without_recall(on_test.metrics(train_source.task, temperature, decisions)),
        }
    head = head_of(
        fitted.model,
        names,
        task=train_source.task,
        metrics=metrics,
        temperature=temperature,
        notes=notes,
    )
    if decisions is not None:
        head = head.with_changes(thresholds=tuple(decisions))
    if isinstance(extracted.cache, FeatureCache) and cache is not False:
        images = fitted.held.images.numpy()
        predictions = Predictions(
            of_folds.logits.numpy(), images, extracted.pixel_digests, extracted.targets, views
        )
        keep_predictions(extracted.cache, head.digest, predictions)
    if report is not None and len(measured):
        write_report(report, head, measured.logits, measured.y)
    for remark in remarks(metrics, names, head.task):
        level = logging.WARNING if remark.serious else logging.INFO
        logger.log(level, "%s", remark.text, extra={IN_SUMMARY: True})
    return head


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


def _name_validation(own: bool, folds: int) -> str:
    if own:
        return "own"
    return "none" if not folds else "holdout" if folds == 1 else "cross_validation"
