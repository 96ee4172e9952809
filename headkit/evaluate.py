"""Measure a head, or an exported model, on labeled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.data.dataset import ImageDataset, count
from headkit.adapters.data.evaluation import HeadOutputs, open_evaluation
from headkit.adapters.data.options import ClassFrom, ReadOptions
from headkit.adapters.data.samples import iterate_samples
from headkit.adapters.errors import DataError, HeadFormatError
from headkit.adapters.files import is_file, is_folder
from headkit.adapters.fitting.metrics import measure, measure_more, measure_outputs, most_confused
from headkit.adapters.heads.summary import remarks, store_skipped
from headkit.adapters.heads.tasks import DEFAULT, TaskName, get_task
from headkit.adapters.images.formats import is_image
from headkit.adapters.images.open import ImageReader

from .evaluation import Evaluation

if TYPE_CHECKING:  # an exported model is measured without torch
    from torch import nn

    from headkit.adapters.heads.head import Head
    from headkit.export.graph.description.head_info import HeadInfo
    from headkit.export.predict.predictor import Predictor

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int | None], None]

MAX_CONFUSED = 20
"""Maximum number of pairs of confused classes in an evaluation."""
_LISTED = 3


def evaluate(
    head_or_onnx: Head | Predictor | str | Path,
    data: Any,
    *,
    split: str | None = None,
    name: str | None = None,
    backbone: nn.Module | str | None = None,
    weights: str | Path | None = None,
    remap: bool = False,
    class_from: ClassFrom | None = None,
    path_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    runtime: str = "auto",
    precision: str = "fp32",
    executor: str = "local",
    cache: bool | str | Path = True,
    batch_size: int = 16,
    workers: int | None = None,
    threads: int | None = None,
    max_unreadable: float = 0.05,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a head, or an exported model, on labeled images.

    A head runs on its backbone, whose features are found in the cache or kept there. An exported
    model runs in ONNX Runtime, without torch. The labels of the data are matched by name to those
    of the head.

    Args:
        head_or_onnx: A head, the path of a head file, a reference to a store; or the path of an
            exported model, or a ``Predictor``.
        data: Labeled images, see ``fit``; or, for a head, features with the levels that it reads.
        split: The split to measure on: ``test``, ``val`` or ``train``. Default: the test split,
            or else the validation split of data that have splits, and all images of other data.
        name: Name of the head in a multi model.
        backbone: The frozen model of the head, which is not changed, or its name; see ``export``.
        weights: Weights of the backbone of a head, see ``load_backbone_of``.
        remap: See ``load_backbone``.
        class_from: See ``fit``.
        path_column: See ``fit``.
        label_column: See ``fit``.
        label_separator: See ``fit``.
        runtime: Runtime of a head's backbone, see ``fit``.
        precision: Precision of a head's backbone, see ``fit``.
        executor: See ``fit``.
        cache: See ``fit``.
        batch_size: Number of images per forward pass.
        workers: See ``fit``.
        threads: Number of threads of an exported model. Default: one per core.
        max_unreadable: Largest share of images that may be skipped as unreadable, 0 to 1.
        progress: See ``fit``.

    Raises:
        DataError: The data have a class that the head does not have, or see ``open_data``; or too
            many images cannot be read.
        HeadFormatError, RegistryError: The head cannot be read.
        ExportError: The exported model cannot be read, or it has no head called ``name``.
        UnknownArchitecture, WeightsError, BackboneMismatch: The backbone cannot be loaded.
        ValueError: An argument is out of its range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    options = ReadOptions(class_from, path_column, label_column, label_separator)
    predictor = _open_predictor(head_or_onnx, threads)
    if predictor is not None:
        _refuse_backbone(backbone, weights)
        info = predictor.info.head(name)
        names = tuple(info.label_names)
        temperature = float(info.description.get("temperature", 1.0))
        thresholds = info.description.get("thresholds")
        task: TaskName = info.description.get("task", DEFAULT)
        dataset = open_evaluation(data, HeadOutputs(task, names), split, options)
        found = _run_predictor(predictor, info, dataset, batch_size, max_unreadable, progress)
        model = str(head_or_onnx) if isinstance(head_or_onnx, str | Path) else repr(predictor)
    else:
        from headkit.registry.resolve import load_head

        head = load_head(head_or_onnx)  # type: ignore[arg-type]  # it is no predictor
        if name is not None:
            raise ValueError(f"name is {name!r}, but a head file has one head: omit name (--name)")
        names = head.label_names or tuple(map(str, range(head.num_classes)))
        temperature, task, thresholds = head.temperature, head.task, head.thresholds
        dataset = open_evaluation(data, HeadOutputs(task, names), split, options)
        is_path = isinstance(head_or_onnx, str | Path)
        found = _run_head(
            head,
            dataset,
            backbone,
            {"weights": weights, "remap": remap},
            Path(str(head_or_onnx)).parent if is_path else None,
            {
                "runtime": runtime,
                "precision": precision,
                "executor": executor,
                "cache": cache,
                "batch_size": batch_size,
                "workers": workers,
                "max_unreadable": max_unreadable,
                "progress": progress,
            },
        )
        model = str(head_or_onnx) if is_path else head.architecture
    return _measure(model, dataset, names, task, temperature, thresholds, found)


@dataclass(frozen=True)
class _Found:
    """Logits ``[N, num_outputs]``, targets of the ``N`` readable images, and the other images."""

    logits: Array
    y: Array
    num_unreadable: int


def _measure(
    model: str,
    dataset: ImageDataset,
    names: tuple[str, ...],
    task: TaskName,
    temperature: float,
    thresholds: Sequence[float] | None,
    found: _Found,
) -> Evaluation:
    arguments = (found.logits, found.y, task, temperature, thresholds)
    metrics = {
        **measure(*arguments),
        **measure_more(*arguments),
        "num_unreadable": found.num_unreadable,
        **store_skipped((one.reason, one.count) for one in dataset.skipped),
    }
    columns = measure_outputs(*arguments)
    rows = zip(*columns.values(), strict=True)
    confused = []
    if get_task(task).exclusive:
        confused = most_confused(found.logits, found.y, MAX_CONFUSED)
    notes = [*dataset.warnings, *(one.text for one in remarks(metrics, names, task))]
    return Evaluation(
        model=model,
        data=dataset.name,
        task=task,
        num_images=len(found.y),
        metrics=metrics,
        outputs=tuple(
            {"label": label, **dict(zip(columns, row, strict=True))}
            for label, row in zip(names, rows, strict=True)
        ),
        confused=tuple(
            {
                "true": names[pair.true],
                "predicted": names[pair.predicted],
                "count": pair.count,
                "images": pair.images,
            }
            for pair in confused
        ),
        notes=tuple(notes),
    )


def _open_predictor(head_or_onnx: Any, threads: int | None) -> Predictor | None:
    """Return a predictor, or None for a head."""
    from headkit.adapters.file_kinds import MODEL, detect_file_kind

    if hasattr(head_or_onnx, "logits"):
        predictor: Predictor = head_or_onnx
        return predictor
    if not isinstance(head_or_onnx, str | Path):
        return None
    path = Path(head_or_onnx)
    if is_folder(path) or (is_file(path) and is_image(path)):
        kind = "a folder" if is_folder(path) else "an image"
        raise HeadFormatError(
            f"{path} is {kind}, expected a head file or an exported model: pass the images as data "
            "(--data)"
        )
    if path.suffix.lower() != MODEL.suffix and detect_file_kind(path) is not MODEL:
        return None
    from headkit.export.predict.predictor import Predictor

    return Predictor(path, threads=threads)


def _refuse_backbone(backbone: object, weights: object) -> None:
    for argument, value in (("backbone", backbone), ("weights", weights)):
        if value is not None:
            raise ValueError(
                f"an exported model has its own backbone: omit {argument} (--{argument})"
            )


def _run_head(
    head: Head,
    dataset: ImageDataset,
    backbone: nn.Module | str | None,
    weights: Mapping[str, Any],
    folder: Path | None,
    options: Mapping[str, Any],
) -> _Found:
    from headkit.adapters.backbone.module_copy import copy_structure
    from headkit.adapters.compat import unwrap
    from headkit.adapters.features.labeled_features import LabeledFeatures
    from headkit.adapters.features.transform import View
    from headkit.adapters.fitting.adamw import predict_logits
    from headkit.adapters.heads.attach import attach
    from headkit.adapters.heads.backbone_of_head import load_backbone_of

    from .extraction import open_extraction

    if backbone is None or isinstance(backbone, str):
        backbone = load_backbone_of(head, backbone=backbone, folder=folder, **weights)
    plain = unwrap(backbone)
    model = attach(copy_structure(plain, share_tensors=True), head)
    levels = [level.name for level in head.levels]
    requests = [(dataset, View())]
    with open_extraction(model, requests, rule=head.pixels, levels=levels, **options) as extraction:
        extracted = extraction(dataset)
        examples = LabeledFeatures.from_views([extracted])
        logits = predict_logits(model, examples).numpy()
    return _Found(logits, examples.y.numpy(), len(extracted.unreadable))


def _run_predictor(
    predictor: Predictor,
    info: HeadInfo,
    dataset: ImageDataset,
    batch_size: int,
    max_unreadable: float,
    progress: Progress | None,
) -> _Found:
    if dataset.features is not None:
        raise DataError(
            f"{dataset.name} has features, but an exported model takes images: pass images, or "
            "the head file"
        )
    report = progress or (lambda *_: None)
    read = ImageReader.for_model(predictor.info.backbone["pretrained_cfg"], info.pixels)
    total = count(dataset)
    logits: list[Array] = []
    targets: list[Any] = []
    unreadable: list[str] = []
    batch: list[Array] = []

    def run() -> None:
        if batch:
            logits.append(predictor.logits(np.stack(batch), info.name or None))
            batch.clear()

    done = 0
    for source, target in iterate_samples(dataset):
        try:
            if isinstance(source, DataError):
                raise source
            image = read(source)
        except DataError as error:
            unreadable.append(str(error))
        else:
            raw = predictor.info.preprocess
            pixels = np.atleast_3d(np.asarray(image)) if raw else predictor.preprocess(image)
            if len(batch) == batch_size or (batch and batch[0].shape != pixels.shape):
                run()
            batch.append(pixels)
            targets.append(target)
        done += 1
        report(dataset.name, done, total)
    run()
    if not targets or len(unreadable) > max_unreadable * done:
        raise DataError(
            f"{len(unreadable)} of {done} images of {dataset.name} cannot be read, expected at "
            f"most {max_unreadable:.0%} (max_unreadable): {'; '.join(unreadable[:_LISTED])}"
        )
    return _Found(np.concatenate(logits), np.array(targets), len(unreadable))


def run_head(
    head: Head,
    dataset: ImageDataset,
    *,
    backbone: nn.Module | str | None,
    weights: Mapping[str, Any],
    folder: Path | None,
    options: Mapping[str, Any],
) -> Array:
    """Return the logits ``[N, num_outputs]`` of the readable images of a data set.

    Args:
        head: The head.
        dataset: The images; their targets make no difference.
        backbone: See ``evaluate``.
        weights: The arguments ``weights`` and ``remap`` of ``evaluate``.
        folder: See ``load_backbone_of``.
        options: Options of ``open_extraction``.

    Raises:
        DataError, UnknownArchitecture, WeightsError, BackboneMismatch: See ``evaluate``.
    """
    return _run_head(head, dataset, backbone, weights, folder, options).logits
