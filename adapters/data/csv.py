"""Read a CSV of image paths with a class, several labels or numbers for each image."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import Task, TaskName, get_task

from .dataset import ImageDataset, check_known_classes, check_two_classes, shorten_list
from .listing import natural_key

logger = logging.getLogger("headkit")

SEPARATOR = "|"
"""Separator of the labels, or the numbers, of one image."""
SPLITS = {"train": False, "val": True, "validation": True, "test": True}
"""Values of the column ``split``; True for the values that mean validation."""
FLOAT32_MAX = float(np.finfo(np.float32).max)


class _Line(NamedTuple):
    number: int
    path: str
    values: tuple[str, ...]
    in_validation: bool


@dataclass(frozen=True)
class _CsvFile:
    """The lines of a CSV and the names of its value columns: ``label``, or one per output."""

    file: Path
    columns: tuple[str, ...]
    has_split: bool
    lines: list[_Line]

    def locate(self, line: _Line) -> str:
        return f"{self.file} line {line.number}"


def open_csv(file: Path, task: TaskName | None = None) -> tuple[ImageDataset, ImageDataset | None]:
    """Read the training data of a CSV and, if it has a column ``split``, the validation data.

    The first line names the columns, in any order. Columns other than these are ignored:

    - ``path``: absolute, or relative to the folder of the CSV;
    - ``label``: a class (multiclass); labels separated by ``|``, or nothing for an image without
      labels (multilabel); or numbers separated by ``|`` (regression). In a CSV for regression that
      has no such column, each of the other columns is an output and holds numbers;
    - ``split`` (optional): ``train``, or ``val``, ``validation`` or ``test``.

    Args:
        file: A comma-separated file in UTF-8.
        task: The kind of labels. If None, multilabel if a label contains ``|``, else multiclass.

    Raises:
        DataError: The file does not have this form, an image is missing, an image has two different
            labels or is in both splits, a number is not finite, there is only one class, or the
            training data lacks a validation label. The message names the lines.
    """
    chosen = None if task is None else get_task(task)
    csv_file = _read_lines(file, chosen)
    chosen = chosen or get_task(_detect_task(csv_file))
    train = [line for line in csv_file.lines if not line.in_validation]
    if not train:
        raise DataError(f"{file} has no training lines: no line has the split train")
    names = _output_names(csv_file, train, chosen)
    if chosen.exclusive:
        check_two_classes(str(file), names)
    val = [line for line in csv_file.lines if line.in_validation]
    validation = _build_dataset(csv_file, val, chosen, names) if val else None
    return _build_dataset(csv_file, train, chosen, names), validation


def open_validation_csv(file: Path, train: ImageDataset) -> ImageDataset:
    """Read validation data from a CSV; its labels must be labels of ``train``.

    If the CSV has a column ``split``, only the lines of its validation split are read.

    Raises:
        DataError: See ``open_csv``; or the outputs differ from those of ``train``.
    """
    task = get_task(train.task)
    csv_file = _read_lines(file, task)
    lines = (
        [line for line in csv_file.lines if line.in_validation]
        if csv_file.has_split
        else csv_file.lines
    )
    if not lines:
        raise DataError(f"{file} has no validation lines: no line has the split val")
    if not task.has_classes:
        outputs = _output_names(csv_file, lines, task)
        if set(outputs) != set(train.label_names):
            raise DataError(
                f"{file} has the outputs {shorten_list(outputs)}; the training data has "
                f"{shorten_list(train.label_names)}"
            )
    return _build_dataset(csv_file, lines, task, train.label_names)


def _read_lines(file: Path, task: Task | None) -> _CsvFile:
    records = _records(file)
    _, header = next(records, (0, []))
    header = [name.strip() for name in header]
    if not header:
        raise DataError(f"{file} is empty: expected a first line with the columns path,label")
    columns = _value_columns(file, header, task)
    path, values = header.index("path"), [header.index(name) for name in columns]
    split = header.index("split") if "split" in header else None
    folder = os.path.dirname(file)  # noqa: PTH120
    lines = []
    for number, cells in records:
        if len(cells) != len(header):
            raise DataError(
                f"{file} line {number} has {len(cells)} columns, expected {len(header)} "
                f"({', '.join(header)}): put quotes around values that contain a comma"
            )
        if not cells[path]:
            raise DataError(f"{file} line {number} has no path")
        in_validation = False
        if split is not None:
            if (name := cells[split].strip().lower()) not in SPLITS:
                raise DataError(
                    f"{file} line {number} has the split {name!r}, expected one of "
                    f"{', '.join(SPLITS)}"
                )
            in_validation = SPLITS[name]
        image = os.path.join(folder, cells[path])  # noqa: PTH118
        lines.append(_Line(number, image, tuple(cells[i].strip() for i in values), in_validation))
    if not lines:
        raise DataError(f"{file} lists no images: it has only a header line")
    csv_file = _CsvFile(file, columns, split is not None, lines)
    csv_file = _CsvFile(file, columns, split is not None, _drop_duplicates(csv_file))
    _check_images_exist(csv_file, folder)
    return csv_file


def _records(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line that is not blank."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file} line {line} is not UTF-8: save the file as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{file} line {reader.line_num} is not valid CSV: {error}") from error


def _value_columns(file: Path, header: list[str], task: Task | None) -> tuple[str, ...]:
    others = tuple(name for name in header if name not in ("", "path", "split"))
    numbers = task is not None and not task.has_classes
    outputs = others if numbers and "label" not in others else ("label",)
    missing = [name for name in ("path", *outputs) if name not in header]
    if missing or not outputs:
        hint = ""
        if "path" in header and others:
            hint = "; if each output has its own column, set the task to regression"
        raise DataError(
            f"{file} has the columns {', '.join(header)} in its first line, expected "
            f"path,label{hint}"
        )
    twice = [name for name in ("path", "split", *outputs) if header.count(name) > 1]
    if twice:
        raise DataError(f"{file} has the column {twice[0]} twice")
    return outputs


def _drop_duplicates(csv_file: _CsvFile) -> list[_Line]:
    first: dict[str, _Line] = {}
    repeated = []
    for line in csv_file.lines:
        known = first.setdefault(os.path.normpath(line.path), line)
        if known is line:
            continue
        both = f"{csv_file.file} lines {known.number} and {line.number}"
        if known.in_validation != line.in_validation:
            raise DataError(f"{both} put {line.path} into both training and validation")
        if known.values != line.values:
            raise DataError(
                f"{both} have different labels for {line.path}: {SEPARATOR.join(known.values)} and "
                f"{SEPARATOR.join(line.values)} (to give an image several labels, write them on "
                f"one line, separated by {SEPARATOR})"
            )
        repeated.append(line)
    if repeated:
        logger.warning(
            "%s has %d duplicate lines (same image, same label), such as %s on line %d: they are "
            "ignored",
            csv_file.file,
            len(repeated),
            repeated[0].path,
            repeated[0].number,
        )
    return list(first.values())


def _check_images_exist(csv_file: _CsvFile, folder: str) -> None:
    missing = [line for line in csv_file.lines if not os.path.isfile(line.path)]  # noqa: PTH113
    if missing:
        listed = [f"{line.path} (line {line.number})" for line in missing]
        raise DataError(
            f"{len(missing)} of the {len(csv_file.lines)} images in {csv_file.file} do not exist: "
            f"{shorten_list(listed, 3)}; paths are relative to {folder or 'the current folder'}"
        )


def _detect_task(csv_file: _CsvFile) -> TaskName:
    several = any(SEPARATOR in value for line in csv_file.lines for value in line.values)
    return "multilabel" if several else "multiclass"


def _output_names(csv_file: _CsvFile, lines: list[_Line], task: Task) -> tuple[str, ...]:
    if not task.has_classes:
        if csv_file.columns != ("label",):
            return csv_file.columns
        outputs = lines[0].values[0].count(SEPARATOR) + 1
        return ("label",) if outputs == 1 else tuple(f"label_{i}" for i in range(outputs))
    names = {label for line in lines for label in _split_labels(csv_file, line, task)}
    if not names:
        raise DataError(f"{csv_file.file} has no labels")
    return tuple(sorted(names, key=natural_key))


def _split_labels(csv_file: _CsvFile, line: _Line, task: Task) -> list[str]:
    (value,) = line.values
    if task.exclusive:
        if not value:
            raise DataError(
                f"{csv_file.locate(line)} has no label; only the task multilabel allows images "
                "without labels"
            )
        if SEPARATOR in value:
            raise DataError(
                f"{csv_file.locate(line)} has several labels, {value}, but the task is multiclass: "
                "set the task to multilabel"
            )
        return [value]
    labels = [label.strip() for label in value.split(SEPARATOR)] if value else []
    if "" in labels:
        raise DataError(f"{csv_file.locate(line)} has an empty label in {value!r}")
    return labels


def _build_dataset(
    csv_file: _CsvFile, lines: list[_Line], task: Task, names: tuple[str, ...]
) -> ImageDataset:
    rows: Sequence[Sequence[float]]
    if task.has_classes:
        labels = [_split_labels(csv_file, line, task) for line in lines]
        check_known_classes(str(csv_file.file), (label for row in labels for label in row), names)
        index = {name: number for number, name in enumerate(names)}
        rows = [[index[label] for label in row] for row in labels]
    else:
        rows = _parse_rows(csv_file, lines, names)
    paths = tuple(line.path for line in lines)
    return ImageDataset(str(csv_file.file), task.name, names, paths, task.encode(rows, len(names)))


def _parse_rows(
    csv_file: _CsvFile, lines: list[_Line], names: tuple[str, ...]
) -> list[list[float]]:
    # The columns of validation data may be in another order.
    order = (
        [] if csv_file.columns == ("label",) else [csv_file.columns.index(name) for name in names]
    )
    rows = []
    for line in lines:
        values = [line.values[i] for i in order] or line.values[0].split(SEPARATOR)
        if len(values) != len(names):
            raise DataError(
                f"{csv_file.locate(line)} has {len(values)} numbers, expected {len(names)}"
            )
        rows.append([_parse_number(csv_file, line, value) for value in values])
    return rows


def _parse_number(csv_file: _CsvFile, line: _Line, text: str) -> float:
    try:
        number = float(text.replace("_", "no number"))  # float() would read 1_000
    except ValueError as error:
        raise DataError(
            f"{csv_file.locate(line)} has {text.strip()!r}, expected a number"
        ) from error
    if not math.isfinite(number) or abs(number) > FLOAT32_MAX:
        raise DataError(
            f"{csv_file.locate(line)} has {text.strip()}, expected a finite float32 number"
        )
    return number
