"""Read a CSV of image paths and labels: classes, several labels per image, or numbers."""

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
from headkit.adapters.heads.tasks import Task, TaskName, task_named

from .dataset import ImageDataset, enumerated, refuse_one, refuse_unknown
from .folder import natural_key

logger = logging.getLogger("headkit")

SEPARATOR = "|"
"""Stands between the labels, or the numbers, of one image."""
SPLITS = {"train": False, "val": True, "validation": True, "test": True}
"""Values of the column ``split``, and which of them are for validation."""
FLOAT32_MAX = float(np.finfo(np.float32).max)


class _Line(NamedTuple):
    number: int
    path: str
    values: tuple[str, ...]
    held: bool


@dataclass(frozen=True)
class _Table:
    """The lines of a file, and what its columns of values are called: ``label``, or outputs."""

    file: Path
    columns: tuple[str, ...]
    has_split: bool
    lines: list[_Line]

    def at(self, line: _Line) -> str:
        return f"{self.file} line {line.number}"


def open_table(
    file: Path, task: TaskName | None = None
) -> tuple[ImageDataset, ImageDataset | None]:
    """Read the training data of a CSV and, if it has a column ``split``, the validation data.

    The first line names the columns, in any order; those not listed here are ignored:

    - ``path``: absolute, or relative to the folder of the CSV;
    - ``label``: a class; or labels with ``|`` between them, none if it is empty (multilabel); or
      numbers with ``|`` between them (regression). For regression without such a column, each of
      the other columns is an output and holds a number;
    - ``split``, if there is one: ``train``, or ``val``, ``validation`` or ``test``.

    Args:
        file: comma-separated, UTF-8.
        task: what the labels are. By default multilabel if any holds a ``|``, else multiclass.

    Raises:
        DataError: the file cannot be read as described, an image is missing, an image has two
            different labels or is in both splits, a number is not finite, there is only one class,
            or a validation label that training lacks. Lines are named.
    """
    chosen = None if task is None else task_named(task)
    table = _read(file, chosen)
    chosen = chosen or task_named(_task_of(table))
    train = [line for line in table.lines if not line.held]
    if not train:
        raise DataError(f"{file} has no line of the split train")
    names = _names(table, train, chosen)
    if chosen.exclusive:
        refuse_one(str(file), names)
    val = [line for line in table.lines if line.held]
    held = _source(table, val, chosen, names) if val else None
    return _source(table, train, chosen, names), held


def open_table_like(file: Path, train: ImageDataset) -> ImageDataset:
    """Read the validation data of a CSV whose labels those of ``train`` are.

    Where the CSV has a column ``split``, the lines of its validation split alone.

    Raises:
        DataError: see ``open_table``; or there is another number of outputs than in ``train``.
    """
    task = task_named(train.task)
    table = _read(file, task)
    lines = [line for line in table.lines if line.held] if table.has_split else table.lines
    if not lines:
        raise DataError(f"{file} has no line of the split val")
    if not task.has_classes:
        found = _names(table, lines, task)
        if set(found) != set(train.label_names):
            raise DataError(
                f"{file} has the outputs {enumerated(found)}; the training data has "
                f"{enumerated(train.label_names)}"
            )
    return _source(table, lines, task, train.label_names)


def _read(file: Path, task: Task | None) -> _Table:
    records = _records(file)
    _, header = next(records, (0, []))
    header = [name.strip() for name in header]
    if not header:
        raise DataError(f"{file} is empty: expected a first line with the columns path,label")
    columns = _columns(file, header, task)
    path, values = header.index("path"), [header.index(name) for name in columns]
    split = header.index("split") if "split" in header else None
    folder = os.path.dirname(file)  # noqa: PTH120
    lines = []
    for number, cells in records:
        if len(cells) != len(header):
            raise DataError(
                f"{file} line {number} has {len(cells)} columns, expected {len(header)} "
                f"({', '.join(header)}): text that holds a comma goes between quotes"
            )
        if not cells[path]:
            raise DataError(f"{file} line {number} has no path")
        held = False
        if split is not None:
            if (name := cells[split].strip().lower()) not in SPLITS:
                raise DataError(
                    f"{file} line {number} has the split {name!r}, expected one of "
                    f"{', '.join(SPLITS)}"
                )
            held = SPLITS[name]
        image = os.path.join(folder, cells[path])  # noqa: PTH118
        lines.append(_Line(number, image, tuple(cells[i].strip() for i in values), held))
    if not lines:
        raise DataError(f"{file} names no image: there is nothing below its first line")
    table = _Table(file, columns, split is not None, lines)
    table = _Table(file, columns, split is not None, _without_duplicates(table))
    _refuse_missing(table, folder)
    return table


