"""Open labelled images: one folder per class, a CSV, or a data set that timm's readers know."""

from __future__ import annotations

import logging
from pathlib import Path

from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import TaskName, get_task

from .csv import open_csv, open_validation_csv
from .dataset import ImageDataset, count, no_data_error, shorten_list
from .folder import open_folder
from .holdout import holdout
from .timm_readers import open_reader, reader_prefix

__all__ = ["ImageDataset", "count", "holdout", "open_data"]

logger = logging.getLogger("headkit")

VALIDATION_FOLDERS = ("val", "validation", "test")

_EXPECTED = "a folder with one folder per class, or a .csv file"


def open_data(
    data: str | Path, val: str | Path | None = None, *, task: TaskName | None = None
) -> tuple[ImageDataset, ImageDataset | None]:
    """Open the training split of ``data`` and, if ``data`` has one, its validation split.

    Args:
        data: A folder with one folder per class, or with folders ``train`` and ``val`` (or
            ``validation`` or ``test``) that each hold one folder per class; a CSV with the columns
            ``path,label``, see ``open_csv``; or a name that timm's readers know: ``hfds/NAME``,
            ``wds/FOLDER``, … and ``@SPLIT`` after it for another split than ``train``, see
            ``open_reader``.
        val: The validation data, in any of these forms. ``data`` must have each of its classes.
        task: The kind of targets. Only a CSV can hold ``multilabel`` and ``regression``. If None,
            ``data`` determines the task.

    Raises:
        DataError: There are no images, a class has no image, the training data lacks a validation
            class, or the data do not fit the task.
        ValueError: There is no such task.
        DependencyMissing: The package of the reader is not installed.
    """
    if task is not None:
        get_task(task)
    train, own_val = _open_train(data, val is None, task)
    if val is not None:
        if own_val is not None:
            raise DataError(
                f"{data} has its own validation lines, but val is {val}: omit val (--val) or "
                "remove those lines"
            )
        return train, _open_val(val, train)
    if own_val is None:
        _warn_of_labels_with_one_image(train)
    return train, own_val


def _open_train(
    data: str | Path, subfolders: bool, task: TaskName | None
) -> tuple[ImageDataset, ImageDataset | None]:
    if reader_prefix(data):
        _check_multiclass(data, task)
        return open_reader(str(data), "train"), None
    root = Path(data)
    if _is_csv(root):
        return open_csv(root, task)
    if not root.is_dir():
        raise no_data_error(root, _EXPECTED)
    _check_multiclass(data, task)
    folders = [root / name for name in VALIDATION_FOLDERS if (root / name).is_dir()]
    if subfolders and folders and (root / "train").is_dir():
        train = open_folder(root / "train")
        return train, open_folder(folders[0], train.label_names)
    return open_folder(root), None


def _open_val(val: str | Path, train: ImageDataset) -> ImageDataset:
    root = Path(val)
    if not reader_prefix(val):
        if _is_csv(root):
            return open_validation_csv(root, train)
        if not root.is_dir():
            raise no_data_error(root, _EXPECTED)
    _check_multiclass(val, train.task)
    if reader_prefix(val):
        return open_reader(str(val), "validation", train.label_names)
    return open_folder(root, train.label_names)


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and path.is_file()


def _check_multiclass(data: str | Path, task: TaskName | None) -> None:
    if task is not None and not get_task(task).exclusive:
        raise DataError(
            f"{data} has one class per image, so it only suits the task multiclass; {task} needs a "
            "CSV file with the columns path,label"
        )


def _warn_of_labels_with_one_image(train: ImageDataset) -> None:
    if train.targets is None:
        return
    images = get_task(train.task).images_per_class(train.targets, len(train.label_names))
    if images is None:
        return
    single = [name for name, n in zip(train.label_names, images, strict=True) if n == 1]
    if single:
        logger.warning(
            "%d labels of %s have only one image, which is used for training, so the metrics do "
            "not cover them: %s",
            len(single),
            train.name,
            shorten_list(single),
        )
