"""Open the splits of a table of image paths."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from headkit.adapters.data.dataset import (
    ImageDataset,
    Skipped,
    Splits,
    UnusedSplit,
    check_known_classes,
    check_two_classes,
    say_missing,
    shorten_list,
)
from headkit.adapters.data.listing import natural_key
from headkit.adapters.data.options import ReadOptions
from headkit.adapters.data.splits import SplitName
from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import TaskName, get_task

from .columns import Columns, choose_columns
from .labels import LabelReader, choose_reader
from .rows import BAR, Row, Table

REPEATED = "row that repeats another one"


def open_table(table: Table, task: TaskName | None, options: ReadOptions) -> Splits:
    """Open the training data of a table and, if a column names splits, the validation data.

    The columns may be in any order. Unless the options name them, they are found by name:

    - ``path`` (or ``file``, ``filename``, ``image``, …): absolute, or relative to the folder of
      the table;
    - ``label`` (or ``class``, ``target``, ``category``, …): a class (multiclass); labels separated
      by ``|``, or nothing for an image without labels (multilabel); or numbers separated by ``|``
      (regression). For the task multilabel, a comma or a semicolon may separate labels, too;
    - without such a column, one column per class of 0 and 1: multiclass if each row has exactly
      one 1, else multilabel. For the task regression, each of the other columns is an output;
    - ``split`` (optional): ``train``, ``val`` or ``test`` in any of the spellings of
      ``splits.WORDS``; or ``is_valid``: True for validation, False for training. Rows of the
      split test are not used.

    Args:
        table: The table.
        task: The kind of labels. If None, the labels determine it: multilabel if some image has
            several of them, else multiclass.
        options: The user's word on columns and separator.

    Raises:
        DataError: The table does not have this form or can be read in two ways, an image is
            missing, an image has two different labels or is in two splits, a number is not finite,
            there is only one class, or the training data lacks a validation label. The message
            names the rows.
    """
    reader, rows, skipped, warnings = _read(table, task, options)
    split_rows = _rows_by_split(reader.columns, rows)
    train_rows = split_rows["train"]
    if not train_rows:
        raise DataError(f"{table.name} has no training lines: no {table.unit} has the split train")
    names = _output_names(reader, train_rows)
    if reader.task.exclusive:
        check_two_classes(table.name, names)
    train = _build_dataset(reader, train_rows, names, skipped)
    val = _build_dataset(reader, split_rows["val"], names) if split_rows["val"] else None
    unused = _describe_unused(reader, split_rows["test"])
    return Splits(
        train, val, (unused,) if unused else (), warnings=warnings, facts=_describe_reading(reader)
    )


def open_rows(
    table: Table,
    split: SplitName | None,
    label_names: tuple[str, ...],
    task: TaskName,
    options: ReadOptions,
) -> ImageDataset:
    """Open the rows of one split; their labels must be among ``label_names``.

    Args:
        table: The table.
        split: The split. If None, all rows.
        label_names: The labels, or the outputs, that the training data or a head knows.
        task: The kind of labels.
        options: The user's word on columns and separator.

    Raises:
        DataError: See ``open_table``; or the outputs differ from ``label_names``, or the table
            has no such rows.
    """
    reader, rows, skipped, warnings = _read(table, task, options, label_names)
    if split is not None:
        rows = _rows_by_split(reader.columns, rows)[split]
    if not rows:
        raise DataError(f"{table.name} has no {table.unit} of the split {split}")
    if not reader.task.has_classes:
        outputs = reader.output_names(rows)
        if set(outputs) != set(label_names):
            raise DataError(
                f"{table.name} has the outputs {shorten_list(outputs)}; the training data has "
                f"{shorten_list(label_names)}"
            )
    return _build_dataset(reader, rows, label_names, skipped, warnings)


def open_validation_table(table: Table, train: ImageDataset, options: ReadOptions) -> ImageDataset:
    """Open validation data; the labels must be labels of ``train``.

    If a column names splits, only the rows of the validation split are read, or those of the test
    split if there are no others.

    Raises:
        DataError: See ``open_rows``; or no row is for validation.
    """
    columns = choose_columns(table, get_task(train.task), options)
    split: SplitName | None = None
    if columns.split is not None:
        found = {columns.split(row.cells) for row in table.rows}
        split = "val" if "val" in found else "test"
        if split not in found:
            raise DataError(
                f"{table.name} has no validation lines: no {table.unit} has the split val"
            )
    return open_rows(table, split, train.label_names, train.task, options)


def _read(
    table: Table,
    task: TaskName | None,
    options: ReadOptions,
    known: tuple[str, ...] = (),
) -> tuple[LabelReader, list[Row], tuple[Skipped, ...], tuple[str, ...]]:
    """Return the rows with complete paths, without repeated rows, and how to read their labels."""
    chosen = None if task is None else get_task(task)
    columns = choose_columns(table, chosen, options)
    rows = [_with_path(table, columns, row) for row in table.rows]
    reader = choose_reader(table, columns, chosen, options.label_separator, known)
    rows, repeated = _drop_repeated(reader, rows)
    _check_images_exist(table, columns, rows)
    if not repeated:
        return reader, rows, (), ()
    first = repeated[0]
    examples = tuple(table.locate(row.number) for row in repeated[:3])
    warning = (
        f"{table.name} has {len(repeated)} duplicate {table.unit}s (same image, same label), such "
        f"as {first.cells[columns.path]} on {table.unit} {first.number}: they are ignored"
    )
    return reader, rows, (Skipped(REPEATED, len(repeated), examples),), (warning,)


def _with_path(table: Table, columns: Columns, row: Row) -> Row:
    name = row.cells[columns.path]
    if not name:
        raise DataError(f"{table.locate(row.number)} has no path")
    cells = list(row.cells)
    cells[columns.path] = _find_image(table.folder, name)
    return Row(row.number, tuple(cells))


def _find_image(folder: str, name: str) -> str:
    """Return the path of an image; the table may be of Windows, or have spaces around its cells."""
    path = os.path.join(folder, name)  # noqa: PTH118
    other = os.path.join(folder, name.strip().replace("\\", os.sep))  # noqa: PTH118
    if path == other or os.path.isfile(path) or not os.path.isfile(other):  # noqa: PTH113
        return path
    return other


def _rows_by_split(columns: Columns, rows: list[Row]) -> dict[SplitName, list[Row]]:
    found: dict[SplitName, list[Row]] = {"train": [], "val": [], "test": []}
    for row in rows:
        found["train" if columns.split is None else columns.split(row.cells)].append(row)
    return found


def _drop_repeated(reader: LabelReader, rows: list[Row]) -> tuple[list[Row], list[Row]]:
    table, columns = reader.table, reader.columns
    first: dict[str, Row] = {}
    repeated = []
    for row in rows:
        path = row.cells[columns.path]
        known = first.setdefault(os.path.normpath(path), row)
        if known is row:
            continue
        both = f"{table.name} {table.unit}s {known.number} and {row.number}"
        if columns.split is not None:
            splits = {columns.split(known.cells), columns.split(row.cells)}
            if len(splits) > 1:
                names = {"train": "training", "val": "validation", "test": "test"}
                listed = " and ".join(names[split] for split in names if split in splits)
                raise DataError(f"{both} put {path} into both {listed}")
        if reader.cells(known) != reader.cells(row):
            raise DataError(
                f"{both} have different labels for {path}: {BAR.join(reader.cells(known))} and "
                f"{BAR.join(reader.cells(row))} (to give an image several labels, write them on "
                f"one {table.unit}, separated by {BAR})"
            )
        repeated.append(row)
    return list(first.values()), repeated


def _check_images_exist(table: Table, columns: Columns, rows: Sequence[Row]) -> None:
    missing = [row for row in rows if not os.path.isfile(row.cells[columns.path])]  # noqa: PTH113
    if missing:
        listed = [f"{row.cells[columns.path]} ({table.unit} {row.number})" for row in missing]
        raise DataError(
            f"{len(missing)} of the {len(rows)} images in {table.name} "
            f"{say_missing(missing[0].cells[columns.path])}: {shorten_list(listed, 3)}; paths are "
            f"relative to {table.folder or 'the current folder'}"
        )


def _output_names(reader: LabelReader, rows: Sequence[Row]) -> tuple[str, ...]:
    if not reader.task.has_classes:
        return reader.output_names(rows)
    used = {label for row in rows for label in reader.labels(row)}
    if not used:
        raise DataError(f"{reader.table.name} has no labels")
    if not reader.columns.separate:
        return tuple(sorted(used, key=natural_key))
    unused = [name for name in reader.columns.names if name not in used]
    if unused:
        raise DataError(
            f"{reader.table.name} has columns without a 1 in the training data: "
            f"{shorten_list(unused)}; name the other columns as label_column (--label-column)"
        )
    return reader.columns.names


def _build_dataset(
    reader: LabelReader,
    rows: Sequence[Row],
    names: tuple[str, ...],
    skipped: tuple[Skipped, ...] = (),
    warnings: tuple[str, ...] = (),
) -> ImageDataset:
    encoded: Sequence[Sequence[float]]
    name, task = reader.table.name, reader.task
    if task.has_classes:
        labels = [reader.labels(row) for row in rows]
        check_known_classes(name, (label for row in labels for label in row), names)
        index = {label: number for number, label in enumerate(names)}
        encoded = [[index[label] for label in row] for row in labels]
    else:
        encoded = [reader.numbers(row, names) for row in rows]
    return ImageDataset(
        name,
        task.name,
        names,
        tuple(row.cells[reader.columns.path] for row in rows),
        task.encode(encoded, len(names)),
        skipped=skipped,
        warnings=warnings,
    )


def _describe_reading(reader: LabelReader) -> dict[str, str]:
    """Return how a table was understood, in words."""
    table, columns = reader.table, reader.columns
    facts = {
        "delimiter": table.delimiter,
        "path column": table.header[columns.path],
        "label columns" if columns.separate else "label column": shorten_list(columns.names),
        "split column": columns.split_name,
        "columns that are not used": shorten_list(columns.ignored),
    }
    if not columns.separate and not reader.task.exclusive:
        facts["separator"] = "a list" if reader.lists else repr(reader.separator or "none")
    return {name: fact for name, fact in facts.items() if fact}


def _describe_unused(reader: LabelReader, rows: Sequence[Row]) -> UnusedSplit | None:
    if not rows:
        return None
    labels: Counter[str] = Counter()
    if reader.task.has_classes:
        try:
            labels.update(label for row in rows for label in reader.labels(row))
        except DataError:  # test data often have no labels
            labels.clear()
    paths = tuple(row.cells[reader.columns.path] for row in rows)
    return UnusedSplit("test", reader.table.name, paths, labels)