def _records(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines that are not blank, with their numbers."""
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
        raise DataError(f"{file} line {reader.line_num} is no CSV: {error}") from error


def _columns(file: Path, header: list[str], task: Task | None) -> tuple[str, ...]:
    others = tuple(name for name in header if name not in ("", "path", "split"))
    numbers = task is not None and not task.has_classes
    outputs = others if numbers and "label" not in others else ("label",)
    missing = [name for name in ("path", *outputs) if name not in header]
    if missing or not outputs:
        hint = ""
        if "path" in header and others:
            hint = "; for outputs in columns of their own, the task is regression"
        raise DataError(
            f"{file} has the columns {', '.join(header)} in its first line, expected "
            f"path,label{hint}"
        )
    twice = [name for name in ("path", "split", *outputs) if header.count(name) > 1]
    if twice:
        raise DataError(f"{file} has the column {twice[0]} twice")
    return outputs


def _without_duplicates(table: _Table) -> list[_Line]:
    first: dict[str, _Line] = {}
    repeated = []
    for line in table.lines:
        known = first.setdefault(os.path.normpath(line.path), line)
        if known is line:
            continue
        both = f"{table.file} lines {known.number} and {line.number}"
        if known.held != line.held:
            raise DataError(f"{both} put {line.path} both into training and into validation")
        if known.values != line.values:
            raise DataError(
                f"{both} give {line.path} different labels: {SEPARATOR.join(known.values)} and "
                f"{SEPARATOR.join(line.values)} (several labels of one image go into one line, "
                f"with {SEPARATOR} between them)"
            )
        repeated.append(line)
    if repeated:
        logger.warning(
            "%s names %d images again with the same label, such as %s in line %d: one line counts",
            table.file,
            len(repeated),
            repeated[0].path,
            repeated[0].number,
        )
    return list(first.values())


def _refuse_missing(table: _Table, folder: str) -> None:
    missing = [line for line in table.lines if not os.path.isfile(line.path)]  # noqa: PTH113
    if missing:
        named = [f"{line.path} (line {line.number})" for line in missing]
        raise DataError(
            f"{table.file} names {len(missing)} of {len(table.lines)} images that are not there: "
            f"{enumerated(named, 3)}; paths are relative to {folder or 'the working folder'}"
        )


def _task_of(table: _Table) -> TaskName:
    several = any(SEPARATOR in value for line in table.lines for value in line.values)
    return "multilabel" if several else "multiclass"


def _names(table: _Table, lines: list[_Line], task: Task) -> tuple[str, ...]:
    if not task.has_classes:
        if table.columns != ("label",):
            return table.columns
        outputs = lines[0].values[0].count(SEPARATOR) + 1
        return ("label",) if outputs == 1 else tuple(f"label_{i}" for i in range(outputs))
    names = {label for line in lines for label in _labels(table, line, task)}
    if not names:
        raise DataError(f"{table.file} has no label at all")
    return tuple(sorted(names, key=natural_key))


def _labels(table: _Table, line: _Line, task: Task) -> list[str]:
    (value,) = line.values
    if task.exclusive:
        if not value:
            raise DataError(
                f"{table.at(line)} has no label; images without any are for the task multilabel"
            )
        if SEPARATOR in value:
            raise DataError(
                f"{table.at(line)} has several labels, {value}: that is the task multilabel, "
                "not multiclass"
            )
        return [value]
    labels = [label.strip() for label in value.split(SEPARATOR)] if value else []
    if "" in labels:
        raise DataError(f"{table.at(line)} has an empty label in {value!r}")
    return labels


def _source(table: _Table, lines: list[_Line], task: Task, names: tuple[str, ...]) -> ImageDataset:
    rows: Sequence[Sequence[float]]
    if task.has_classes:
        labels = [_labels(table, line, task) for line in lines]
        refuse_unknown(str(table.file), (label for row in labels for label in row), names)
        place = {name: index for index, name in enumerate(names)}
        rows = [[place[label] for label in row] for row in labels]
    else:
        rows = _numbers(table, lines, names)
    paths = tuple(line.path for line in lines)
    return ImageDataset(str(table.file), task.name, names, paths, task.encode(rows, len(names)))


def _numbers(table: _Table, lines: list[_Line], names: tuple[str, ...]) -> list[list[float]]:
    # Validation data may have the columns in another order.
    order = [] if table.columns == ("label",) else [table.columns.index(name) for name in names]
    rows = []
    for line in lines:
        values = [line.values[i] for i in order] or line.values[0].split(SEPARATOR)
        if len(values) != len(names):
            raise DataError(f"{table.at(line)} has {len(values)} numbers, expected {len(names)}")
        rows.append([_number(table, line, value) for value in values])
    return rows


def _number(table: _Table, line: _Line, text: str) -> float:
    try:
        number = float(text.replace("_", "no number"))  # Python's own 1_000
    except ValueError as error:
        raise DataError(f"{table.at(line)} has {text.strip()!r}, expected a number") from error
    if not math.isfinite(number) or abs(number) > FLOAT32_MAX:
        raise DataError(f"{table.at(line)} has {text.strip()}, expected a finite float32 number")
    return number
