"""Train a head on frozen features: choose a runtime, extract once, then solve."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.data.dataset import ImageDataset, count
from headkit.adapters.data.open import open_data
from headkit.adapters.errors import ContractError, ExportError
from headkit.adapters.features.duplicates import choose_validation, count_duplicates
from headkit.adapters.features.executors.choose import choose_executor
from headkit.adapters.features.extract import ExtractedFeatures, Progress, extract
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.features.runtime import Runtime
from headkit.adapters.features.transform import View
from headkit.adapters.files import cache_folder
from headkit.adapters.fitting.adamw import predict_logits
from headkit.adapters.fitting.class_weights import ClassWeights, check_class_weights
from headkit.adapters.fitting.classifier import plan_classifier, train_classifier
from headkit.adapters.fitting.data_checks import check_classes, check_crops
from headkit.adapters.fitting.metrics import fit_temperature, measure
from headkit.adapters.fitting.report import check_report, write_report
from headkit.adapters.heads.attach import head_of
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.kinds import KINDS, Kind
from headkit.adapters.heads.tasks import TaskName, get_task
from headkit.export.runtimes.choose import choose_runtime

logger = logging.getLogger("headkit")

SMALL = 256
"""Number of images below which converting the backbone for another runtime than torch takes longer
than it saves."""


def fit(
    backbone: str | nn.Module,
    data: str | Path,
    *,
    val: str | Path | None = None,
    task: TaskName | None = None,
    kind: Kind | None = None,
    weights: str | Path | None = None,
    remap: bool = False,
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
    """Train a head on the frozen features of ``backbone``.

    Features are extracted once with the backbone's own eval preprocessing and kept in a cache. A
    linear head is solved for (``linear.solve``), any other is trained by AdamW
    (``adamw.train``). A backbone that is given as a model carries the new head afterwards.

    Args:
        backbone: timm entry point, or a timm model.
        data: training images, see ``open_data``.
        val: validation images. Without them, and where ``data`` has no validation split,
            ``holdout`` of each class is kept back.
        task: ``multiclass``, ``multilabel`` or ``regression``; without it what the data are.
        kind: kind of head, see ``adapt``. Without it the architecture's own classifier if that is
            linear or part of how the architecture makes its logits, else ``linear``.
        weights: see ``load_backbone``.
        remap: see ``load_backbone``.
        holdout: share of each class to keep back, between 0 and 1.
        l2: strength of the penalty of a linear head, or several to choose from on validation log
            loss; without it a path of them, see ``solve``.
        class_weights: ``balanced`` to weigh classes inversely to their number of images, or a
            weight by label name, 1 where there is none. Validation is never weighted.
        views: number of crops of each training image: the eval crop, and random ones, flipped or
            not.
        runtime: what runs the backbone: ``auto`` (``onnxruntime`` on a CPU, ``openvino`` there for
            bf16, ``torch`` on a GPU and for few images), or one of them by name.
        precision: precision of the runtime's arithmetic, ``fp32`` or ``bf16``.
        executor: where features are extracted: ``local``, with the processes of this machine, or
            ``ray``, on all cores of a Ray cluster, see ``extract_with_ray``.
        cache: keep features in the user's cache, in this folder, or (False) not at all.
        seed: seed for the choice of held-out images, for random crops, and for training.
        batch_size: number of images per forward pass.
        workers: number of processes that decode images; one per core without it.
        max_unreadable: share of images that may be unreadable and left out, 0 to 1.
        report: folder for a confusion matrix, a reliability diagram and their numbers.
        notes: free text, kept with the head.
        progress: is called with the number of images that were read.
        **timm_kwargs: see ``load_backbone``.

    Raises:
        UnknownArchitecture, WeightsError: see ``load_backbone``.
        DataError: see ``open_data``; or too many images are unreadable.
        DependencyMissing: the runtime or the executor is not installed.
        ContractError: the architecture cannot take this kind of head.
        OutputError: the cache or the report cannot be written.
    """
    # Refuse all that can be refused before minutes of extraction.
    _check(holdout=holdout, l2=l2, kind=kind, views=views, batch_size=batch_size, workers=workers)
    if report is not None:
        check_report(report)
    run_on = choose_executor(executor)
    train_source, val_source = open_data(data, val, task=task)
    weighing = check_class_weights(class_weights, train_source)
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, weights, remap=remap, **timm_kwargs)
    plan = plan_classifier(backbone, kind)
    with _cache(cache) as root:
        extraction = _Extraction(
            backbone,
            _choose_runtime(runtime, precision, backbone, train_source, executor),
            root,
            fall_back=runtime == "auto",
            options={
                "executor": run_on,
                "batch_size": batch_size,
                "workers": os.cpu_count() or 1 if workers is None else workers,
                "max_unreadable": max_unreadable,
                "progress": progress,
            },
        )
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
            logger.warning("no image is left to validate on: the head comes without metrics")
        names = train_source.label_names or get_task(train_source.task).label_names(examples.y)
        model, found = train_classifier(
            backbone, plan, examples, validation, len(names), train_source.task, weighing, l2, seed
        )
        logits = None if validation is None else predict_logits(model, validation)
    metrics: dict[str, Any] = {}
    temperature = 1.0
    if logits is not None and validation is not None:
        temperature = fit_temperature(logits, validation.y, train_source.task)
        metrics = measure(logits, validation.y, train_source.task, temperature)
    metrics |= {
        "num_train": len(examples) // views,
        "num_val": 0 if validation is None else len(validation),
        "num_unreadable": len(extracted.unreadable)
        + (len(held.unreadable) if val_source is not None else 0),
        **duplicates,
        **found,
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
        raise ValueError(f"holdout is {holdout}, expected a share between 0 and 1")
    for strength in () if l2 is None else (l2,) if isinstance(l2, int | float) else l2:
        if not strength > 0:
            raise ValueError(f"l2 is {strength}, expected a positive strength")
    if kind is not None and kind not in KINDS:
        raise ContractError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    for name, value in (("views", views), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    if workers is not None and workers < 0:
        raise ValueError(f"workers is {workers}, expected 0 or more")


def _choose_runtime(
    name: str, precision: str, model: nn.Module, source: ImageDataset, executor: str
) -> Runtime:
    if executor == "ray":  # one process per core
        return choose_runtime(name, precision, model, threads=1)
    images = count(source)
    small = images is not None and images < SMALL
    if name == "auto" and precision == "fp32" and small:
        name = "torch"
    return choose_runtime(name, precision, model)


@contextmanager
def _cache(cache: bool | str | Path) -> Iterator[Path]:
    if cache is not False:
        yield cache_folder(cache)
        return
    with tempfile.TemporaryDirectory(prefix="headkit-") as folder:
        yield Path(folder)


@dataclass
class _Extraction:
    """Extraction with one runtime for all sources of a head: their numbers have to go together."""

    model: nn.Module
    runtime: Runtime
    root: Path
    fall_back: bool
    options: Mapping[str, Any]

    def __call__(self, source: ImageDataset, view: View | None = None) -> ExtractedFeatures:
        try:
            return extract(self.model, source, self.runtime, self.root, view=view, **self.options)
        except ExportError as error:
            if not self.fall_back:
                raise
            logger.warning("extracting with torch instead of %s: %s", self.runtime.name, error)
            threads = self.runtime.threads
            self.runtime = choose_runtime("torch", "fp32", self.model, threads)
            self.fall_back = False
            return self(source, view)
