"""Open labeled images: one folder per class, a table, or a data set that timm's readers know."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headkit.adapters.errors import DataError
from headkit.adapters.files import is_file, is_folder
from headkit.adapters.heads.tasks import TaskName, get_task
from headkit.adapters.images.formats import UNREAD_SUFFIXES

from .dataset import (
    ImageDataset,
    Skipped,
    Splits,
    UnusedSplit,
    count,
    no_data_error,
    shorten_list,
)
from .folder import describe_class, open_folder
from .holdout import holdout
from .listing import OTHER_FORMAT, merge_skipped, suffix_of
from .memory.frame import as_frame
from .memory.open import is_in_memory, open_memory, open_memory_validation
from .options import ClassFrom, ReadOptions
from .readers import reader_prefix
from .split_folders import find_split_folders, open_split_folders
from .table.delimited import is_table_file, read_table
from .table.open import open_table, open_validation_table

__all__ = ["ImageDataset", "count", "holdout", "open_data"]

logger = logging.getLogger("headkit")

_EXPECTED = "a folder with one folder per class, or a .csv file"


def open_data(
    data: Any,
    val: Any = None,
    *,
    task: TaskName | None = None,
    class_from: ClassFrom | None = None,
    path_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    uses_test: bool = False,
) -> tuple[ImageDataset, ImageDataset | None]:
    """Open the training split of ``data`` and, if ``data`` has one, its validation split.

    A test split neither trains nor validates: it is counted in ``ImageDataset.skipped`` of the
    training data, unless the caller uses it. Everything else that is not read is counted there,
    too.

    Args:
        data: A folder with one folder per class, see ``open_folder``; a folder with one folder per
            split, such as ``train``, ``valid`` and ``test``, see ``split_folders``; a table in a
            file with the columns ``path,label``, see ``open_table``; or a name that timm's readers
            know: ``hfds/NAME``, ``wds/FOLDER``, … and ``@SPLIT`` after it for another split than
            ``train``, see ``open_reader``; or data in memory, see ``open_memory``.
        val: The validation data, in any of these forms. ``data`` must have each of its classes.
        task: The kind of targets. Only a table or data in memory can hold ``multilabel`` and
            ``regression``. If None, ``data`` determines the task.
        class_from: The folder that names the class, ``top`` or ``parent``, see ``ReadOptions``.
        path_column: Name of a table's column of image paths, see ``ReadOptions``.
        label_column: Name of a table's column of labels, or several, see ``ReadOptions``.
        label_separator: Text between the labels of one image in a table, see ``ReadOptions``.
        uses_test: The caller opens the test split itself, see ``open_evaluation``.

    Raises:
        DataError: There are no images, a class has no image, the training data lacks a validation
            class, the data can be read in two ways, or they do not fit the task.
        ValueError: There is no such task, or an option is out of its range.
        DependencyMissing: The package of the reader is not installed.
    """
    options = ReadOptions(class_from, path_column, label_column, label_separator)
    splits = open_splits(data, val, task, options)
    if uses_test:
        unused = tuple(one for one in splits.unused if one.split != "test")
        splits = replace(splits, unused=unused)
    formats = [splits.train, *([splits.val] if splits.val is not None else [])]
    unread = [line for dataset in formats for line in find_unread_formats(dataset)]
    for warning in [*find_warnings(splits), *unread]:
        logger.warning("%s", warning)
    skipped = [_skip(split) for split in splits.unused]
    parts = [splits.train.skipped, splits.outside, skipped, *(s.skipped for s in splits.unused)]
    return replace(splits.train, skipped=merge_skipped(*parts)), splits.val


def open_splits(data: Any, val: Any, task: TaskName | None, options: ReadOptions) -> Splits:
    """Open all splits of the data without a word to the user, see ``open_data``."""
    if task is not None:
        get_task(task)
    _check_options(data, val, options)
    splits = _open_train(data, val, task, options)
    if val is None or splits.val is not None:
        return splits
    return replace(splits, val=_open_val(val, splits.train, options))


def find_warnings(splits: Splits) -> list[str]:
    """Return what a user should know about the data before anything is trained."""
    datasets = [splits.train, *([splits.val] if splits.val is not None else [])]
    warnings = [*splits.warnings, *(line for one in datasets for line in one.warnings)]
    warnings += [line for dataset in datasets for line in _unread_paths(dataset)]
    if splits.val is None:
        tests = [one for one in splits.unused if one.split == "test"]
        if tests:
            of = splits.train.name
            if is_folder(tests[0].name):
                of += f", {tests[0].name},"
            warnings.append(
                f"the test split of {of} is not used: cross-validation on the training split "
                "measures the head; pass test='split' (--test split) to measure it on the test "
                "split, too"
            )
        warnings += _labels_with_one_image(splits.train)
    return warnings


def find_unread_formats(dataset: ImageDataset) -> list[str]:
    """Return a warning if files are skipped because of their format."""
    unread = [one for one in dataset.skipped if one.reason.startswith(OTHER_FORMAT)]
    if not unread:
        return []
    listed = shorten_list(f"{one.count} {one.reason.removeprefix(OTHER_FORMAT)}" for one in unread)
    return [
        f"skipped images of {dataset.name} in formats that are not read: {listed}, such as "
        f"{unread[0].examples[0]}"
    ]


def _unread_paths(dataset: ImageDataset) -> list[str]:
    """Return a warning if a table lists images in formats that cannot be read."""
    unread = [path for path in dataset.paths or () if suffix_of(path) in UNREAD_SUFFIXES]
    if not unread:
        return []
    return [
        f"{len(unread)} images of {dataset.name} are in formats that are not read, such as "
        f"{unread[0]}: they will be counted as unreadable"
    ]


def _skip(unused: UnusedSplit) -> Skipped:
    return Skipped(f"in the split {unused.split}", len(unused.paths), unused.paths[:3])


def _check_options(data: Any, val: Any, options: ReadOptions) -> None:
    both = [one for one in (data, val) if one is not None]
    in_memory = [one for one in both if is_in_memory(one)]
    plain = [Path(one) for one in both if not is_in_memory(one) and not reader_prefix(one)]
    if in_memory:  # labels in memory may be text with a separator, too
        options = replace(options, label_separator=None)
    options.check_used(
        folder=any(is_folder(one) for one in plain),
        table=any(is_file(one) for one in plain)
        or any(as_frame(one) is not None for one in in_memory),
        where=" and ".join(map(_show, both)),
    )


def _show(data: Any) -> str:
    return f"a {type(data).__name__}" if is_in_memory(data) else str(data)


def _open_train(data: Any, val: Any, task: TaskName | None, options: ReadOptions) -> Splits:
    if is_in_memory(data):
        splits = open_memory(data, task, options)
        if splits.val is not None and val is not None:
            raise DataError(
                f"{splits.train.name} has its own validation split, {splits.val.name}, but val is "
                "given, too: omit val, or pass the training split alone"
            )
        return splits
    if reader_prefix(data):
        from .timm_readers import open_reader

        _check_multiclass(data, task)
        return Splits(open_reader(str(data), "train"))
    root = Path(data)
    if is_table_file(root):
        splits = open_table(read_table(root, options.path_column), task, options)
        if splits.val is not None and val is not None:
            raise DataError(
                f"{data} has its own validation lines, but val is {_show(val)}: omit val (--val) "
                "or remove those lines"
            )
        return splits
    if not is_folder(root):
        raise no_data_error(root, _EXPECTED)
    _check_multiclass(data, task)
    folders = find_split_folders(root)
    if not folders:
        train = open_folder(root, class_from=options.class_from)
        return Splits(train, facts=describe_class(options.class_from))
    every = [folder for found in folders.values() for folder in found]
    plain = val is not None and not is_in_memory(val) and not reader_prefix(val)
    wanted = Path(val) if plain else None
    chosen = next((one for one in every if wanted is not None and _is_same(one, wanted)), None)
    if val is not None and chosen is None and "val" in folders:
        raise DataError(
            f"{data} has its own validation split, {folders['val'][0]}, but val is {_show(val)}: "
            f"omit val (--val), or pass {folders['train'][0]} as the training data"
        )
    return open_split_folders(root, folders, chosen, options.class_from)


def _open_val(val: Any, train: ImageDataset, options: ReadOptions) -> ImageDataset:
    if is_in_memory(val):
        return open_memory_validation(val, train, options)
    root = Path(val)
    if not reader_prefix(val):
        if is_table_file(root):
            table = read_table(root, options.path_column)
            return open_validation_table(table, train, options)
        if not is_folder(root):
            raise no_data_error(root, _EXPECTED)
    _check_multiclass(val, train.task)
    if reader_prefix(val):
        from .timm_readers import open_reader

        return open_reader(str(val), "validation", train.label_names)
    folders = find_split_folders(root)
    if folders and len(folders.get("val", [])) != 1:
        listed = shorten_list(str(folder) for found in folders.values() for folder in found)
        raise DataError(f"{val} has splits, but no validation split: pass one of {listed}")
    return open_folder(
        folders["val"][0] if folders else root, train.label_names, options.class_from
    )


def _is_same(folder: Path, other: Path) -> bool:
    return is_folder(other) and folder.samefile(other)


def _check_multiclass(data: str | Path, task: TaskName | None) -> None:
    if task is not None and not get_task(task).exclusive:
        raise DataError(
            f"{data} has one class per image, so it only suits the task multiclass; {task} needs a "
            "CSV file with the columns path,label"
        )


def _labels_with_one_image(train: ImageDataset) -> list[str]:
    if train.targets is None:
        return []
    images = get_task(train.task).images_per_class(train.targets, len(train.label_names))
    if images is None:
        return []
    single = [name for name, n in zip(train.label_names, images, strict=True) if n == 1]
    if not single:
        return []
    labels, have, them = ("labels", "have", "them") if len(single) > 1 else ("label", "has", "it")
    return [
        f"{len(single)} {labels} of {train.name} {have} only one image, which is used for "
        f"training, so the metrics do not cover {them}: {shorten_list(single)}"
    ]
