"""Read a folder with one folder per class, in timm's order and with timm's class names."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from headkit.adapters.errors import DataError
from headkit.adapters.images import is_image

from .dataset import ImageDataset, Targets, check_known_classes, check_two_classes, shorten_list

logger = logging.getLogger("headkit")

_DIGITS = re.compile(r"(\d{1,4000})")  # int() takes no more than 4300


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Return timm's natural sort key: it compares numbers by value and ignores case.

    The text itself breaks the ties that timm leaves to chance: ``A`` and ``a``, ``1`` and ``01``.
    """
    parts = _DIGITS.split(text.lower())
    return [int(part) if part.isdecimal() else part for part in parts], text


def open_folder(root: Path, train_classes: tuple[str, ...] | None = None) -> ImageDataset:
    """List the images below ``root``. The folder that contains an image names its class.

    Args:
        root: A folder with one folder per class; class folders may be nested.
        train_classes: The classes of the training data, if this is validation data.

    Raises:
        DataError: There are no images, a class has no image, an image is outside the class
            folders, there is only one class, the training data lacks a class, or a folder cannot
            be read.
    """
    paths, labels = _list_images(str(root))
    if not paths:
        raise DataError(f"no images in {root}: expected one folder per class with images in it")
    if "" in labels:
        loose = paths[labels.index("")]
        raise DataError(
            f"{root} has images outside the class folders, such as {loose}: move each into the "
            "folder of its class"
        )
    _check_no_empty_class(root, paths)
    classes = set(labels)
    _check_utf8(root, classes)
    if train_classes is None:
        names = tuple(sorted(classes, key=natural_key))
        check_two_classes(str(root), names)
    else:
        check_known_classes(str(root), classes, train_classes)
        names = train_classes
    return ImageDataset(str(root), "multiclass", names, tuple(paths), class_indices(labels, names))


def class_indices(labels: list[str], names: tuple[str, ...]) -> Targets:
    """Return the index of each label in ``names``, int64 ``[N]``."""
    index = {name: number for number, name in enumerate(names)}
    return np.fromiter((index[label] for label in labels), np.int64, len(labels))


def _list_images(root: str) -> tuple[list[str], list[str]]:
    # This gives each file the class and the position that timm.data.readers.find_images_and_targets
    # gives it. timm also follows a link to a parent folder until the system refuses, skips folders
    # that it may not read, and sorts whole paths, which takes most of its time.
    paths: list[str] = []
    labels: list[str] = []
    open_folders = [(_entries(root), "", _identity(root))]
    while open_folders:
        entries, label, _ = open_folders[-1]
        entry = next(entries, None)
        if entry is None:
            open_folders.pop()
        elif not _is_folder(entry):
            paths.append(entry.path)
            labels.append(label)
        elif (identity := _identity(entry.path)) in (above for *_, above in open_folders):
            logger.warning("skipped %s: it links back to a folder above it", entry.path)
        else:
            open_folders.append((_entries(entry.path), entry.name, identity))
    return paths, labels


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    # Sorting whole paths would compare the separator as well, so the key of a folder includes it.
    kept = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_folder(entry):
                    kept.append((natural_key(entry.name + os.sep), entry))
                elif is_image(entry.name):
                    kept.append((natural_key(entry.name), entry))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    kept.sort(key=lambda pair: pair[0])
    return iter([entry for _, entry in kept])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(folder: str) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _check_no_empty_class(root: Path, paths: list[str]) -> None:
    start = len(os.path.join(root, ""))  # noqa: PTH118
    filled = {path[start:].partition(os.sep)[0] for path in paths}
    folders = [path.name for path in root.iterdir() if path.is_dir()]
    empty = [name for name in folders if not name.startswith(".") and name not in filled]
    if empty:
        raise DataError(
            f"{root} has class folders without images: "
            f"{shorten_list(sorted(empty, key=natural_key))}; add images or remove the folders"
        )


def _check_utf8(root: Path, names: set[str]) -> None:
    # The head file stores label names as UTF-8.
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(f"{root} has a folder {name!r}, whose name is not UTF-8: rename it")
