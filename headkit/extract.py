"""Extract the features of labeled data with a frozen backbone, as arrays or for a head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from headkit.adapters.backbone.level import LAST, Level, LevelNames, level_names
from headkit.adapters.backbone.levels import vector_levels
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.data.features import Features
from headkit.adapters.data.open import open_data
from headkit.adapters.data.options import ClassFrom
from headkit.adapters.features.executors.choose import choose_executor
from headkit.adapters.features.extract import ExtractedFeatures, Progress
from headkit.adapters.features.transform import View
from headkit.adapters.fitting.classifier import AUTO
from headkit.adapters.heads.tasks import TaskName

from .extraction import check_sizes, get_backbone, open_extraction


def extract(
    backbone: str | nn.Module,
    data: Any,
    *,
    val: Any = None,
    task: TaskName | None = None,
    class_from: ClassFrom | None = None,
    path_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    levels: LevelNames = LAST,
    weights: str | Path | None = None,
    remap: bool = False,
    runtime: str = "auto",
    precision: str = "fp32",
    executor: str = "local",
    cache: bool | str | Path = True,
    batch_size: int = 16,
    workers: int | None = None,
    max_unreadable: float = 0.05,
    progress: Progress | None = None,
    **timm_kwargs: Any,
) -> Features:
    """Return features, targets and paths of labeled images as arrays.

    The features are exactly what enters the classifier (``headkit.features``), and what ``fit``
    trains on. Both use the same cache. ``fit(backbone, features)`` and ``evaluate(head, features)``
    take the result in place of the images. With ``levels="all"``, ``fit`` gives the head that the
    images give, whatever it reads.

    Args:
        backbone: A timm entry point, or a timm model, which may be compiled or wrapped.
        data: Labeled images in any form that ``fit`` takes.
        val: Validation images, see ``fit``; their features are ``val`` of the result. Default: the
            validation split of ``data``, if it has one.
        task: See ``fit``.
        class_from: See ``fit``.
        path_column: See ``fit``.
        label_column: See ``fit``.
        label_separator: See ``fit``.
        levels: Levels whose vectors are ``levels`` of the result, from the same forward pass:
            ``last`` for none beside the last features, ``all``, or names of levels, see
            ``headkit.levels``, whose items can stand for their names.
        weights: See ``fit``.
        remap: See ``fit``.
        runtime: See ``fit``.
        precision: See ``fit``.
        executor: See ``fit``.
        cache: See ``fit``.
        batch_size: Number of images per forward pass.
        workers: See ``fit``.
        max_unreadable: See ``fit``.
        progress: See ``fit``.
        **timm_kwargs: See ``load_backbone``.

    Raises:
        UnknownArchitecture, WeightsError: See ``load_backbone``.
        DataError: See ``open_data``; or too many images cannot be read; or ``data`` are features
            without these levels.
        DependencyMissing: The runtime or the executor is not installed.
        ContractError: The model has no such level.
        ValueError: An argument is out of its range.
    """
    check_sizes(batch_size, workers)
    wanted = [name for name in level_names(levels) if name != LAST]
    if AUTO in wanted:
        raise ValueError(
            f"levels is {levels!r}, but only fit can choose levels, by how well they predict the "
            "labels: pass 'last', 'all' or names of levels, such as headkit.levels(model) lists"
        )
    choose_executor(executor)
    train, held = open_data(
        data,
        val,
        task=task,
        class_from=class_from,
        path_column=path_column,
        label_column=label_column,
        label_separator=label_separator,
    )
    backbone = get_backbone(backbone, weights, remap, timm_kwargs)
    chosen = vector_levels(backbone, wanted)
    sources = [train] if held is None else [train, held]
    with open_extraction(
        backbone,
        [(source, View()) for source in sources],
        runtime=runtime,
        precision=precision,
        executor=executor,
        cache=cache,
        batch_size=batch_size,
        workers=workers,
        max_unreadable=max_unreadable,
        progress=progress,
        levels=[level.name for level in chosen],
    ) as extraction:
        val_features = None if held is None else _to_arrays(held, extraction(held), chosen, None)
        return _to_arrays(train, extraction(train), chosen, val_features)


def _to_arrays(
    source: ImageDataset,
    extracted: ExtractedFeatures,
    chosen: Sequence[Level],
    val: Features | None,
) -> Features:
    loaded = extracted.cache.load(extracted.locations)
    num_branches = len(loaded) - len(extracted.levels)
    branches, vectors = loaded[:num_branches], loaded[num_branches:]
    of_level = dict(zip(extracted.levels, vectors, strict=True))
    return Features(
        x=torch.cat([branch.flatten(1) for branch in branches], 1).numpy(),
        y=extracted.targets,
        names=np.array(extracted.names),
        label_names=source.label_names,
        task=source.task,
        name=source.name,
        unreadable=extracted.unreadable,
        val=val,
        levels={level.name: of_level[level].numpy() for level in chosen},
    )
