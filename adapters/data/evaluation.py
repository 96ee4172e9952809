"""Open the labeled images that a finished head is measured on, with the head's own labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headkit.adapters.errors import DataError
from headkit.adapters.files import is_file, is_folder
from headkit.adapters.heads.tasks import TaskName, get_task

from .dataset import ImageDataset, UnknownClasses, no_data_error, shorten_list
from .features import Features
from .folder import open_folder
from .memory.frame import Frame
from .memory.open import is_in_memory, open_with_labels, split_mapping
from .memory.table import take_images
from .options import ReadOptions
from .readers import reader_prefix
from .split_folders import find_split_folders
from .splits import SplitName, split_of
from .table.columns import choose_columns
from .table.delimited import is_table_file, read_table
from .table.open import open_rows
from .table.rows import Table

ORDER: tuple[SplitName, ...] = ("test", "val")
"""The splits that measure a head if the user names none; the first that the data have counts."""


@dataclass(frozen=True)
class HeadOutputs:
    """What the data must fit: the outputs of a head.

    Attributes:
        task: The task of the head.
        label_names: One name per output.
    """

    task: TaskName
    label_names: tuple[str, ...]


class NoSuchSplit(DataError):
    """Data lack the split that is requested.

    Attributes:
        where: The data, as messages name them.
        present: The splits that the data have, as text; empty without splits.
    """

    def __init__(self, where: str, split: str, present: str) -> None:
        self.where, self.present = where, present
        super().__init__(
            f"{where} has no split {split}: it has {present}"
            if present
            else f"{where} has no splits, but the split {split} is requested: omit split (--split) "
            "to measure on all images"
        )


def open_evaluation(
    data: Any, outputs: HeadOutputs, split: str | None = None, options: ReadOptions | None = None
) -> ImageDataset:
    """Open one split of ``data``; its labels are matched by name to those of a head.

    Args:
        data: See ``open_data``.
        outputs: The outputs of the head.
        split: ``train``, ``val`` or ``test``, in any of the spellings of ``splits.WORDS``; for a
            reader, the name of its split. If None, the test split, or else the validation split of
            data that have splits, and all images of other data.
        options: The user's word on how to read the data.

    Raises:
        DataError: See ``open_data``; or the data have a class that the head does not have, or no
            such split.
        DependencyMissing: The package of the reader is not installed.
    """
    options = options or ReadOptions()
    try:
        dataset = _open(data, outputs, split, options)
    except UnknownClasses as error:
        raise DataError(
            f"{error.where} has classes that the head does not have: "
            f"{shorten_list(error.unknown)}; the head has {shorten_list(outputs.label_names)}"
        ) from error
    _check_names_are_unique(dataset, outputs)
    return dataset


def _open(data: Any, outputs: HeadOutputs, split: str | None, options: ReadOptions) -> ImageDataset:
    names = outputs.label_names
    if is_in_memory(data):
        return _open_in_memory(data, outputs, split, options)
    if reader_prefix(data):
        from .timm_readers import open_reader

        _check_multiclass(data, outputs)
        return open_reader(str(data), split or ORDER[0], names)
    root = Path(data)
    if not (is_table_file(root) or is_folder(root)):
        raise no_data_error(root, "a folder with one folder per class, or a .csv file")
    options.check_used(folder=is_folder(root), table=is_file(root), where=str(data))
    if not is_folder(root):
        table = read_table(root, options.path_column)
        chosen = _choose_split(root, _splits_of(table, outputs, options), split)
        return open_rows(table, chosen, names, outputs.task, options)
    _check_multiclass(data, outputs)
    folders = find_split_folders(root)
    chosen = _choose_split(root, folders, split)
    if chosen is None:
        return open_folder(root, names, options.class_from)
    if len(folders[chosen]) > 1:
        listed = shorten_list(map(str, folders[chosen]))
        raise DataError(f"{root} has several folders for the split {chosen}: pass one of {listed}")
    return open_folder(folders[chosen][0], names, options.class_from)


def _open_in_memory(
    data: Any, outputs: HeadOutputs, split: str | None, options: ReadOptions
) -> ImageDataset:
    name = f"the {type(data).__name__}"
    data = take_images(data, outputs.task, options)
    if isinstance(data, Features) and data.val is not None:
        data = {"train": data, "val": data.val}
    if isinstance(data, Mapping):
        by_split = split_mapping(data)
        chosen = _choose_split(name, by_split, split)
        if chosen is None:
            raise DataError(f"{name} has no split called train, val or test: pass one of its parts")
        return open_with_labels(by_split[chosen], outputs.task, outputs.label_names, options)
    if isinstance(data, Frame):
        table = data.to_table()
        chosen = _choose_split(name, _splits_of(table, outputs, options), split)
        return open_rows(table, chosen, outputs.label_names, outputs.task, options)
    _choose_split(name, (), split)
    return open_with_labels(data, outputs.task, outputs.label_names, options)


def _splits_of(table: Table, outputs: HeadOutputs, options: ReadOptions) -> set[SplitName]:
    columns = choose_columns(table, get_task(outputs.task), options)
    if columns.split is None:
        return set()
    return {columns.split(row.cells) for row in table.rows}


def _choose_split(root: Path | str, present: Any, split: str | None) -> SplitName | None:
    """Return the split to measure on, or None if the data have no splits."""
    wanted = None if split is None else split_of(split)
    if split is not None and wanted is None:
        raise ValueError(f"split is {split!r}, expected train, val or test")
    if not present:
        if wanted is not None:
            raise NoSuchSplit(str(root), str(split), "")
        return None
    listed = ", ".join(sorted(present))
    if wanted is None:
        wanted = next((one for one in ORDER if one in present), None)
        if wanted is None:
            raise DataError(
                f"{root} has only the split {listed}: pass split={listed!r} (--split {listed}) to "
                "measure on it"
            )
    if wanted not in present:
        raise NoSuchSplit(str(root), wanted, listed)
    return wanted


def _check_multiclass(data: Any, outputs: HeadOutputs) -> None:
    if not get_task(outputs.task).exclusive:
        raise DataError(
            f"{data} has one class per image, but the task of the head is {outputs.task}: pass a "
            "CSV file with the columns path,label"
        )


def _check_names_are_unique(dataset: ImageDataset, outputs: HeadOutputs) -> None:
    """Raise if images have a label that is the name of several outputs."""
    names = outputs.label_names
    twice = {name for name in names if names.count(name) > 1} if len({*names}) < len(names) else ()
    if not twice or dataset.targets is None:
        return
    images = get_task(outputs.task).images_per_class(dataset.targets, len(names))
    used = sorted(name for name in twice if images is not None and images[_last(names, name)])
    if used:
        raise DataError(
            f"several outputs of the head are called {shorten_list(used)}, so the labels of "
            f"{dataset.name} cannot be matched by name: give the head unique label names with "
            "Head.with_changes(label_names=…)"
        )


def _last(names: tuple[str, ...], name: str) -> int:
    return len(names) - 1 - names[::-1].index(name)
