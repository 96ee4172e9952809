"""Open labelled images: a folder per class, a CSV, or a data set that timm's readers know."""

from __future__ import annotations

import logging
from pathlib import Path

from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import TaskName, task_named

from .csv import open_table, open_table_like
from .dataset import ImageDataset, count, enumerated, nothing_in
from .folder import open_folder
from .holdout import holdout
from .timm_readers import open_reader, reader_of

__all__ = ["ImageDataset", "count", "holdout", "open_data"]

logger = logging.getLogger("headkit")

VALIDATION_FOLDERS = ("val", "validation", "test")

_EXPECTED = "a folder with one folder per class, or a .csv file"


def open_data(
    data: str | Path, val: str | Path | None = None, *, task: TaskName | None = None
) -> tuple[ImageDataset, ImageDataset | None]:
    """Open the training split of ``data`` and, where there is one, the validation split.

    Args:
        data: a folder with one folder per class, or with folders ``train`` and ``val`` (or
            ``validation`` or ``test``) of that kind; a CSV with the columns ``path,label``, see
            ``open_table``; or a name that timm's readers know: ``hfds/NAME``, ``wds/FOLDER``, …
            with ``@SPLIT`` behind it for another split than ``train``, see ``open_reader``.
        val: the validation data, in any of these forms. Its classes must be known from ``data``.
        task: ``multilabel`` and ``regression`` are read from a CSV alone. By default ``data``
            settles it.

    Raises:
        DataError: no images, a class without one, a validation class that training lacks, or data
            that are not of the task.
        ValueError: there is no such task.
        DependencyMissing: the reader's package is not installed.
    """
    if task is not None:
        task_named(task)
    train, found = _open_train(data, val is None, task)
    if val is not None:
        if found is not None:
            raise DataError(f"{data} holds lines for validation, and {val} is given too: use one")
        return train, _open_val(val, train)
    if found is None:
        _warn_of_single_images(train)
    return train, found


def _open_train(
    data: str | Path, subfolders: bool, task: TaskName | None
) -> tuple[ImageDataset, ImageDataset | None]:
    if reader_of(data):
        _refuse_task(data, task)
        return open_reader(str(data), "train"), None
    root = Path(data)
    if _is_table(root):
        return open_table(root, task)
    if not root.is_dir():
        raise nothing_in(root, _EXPECTED)
    _refuse_task(data, task)
    folders = [root / name for name in VALIDATION_FOLDERS if (root / name).is_dir()]
    if subfolders and folders and (root / "train").is_dir():
        train = open_folder(root / "train")
        return train, open_folder(folders[0], train.label_names)
    return open_folder(root), None


def _open_val(val: str | Path, train: ImageDataset) -> ImageDataset:
    root = Path(val)
    if not reader_of(val):
        if _is_table(root):
            return open_table_like(root, train)
        if not root.is_dir():
            raise nothing_in(root, _EXPECTED)
    _refuse_task(val, train.task)
    if reader_of(val):
        return open_reader(str(val), "validation", train.label_names)
    return open_folder(root, train.label_names)


def _is_table(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and path.is_file()


def _refuse_task(data: str | Path, task: TaskName | None) -> None:
    if task is not None and not task_named(task).exclusive:
        raise DataError(
            f"{data} holds one class per image, which is the task multiclass; {task} needs a CSV "
            "with the columns path,label"
        )


def _warn_of_single_images(train: ImageDataset) -> None:
    if train.targets is None:
        return
    images = task_named(train.task).images_per_class(train.targets, len(train.label_names))
    if images is None:
        return
    single = [name for name, n in zip(train.label_names, images, strict=True) if n == 1]
    if single:
        logger.warning(
            "%d labels of %s have one image each, which stays in training, so that they are not "
            "validated: %s",
            len(single),
            train.name,
            enumerated(single),
        )
