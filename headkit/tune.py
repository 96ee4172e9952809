"""Tune a backbone together with a head, and keep the head alone unless that is better."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from headkit.adapters.backbone.config.input_size import ImageSize
from headkit.adapters.backbone.level import LevelNames
from headkit.adapters.data.options import ClassFrom
from headkit.adapters.features.extract import Progress
from headkit.adapters.fitting.class_weights import ClassWeights
from headkit.adapters.fitting.classifier import AUTO
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.kinds import Kind
from headkit.adapters.heads.tasks import TaskName
from headkit.adapters.tuning.batches import Augmentation, check_source
from headkit.adapters.tuning.methods import DEFAULT_METHODS, METHODS, RATES
from headkit.adapters.tuning.tuner import Candidate, Recipe

from .training.data import open_training
from .training.options import ExtractionOptions, HeadOptions
from .training.tuning import Tuning

logger = logging.getLogger("headkit")


def tune(
    backbone: str | nn.Module,
    data: Any,
    *,
    method: str = AUTO,
    rank: int = 8,
    rates: float | Sequence[float] | None = None,
    epochs: float = 8,
    augmentation: Augmentation | None = None,
    val: Any = None,
    test: Any = None,
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
    runtime: str = "auto",
    precision: str = "fp32",
    executor: str = "local",
    cache: bool | str | Path = True,
    seed: int = 0,
    batch_size: int = 32,
    workers: int | None = None,
    max_unreadable: float = 0.05,
    report: str | Path | None = None,
    notes: str = "",
    progress: Progress | None = None,
    **timm_kwargs: Any,
) -> Head:
    """Train a head, and with it small changes to the backbone, which become a part of the head.

    Tuning starts from the head that ``fit`` trains. Images that are left out choose the method and
    the learning rate, and decide whether tuning pays: unless the loss is lower than that of the
    head by at least one standard error, the result is the head without changes. If ``backbone`` is
    a model, it carries the result afterwards.

    The metrics are those of a fifth of the images, which is held out of all training and of all
    choices, or those of ``val``. ``metrics["tuning"]`` has those of the head without changes on the
    same images. The result is trained on all training images. A killed run that is started again
    continues from its checkpoints in the cache, and its result is the same bit for bit.

    Args:
        backbone: See ``fit``.
        data: Training images with their labels, see ``fit``. They are read several times, so they
            must be image files or images in memory.
        method: What changes: ``affine``, all vectors of the backbone and a scale for each output of
            its layers; ``bias``, all vectors; ``lora``, a matrix of low rank for each layer;
            ``last``, the last block; or ``auto``, the better of ``affine`` and ``lora``.
        rank: Rank of the matrices of ``lora``.
        rates: Learning rate of the changes, or several, of which held-out images choose one.
            Default: one to three that depend on the method.
        epochs: Number of passes over the training images; there are at least 120 batches.
        augmentation: Random changes of the training images, see ``Augmentation``.
        val: See ``fit``.
        test: See ``fit``.
        task: See ``fit``.
        class_from: See ``fit``.
        path_column: See ``fit``.
        label_column: See ``fit``.
        label_separator: See ``fit``.
        kind: See ``fit``.
        levels: See ``fit``.
        weights: See ``fit``.
        remap: See ``fit``.
        img_size: See ``fit``.
        crop_pct: See ``fit``.
        crop_mode: See ``fit``.
        holdout: Share of each class that is held out to measure, between 0 and 1. It excludes
            ``val``. Default: 0.2.
        l2: See ``fit``.
        class_weights: See ``fit``; they weigh the loss of the tuning, too.
        thresholds: See ``fit``.
        runtime: Runtime that extracts features, see ``fit``. Tuning uses torch.
        precision: Precision of the backbone's arithmetic, ``fp32`` or ``bf16``; with ``bf16``,
            tuning uses torch's autocast.
        executor: See ``fit``.
        cache: See ``fit``; checkpoints are kept there, too.
        seed: See ``fit``.
        batch_size: Number of images of a batch.
        workers: See ``fit``.
        max_unreadable: See ``fit``.
        report: See ``fit``.
        notes: See ``fit``.
        progress: Called with the name of a data set or of a training, the number of images that it
            has read, and their total.
        **timm_kwargs: See ``load_backbone``.

    Raises:
        UnknownArchitecture, WeightsError: See ``load_backbone``.
        DataError: See ``open_data``; or the data are features, or can be read only once; or they
            have too few images to leave some out.
        DependencyMissing: The runtime or the executor is not installed.
        ContractError: The architecture does not support this kind of head, this ``img_size`` or
            this method.
        OutputError: The cache or the report cannot be written.
        ValueError: An argument is out of its range.
    """
    recipe = Recipe(rank, epochs, batch_size=batch_size, autocast=precision == "bf16")
    candidates = _candidates(recipe, method, rates)
    options = HeadOptions(
        kind, levels, l2, class_weights, thresholds, holdout, 1, seed, notes, report
    )
    with open_training(
        backbone,
        data,
        val,
        test,
        options,
        ExtractionOptions(
            runtime, precision, executor, cache, batch_size, workers, max_unreadable, progress
        ),
        check=check_source,
        task=task,
        reading={
            "class_from": class_from,
            "path_column": path_column,
            "label_column": label_column,
            "label_separator": label_separator,
        },
        weights=weights,
        remap=remap,
        backbone_options={
            "img_size": img_size,
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
            **timm_kwargs,
        },
    ) as training:
        return Tuning(training, recipe, candidates, augmentation or Augmentation()).run()


def _candidates(
    recipe: Recipe, method: str, rates: float | Sequence[float] | None
) -> list[Candidate]:
    """Return what to try; raise ``ValueError`` unless each value is in its range."""
    if method != AUTO and method not in METHODS:
        raise ValueError(f"method is {method!r}, expected {AUTO} or one of {', '.join(METHODS)}")
    if recipe.rank < 1:
        raise ValueError(f"rank is {recipe.rank}, expected at least 1")
    if not recipe.epochs > 0:
        raise ValueError(f"epochs is {recipe.epochs}, expected a number above 0")
    if rates is None:
        if method != AUTO:
            return [Candidate(method, rate) for rate in RATES[method]]
        return [Candidate(one, RATES[one][-1]) for one in DEFAULT_METHODS]
    several = [float(one) for one in ([rates] if isinstance(rates, int | float) else rates)]
    if not several or not all(0 < one < float("inf") for one in several):
        raise ValueError(f"rates is {rates}, expected learning rates above 0")
    methods = DEFAULT_METHODS if method == AUTO else (method,)
    return [Candidate(one, rate) for one in methods for rate in dict.fromkeys(several)]
