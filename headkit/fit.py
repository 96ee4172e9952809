"""Train a head on frozen features: extract them once, train, measure and report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from headkit.adapters.backbone.config.input_size import ImageSize
from headkit.adapters.data.open import open_data
from headkit.adapters.data.options import ClassFrom
from headkit.adapters.errors import ContractError
from headkit.adapters.features.duplicates import choose_validation, count_duplicates
from headkit.adapters.features.executors.choose import choose_executor
from headkit.adapters.features.extract import Progress
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.features.transform import View
from headkit.adapters.fitting.adamw import predict_logits
from headkit.adapters.fitting.class_weights import ClassWeights, check_class_weights
from headkit.adapters.fitting.classifier import plan_classifier, train_classifier
from headkit.adapters.fitting.data_checks import check_classes, check_crops
from headkit.adapters.fitting.metrics import fit_temperature, measure
from headkit.adapters.fitting.report import check_report, write_report
from headkit.adapters.heads.attach import head_of
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.kinds import KINDS, Kind
from headkit.adapters.heads.summary import remarks, store_few_images, store_skipped
from headkit.adapters.heads.tasks import TaskName, get_task

from .extraction import check_sizes, get_backbone, open_extraction

logger = logging.getLogger("headkit")

IN_SUMMARY = "in_summary"
"""Attribute of log records that repeat what the metrics of the head say, see ``heads.summary``."""


def fit(
    backbone: str | nn.Module,
    data: Any,
    *,
    val: Any = None,
    task: TaskName | None = None,
    class_from: ClassFrom | None = None,
    path_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    kind: Kind | None = None,
    weights: str | Path | None = None,
    remap: bool = False,
    img_size: ImageSize | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    holdout: float = 0.2,
    l2: float | Sequence[float] | None = None,
    class_weights: ClassWeights | None = None,
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
    """Train a head on the features of a frozen backbone.

    The features are extracted once, with the backbone's own eval preprocessing, and kept in a
    cache. A linear head is solved for (``linear.solve``); any other kind is trained with AdamW
    (``adamw.train``). If ``backbone`` is a model, it carries the new head afterwards.

    Args:
        backbone: A timm entry point, or a timm model, which may be compiled or wrapped.
        data: Training images with their labels: a folder with one folder per class, a CSV file with
            the columns ``path`` and ``label``, or a name that timm's readers know. Or data in
            memory: ``(X, y)``, where X are pixels (uint8 ``[N, height, width, 3]`` or ``[N, height,
            width]``), a list of images or paths, or features (float ``[N, num_features]``); a list
            of pairs (image or path, label); a torch ``Dataset`` of such pairs; a
            ``datasets.Dataset``; a DataFrame with the columns of a CSV file; or the result of
            ``extract``. See ``open_data``.
        val: Validation images, in any of these forms. Default: the validation split of ``data``, or
            else ``holdout`` of each class.
        task: ``multiclass``, ``multilabel`` or ``regression``. Default: the task of the data.
        class_from: Folder that names the class, ``top`` or ``parent``, see ``ReadOptions``.
        path_column: Name of a table's column of image paths, see ``ReadOptions``.
        label_column: Name of a table's column of labels, or several, see ``ReadOptions``.
        label_separator: Text between the labels of one image in a table, see ``ReadOptions``.
        kind: Kind of head, see ``adapt``. Default: the architecture's own classifier if it is
            linear or part of how the architecture computes logits, else ``linear``.
        weights: Weights file of the backbone, see ``load_backbone``.
        remap: Match the tensors of ``weights`` by position, see ``load_backbone``.
        img_size: Edge of the input images in pixels, or height and width, see ``load_backbone``.
        crop_pct: Edge of the crop divided by the edge of the resized image, see timm.
        crop_mode: ``center``, ``squash`` or ``border``, see timm.
        holdout: Share of each class that is held out for validation, between 0 and 1.
        l2: Strength of the L2 penalty of a linear head, or several, of which the one with the
            lowest validation loss is used. Default: a path of strengths, see ``solve``.
        class_weights: ``balanced`` to weigh classes inversely to their number of images, or weights
            by label name; other classes weigh 1. Validation is never weighted.
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
        DataError: See ``open_data``; or too many images cannot be read.
        DependencyMissing: The runtime or the executor is not installed.
        ContractError: The architecture does not support this kind of head, or this ``img_size``.
        OutputError: The cache or the report cannot be written.
        ValueError: An argument is out of its range.
    """
    # Arguments are checked before the extraction, which takes minutes.
    _check(holdout=holdout, l2=l2, kind=kind, views=views, batch_size=batch_size, workers=workers)
    if report is not None:
        check_report(report)
    choose_executor(executor)
    train_source, val_source = open_data(
        data,
        val,
        task=task,
        class_from=class_from,
        path_column=path_column,
        label_column=label_column,
        label_separator=label_separator,
    )
    weighing = check_class_weights(class_weights, train_source)
    inputs: dict[str, Any] = {"img_size": img_size, "crop_pct": crop_pct, "crop_mode": crop_mode}
    backbone = get_backbone(backbone, weights, remap, {**inputs, **timm_kwargs})
    plan = plan_classifier(backbone, kind)
    sources = [train_source] if val_source is None else [train_source, val_source]
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
    ) as extraction:
        extracted = extraction(train_source)
        if val_source is not None:
            held = extraction(val_source)
            mask = np.zeros(len(extracted.targets), np.bool_)
        else:
            held = extracted
            mask = choose_validation(extracted, train_source.task, holdout, seed)
        crops = [extraction(train_source, View(n, seed)) for n in range(1, views)]
        check_crops(extracted, crops)
        check_classes(train_source, extracted.targets[~mask])
        duplicates = count_duplicates(extracted, held if val_source else None)
        examples = LabeledFeatures.from_views([extracted, *crops], ~mask)
        on = np.ones(len(held.targets), np.bool_) if val_source else mask
        validation = LabeledFeatures.from_views([held], on) if on.any() else None
        if validation is None:
            logger.warning(
                "no images are left for validation, so the head will have no metrics: pass val "
                "(--val) or more images per class"
            )
        names = train_source.label_names or get_task(train_source.task).label_names(examples.y)
        model, choices = train_classifier(
            backbone, plan, examples, validation, len(names), train_source.task, weighing, l2, seed
        )
        logits = None if validation is None else predict_logits(model, validation)
    metrics: dict[str, Any] = {}
    temperature = 1.0
    if logits is not None and validation is not None:
        temperature = fit_temperature(logits, validation.y, train_source.task)
        metrics = measure(logits, validation.y, train_source.task, temperature)
    skipped = [(one.reason, one.count) for source in sources for one in source.skipped]
    trained_on = extracted.targets[~mask]
    metrics |= {
        "validation": "none" if validation is None else "own" if val_source else "held_out",
        "num_train": len(examples) // views,
        "num_val": 0 if validation is None else len(validation),
        "num_unreadable": len(extracted.unreadable)
        + (len(held.unreadable) if val_source is not None else 0),
        **duplicates,
        **choices,
        **store_few_images(get_task(train_source.task).images_per_class(trained_on, len(names))),
        **store_skipped(skipped),
    }
    head = head_of(
        model,
        names,
        task=train_source.task,
        metrics=metrics,
        temperature=temperature,
        notes=notes,
    )
    if report is not None and logits is not None and validation is not None:
        write_report(report, head, logits, validation.y)
    for remark in remarks(metrics, names, head.task):
        level = logging.WARNING if remark.serious else logging.INFO
        logger.log(level, "%s", remark.text, extra={IN_SUMMARY: True})
    return head


def _check(
    *,
    holdout: float,
    l2: float | Sequence[float] | None,
    kind: str | None,
    views: int,
    batch_size: int,
    workers: int | None,
) -> None:
    if not 0 < holdout < 1:
        raise ValueError(f"holdout is {holdout}, expected a fraction between 0 and 1")
    for strength in () if l2 is None else (l2,) if isinstance(l2, int | float) else l2:
        if not strength > 0:
            raise ValueError(f"l2 is {strength}, expected a positive number")
    if kind is not None and kind not in KINDS:
        raise ContractError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if views < 1:
        raise ValueError(f"views is {views}, expected at least 1")
    check_sizes(batch_size, workers)
