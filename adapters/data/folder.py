"""Read a folder with one folder per class, in the order and with the class names that timm has."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from headkit.adapters.errors import DataError
from headkit.adapters.images import is_image

from .dataset import ImageDataset, Targets, enumerated, refuse_one, refuse_unknown

logger = logging.getLogger("headkit")

_DIGITS = re.compile(r"(\d{1,4000})")  # int() takes no more than 4300


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Return timm's natural sort key: numbers by value, letters without case.

    The text itself settles what timm leaves to chance: ``A`` and ``a``, ``1`` and ``01``.
    """
    parts = _DIGITS.split(text.lower())
    return [int(part) if part.isdecimal() else part for part in parts], text


def open_folder(root: Path, known: tuple[str, ...] | None = None) -> ImageDataset:
    """List the images below ``root``. The folder that an image lies in names its class.

    Args:
        root: a folder with one folder per class; these may be nested.
        known: the classes of the training data, if this is validation data.

    Raises:
        DataError: no images, a class without one, an image outside the class folders, only one
            class, a class that is not known, or a folder that cannot be read.
    """
    paths, labels = _list_images(str(root))
    if not paths:
        raise DataError(f"no images in {root}: expected one folder per class with images in it")
    if "" in labels:
        loose = paths[labels.index("")]
        raise DataError(f"{root} holds images beside the class folders, such as {loose}")
    _refuse_empty(root, paths)
    found = set(labels)
    _refuse_undecodable(root, found)
    if known is None:
        names = tuple(sorted(found, key=natural_key))
        refuse_one(str(root), names)
    else:
        refuse_unknown(str(root), found, known)
        names = known
    return ImageDataset(str(root), "multiclass", names, tuple(paths), indices(labels, names))


def indices(labels: list[str], names: tuple[str, ...]) -> Targets:
    """Return the place of each label ``[N]`` in ``names``, int64."""
    index = {name: number for number, name in enumerate(names)}
    return np.fromiter((index[label] for label in labels), np.int64, len(labels))


def _list_images(root: str) -> tuple[list[str], list[str]]:
    # timm.data.readers.find_images_and_targets says what the class of a file is and how files are
    # sorted. It also follows a link to a folder above until the system refuses, passes
    # over folders that it may not read, and sorts whole paths, which takes most of its time.
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
            logger.warning("%s leads back to a folder above it: left out", entry.path)
        else:
            open_folders.append((_entries(entry.path), entry.name, identity))
    return paths, labels


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    # The separator takes part in the order, as it does where whole paths are sorted.
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


def _refuse_empty(root: Path, paths: list[str]) -> None:
    start = len(os.path.join(root, ""))  # noqa: PTH118
    filled = {path[start:].partition(os.sep)[0] for path in paths}
    folders = [path.name for path in root.iterdir() if path.is_dir()]
    empty = [name for name in folders if not name.startswith(".") and name not in filled]
    if empty:
        raise DataError(
            f"class {enumerated(sorted(empty, key=natural_key))} of {root} has no image: "
            "add images or remove the folder"
        )


def _refuse_undecodable(root: Path, names: set[str]) -> None:
    # Label names are kept as UTF-8 in the head file.
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(f"{root} has a folder {name!r}, whose name is not UTF-8: rename it")
