"""What images and targets there are: one split of a data set, before anything is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import TaskName

Targets = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """One split of a data set: where its images are, and what is to be predicted of them.

    One of ``paths``, ``reader`` and ``stream`` is set.

    Attributes:
        name: how messages call it.
        task: what the targets are.
        label_names: one per output; empty for a reader that has no names.
        paths: of the image files, where the data are files; as given, absolute or relative to the
            working folder.
        targets: beside ``paths``. int64 ``[N]``, indices into ``label_names``, for multiclass;
            float32 ``[N, outputs]``, of 0 and 1 for multilabel, of numbers for regression.
        reader: timm's reader with random access: ``reader[i]`` is a file or image and its target.
        stream: timm's iterable data set, of images and targets, where there is no random access.
    """

    name: str
    task: TaskName
    label_names: tuple[str, ...]
    paths: tuple[str, ...] | None = None
    targets: Targets | None = None
    reader: Any = None
    stream: Any = None


def count(source: ImageDataset) -> int | None:
    """Return the number of images, or ``None`` if a stream does not know it."""
    if source.paths is not None:
        return len(source.paths)
    if source.reader is not None:
        return len(source.reader)
    return len(source.stream) or None


def nothing_in(path: str | os.PathLike[str], expected: str) -> DataError:
    """Build the error for a path that is no data, with what was ``expected`` of it."""
    found = "it is a file" if Path(path).exists() else "no such folder or file"
    return DataError(f"no data in {path}: {found}; expected {expected}")


def enumerated(names: Iterable[str], limit: int = 5) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def refuse_unknown(where: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Raise a ``DataError`` that names what is in ``found`` and not in ``known``."""
    unknown = sorted(set(found).difference(known))
    if unknown:
        raise DataError(
            f"{where} has the class {enumerated(unknown)}, which the training data lacks"
        )


def refuse_one(where: str, names: Iterable[str]) -> None:
    """Raise a ``DataError`` unless there are two classes at least."""
    names = list(names)
    if len(names) < 2:
        found = f"one class, {names[0]}" if names else "no class"
        raise DataError(f"{where} has {found}: a classifier needs at least two")
