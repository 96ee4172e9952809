"""Describe one split of a data set: its images and targets, before any image is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headkit.adapters.errors import DataError
from headkit.adapters.files import NO_SUCH_FILE, why_missing
from headkit.adapters.heads.tasks import TaskName

from .splits import SplitName

Targets = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Skipped:
    """Files or folders that are not read, all for the same reason.

    Attributes:
        reason: Why they are not read, such as ``format .heic``.
        count: Number of them.
        examples: At most three of their paths.
    """

    reason: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """One split of a data set: where its images are, and the target of each image.

    Exactly one of ``paths``, ``reader``, ``stream`` and ``features`` is set.

    Attributes:
        name: The name that messages use.
        task: The kind of targets.
        label_names: One name per output; empty for a reader that has no names.
        paths: Paths of the image files, as the caller wrote them: absolute, or relative to the
            working folder.
        targets: Set together with ``paths``, ``features``, or a ``reader`` of images in memory.
            multiclass: int64 ``[N]``, indices into ``label_names``. multilabel: float32 ``[N,
            outputs]`` of 0 and 1. regression: float32 ``[N, outputs]`` of numbers.
        reader: Random access to images, such as timm's reader or ``MemoryImages``: ``reader[i]`` is
            whatever ``open_image`` takes, and its target.
        stream: timm's iterable data set of images and targets, for data without random access.
        features: Features that the user has computed, in place of images: those of all branches
            side by side, float32 ``[N, num_features]``.
        levels: Vectors of levels that come with ``features``, by name, float32 ``[N, width]`` each.
        skipped: The files and folders that are not read, one entry per reason.
        warnings: What a user should know about how the data were read.
    """

    name: str
    task: TaskName
    label_names: tuple[str, ...]
    paths: tuple[str, ...] | None = None
    targets: Targets | None = None
    reader: Any = None
    stream: Any = None
    features: NDArray[np.float32] | None = None
    levels: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnusedSplit:
    """A split of the data that neither trains nor validates.

    Attributes:
        split: ``val`` or ``test``.
        name: The name that messages use.
        paths: Paths of its images.
        images_per_class: Number of images by label; empty if they have no labels.
        skipped: The files below it that are not images.
    """

    split: SplitName
    name: str
    paths: tuple[str, ...]
    images_per_class: Mapping[str, int]
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, eq=False)
class Splits:
    """What a user's data hold: the training split, the validation split, and what is not used.

    Attributes:
        train: The training data.
        val: The validation data; None if a part of the training data is to be held out.
        unused: The other splits.
        outside: The files that belong to no split.
        warnings: What a user should know about the splits.
        facts: How the data were read, such as the names of the columns.
    """

    train: ImageDataset
    val: ImageDataset | None = None
    unused: tuple[UnusedSplit, ...] = ()
    outside: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def count(dataset: ImageDataset) -> int | None:
    """Return the number of images, or ``None`` if a stream does not know it."""
    if dataset.paths is not None:
        return len(dataset.paths)
    if dataset.reader is not None:
        return len(dataset.reader)
    if dataset.features is not None:
        return len(dataset.features)
    return len(dataset.stream) or None


def no_data_error(path: str | os.PathLike[str], expected: str) -> DataError:
    """Build the error for a path that holds no data; the message says what was ``expected``."""
    reason = why_missing(path) or "it is a file"
    reason = "no such folder or file" if reason == NO_SUCH_FILE else reason
    return DataError(f"no data in {path}: {reason}; expected {expected}")


def say_missing(path: str) -> str:
    """Return what is wrong with images of which this is the first that is no file."""
    reason = why_missing(path)
    return "do not exist" if reason in ("", NO_SUCH_FILE) else f"cannot be read ({reason})"


def shorten_list(names: Iterable[str], limit: int = 5) -> str:
    """Return the first ``limit`` names, separated by commas, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


class UnknownClasses(DataError):
    """Data have classes that are not known.

    Attributes:
        where: The data, as messages name them.
        unknown: The classes.
    """

    def __init__(self, where: str, unknown: tuple[str, ...]) -> None:
        self.where, self.unknown = where, unknown
        super().__init__(
            f"{where} has classes that the training data does not have: {shorten_list(unknown)}"
        )


def check_known_classes(where: str, classes: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``UnknownClasses`` if some ``classes`` are not among the ``known`` ones."""
    unknown = tuple(sorted(set(classes).difference(known)))
    if unknown:
        raise UnknownClasses(where, unknown)


def check_two_classes(where: str, names: Iterable[str]) -> None:
    """Raise a ``DataError`` if there are fewer than two classes."""
    names = list(names)
    if len(names) < 2:
        actual = f"one class, {names[0]}" if names else "no class"
        raise DataError(f"{where} has {actual}: a classifier needs at least two")
