"""Train a head on frozen features: extract them once, train, measure and report."""

from __future__ import annotations

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

from .training.build import fit_alone
from .training.data import open_training
from .training.options import ExtractionOptions, HeadOptions


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
    options = HeadOptions(
        kind, levels, l2, class_weights, thresholds, holdout, views, seed, notes, report
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
        extend=extend,
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
        return fit_alone(training)
