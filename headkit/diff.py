"""Say how two heads differ, in what they hold and in what they say about images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headkit.adapters.data.evaluation import HeadOutputs, open_evaluation
from headkit.adapters.data.options import ReadOptions
from headkit.adapters.heads.difference import (
    HeadDifference,
    find_differences,
    labels_of,
    match_classes,
)
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.tasks import get_task

from .evaluate import run_head

Array = np.ndarray[Any, Any]

MAX_CHANGES = 20
"""Maximum number of pairs of different predictions that are listed."""


def diff_heads(
    a: Head | str | Path,
    b: Head | str | Path,
    data: Any = None,
    *,
    split: str | None = None,
    backbone: str | None = None,
    weights: str | Path | None = None,
    remap: bool = False,
    cache: bool | str | Path = True,
    batch_size: int = 16,
    workers: int | None = None,
    max_unreadable: float = 0.05,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> HeadDifference:
    """Compare two heads, and on request what they say about images.

    With data, ``agreement`` has ``num_images`` and, for multiclass heads, the share of images to
    which both give the same class (``agreement``) and the pairs of classes that differ, the most
    images first (``changes``: ``a``, ``b``, ``count``). For multilabel heads, ``agreement`` is the
    share of equal decisions about the labels that both have, at the heads' thresholds. For
    regression heads, ``mean_difference`` is the mean absolute difference of the shared outputs. A
    class that was only renamed is the same class.

    Args:
        a: A head, the path of a head file, or a reference to a store.
        b: The other head.
        data: Labeled images, whose labels are those of ``a``; see ``evaluate``. Default: none.
        split: See ``evaluate``.
        backbone: See ``load_backbone_of``.
        weights: See ``load_backbone_of``.
        remap: See ``load_backbone``.
        cache: See ``fit``.
        batch_size: Number of images per forward pass.
        workers: See ``fit``.
        max_unreadable: See ``evaluate``.
        progress: See ``fit``.

    Raises:
        HeadFormatError, RegistryError: A head cannot be read.
        DataError, UnknownArchitecture, WeightsError, BackboneMismatch: See ``evaluate``.
        ValueError: The heads have different tasks or no common class, so that their predictions
            cannot be compared.
    """
    from headkit.registry.resolve import load_head

    heads = load_head(a), load_head(b)
    found = find_differences(*heads)
    if data is None:
        return found
    _check_comparable(*heads)
    outputs = HeadOutputs(heads[0].task, labels_of(heads[0]))
    dataset = open_evaluation(data, outputs, split, ReadOptions())
    options = {
        "cache": cache,
        "batch_size": batch_size,
        "workers": workers,
        "max_unreadable": max_unreadable,
        "progress": progress,
    }
    loading = {"weights": weights, "remap": remap}
    logits = [
        run_head(
            head,
            dataset,
            backbone=backbone,
            weights=loading,
            folder=Path(given).parent if isinstance(given, str | Path) else None,
            options=options,
        )
        for head, given in zip(heads, (a, b), strict=True)
    ]
    return replace(found, agreement=_compare(heads, logits))


def _check_comparable(a: Head, b: Head) -> None:
    if a.task != b.task:
        raise ValueError(
            f"the tasks of the heads are {a.task} and {b.task}, expected the same task: their "
            "predictions cannot be compared, omit data (--data)"
        )
    if not match_classes(a, b):
        raise ValueError(
            "the heads have no common label: their predictions cannot be compared, omit data "
            "(--data)"
        )


def _compare(heads: tuple[Head, Head], logits: list[Array]) -> dict[str, Any]:
    task = get_task(heads[0].task)
    matched = match_classes(*heads)
    number = len(logits[0])
    if task.exclusive:
        classes = [scores.argmax(1) for scores in logits]
        same_in_b = np.full(heads[0].num_classes, -1)
        for row_a, row_b in matched:
            same_in_b[row_a] = row_b
        different = same_in_b[classes[0]] != classes[1]
        changed = [
            np.array(labels_of(head))[rows[different]].tolist()
            for head, rows in zip(heads, classes, strict=True)
        ]
        pairs = Counter(zip(*changed, strict=True))
        return {
            "num_images": number,
            "agreement": round(1 - float(different.mean()), 6),
            "changes": [
                {"a": pair[0], "b": pair[1], "count": count}
                for pair, count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
            ][:MAX_CHANGES],
        }
    columns = [[pair[side] for pair in matched] for side in (0, 1)]
    values = [
        task.scores(one, head.temperature)[:, chosen]
        for head, one, chosen in zip(heads, logits, columns, strict=True)
    ]
    if not task.has_classes:
        difference = float(np.abs(values[0] - values[1]).mean())
        return {"num_images": number, "mean_difference": round(difference, 6)}
    found = [
        one >= (0.5 if head.thresholds is None else np.array(head.thresholds)[chosen])
        for head, one, chosen in zip(heads, values, columns, strict=True)
    ]
    return {"num_images": number, "agreement": round(float((found[0] == found[1]).mean()), 6)}
