"""Turn the cells of a table into labels or numbers, and find out which of the two they are."""

from __future__ import annotations

import ast
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import Task, get_task

from .columns import BITS, Columns
from .rows import BAR, Row, Table, cell_text

FLOAT32_MAX = float(np.finfo(np.float32).max)
_LONGEST_LIST = 10_000
_OPTION = "label_separator (--label-separator)"


@dataclass(frozen=True)
class LabelReader:
    """Reads the labels, or the numbers, of each row.

    Attributes:
        table: The table.
        columns: Its columns.
        task: The kind of labels.
        separator: Text between the labels of one cell; None if each cell is one label.
        lists: True if the cells are lists as Python writes them: ``['cat', 'pet']``.
    """

    table: Table
    columns: Columns
    task: Task
    separator: str | None
    lists: bool = False

    def cells(self, row: Row) -> tuple[str, ...]:
        """Return the cells of labels or numbers, as in the file."""
        return tuple(row.cells[i].strip() for i in self.columns.values)

    def labels(self, row: Row) -> list[str]:
        """Return the labels of an image.

        Raises:
            DataError: The row has no label, several labels or an empty label, and must not.
        """
        where = self.table.locate(row.number)
        if self.columns.separate:
            return self._named_labels(row, where)
        (value,) = self.cells(row)
        if self.task.exclusive:
            if not value:
                raise DataError(
                    f"{where} has no label; only the task multilabel allows images without labels"
                )
            if self.separator is not None and self.separator in value:
                raise DataError(
                    f"{where} has several labels, {value}, but the task is multiclass: set the "
                    "task to multilabel"
                )
            return [value]
        if not value:
            return []
        if self.lists:
            return _parse_list(value) or []
        if self.separator is None:
            return [value]
        parts = value.split() if self.separator.isspace() else value.split(self.separator)
        labels = [part.strip() for part in parts]
        if "" in labels:
            raise DataError(f"{where} has an empty label in {value!r}")
        return labels

    def _named_labels(self, row: Row, where: str) -> list[str]:
        labels = []
        for name, cell in zip(self.columns.names, self.cells(row), strict=True):
            if (bit := BITS.get(cell.lower())) is None:
                raise DataError(f"{where} has {cell!r} in the column {name}, expected 0 or 1")
            if bit:
                labels.append(name)
        if self.task.exclusive and len(labels) != 1:
            found = " and ".join(labels) or "none"
            raise DataError(
                f"{where} has {len(labels)} classes ({found}), but the task is multiclass: set "
                "the task to multilabel"
            )
        return labels

    def output_names(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """Return the names of the numbers, from the training rows."""
        if self.columns.separate:
            return self.columns.names
        (name,) = self.columns.names
        outputs = len(self._split_numbers(self.cells(rows[0])[0]))
        return (name,) if outputs == 1 else tuple(f"{name}_{i}" for i in range(outputs))

    def numbers(self, row: Row, names: tuple[str, ...]) -> list[float]:
        """Return the numbers of an image in the order of ``names``.

        Raises:
            DataError: There are more or fewer numbers, or one is not a finite float32 number.
        """
        where = self.table.locate(row.number)
        cells = self.cells(row)
        if self.columns.separate:  # the columns of validation data may be in another order
            cells = tuple(cells[self.columns.names.index(name)] for name in names)
        else:
            cells = tuple(self._split_numbers(cells[0]))
        if len(cells) != len(names):
            raise DataError(f"{where} has {len(cells)} numbers, expected {len(names)}")
        return [_parse_number(where, text) for text in cells]

    def _split_numbers(self, text: str) -> list[str]:
        if self.lists:
            return _parse_list(text) or [text]
        return text.split() if (self.separator or BAR).isspace() else text.split(self.separator)


def choose_reader(
    table: Table,
    columns: Columns,
    task: Task | None,
    separator: str | None,
    known: Collection[str] = (),
) -> LabelReader:
    """Choose the task and the separator of labels by the cells of the table.

    Args:
        table: The table.
        columns: Its columns.
        task: The task, if the user gave one.
        separator: The separator, if the user gave one.
        known: The labels of the training data, if this is validation data.

    Raises:
        DataError: The labels can be read in two ways.
    """
    if columns.separate:
        return LabelReader(table, columns, task or _task_of_bits(table, columns), None)
    (index,) = columns.values
    values = {row.cells[index].strip() for row in table.rows}
    lists = separator is None and _are_lists(values)
    if task is not None and not task.has_classes:
        return LabelReader(table, columns, task, separator or BAR, lists)
    if separator is not None:
        several = any(separator in value for value in values)
        chosen = task or get_task("multilabel" if several else "multiclass")
        return LabelReader(table, columns, chosen, separator)
    if task is not None and task.exclusive:
        return LabelReader(table, columns, task, BAR)
    if any(BAR in value for value in values):
        return LabelReader(table, columns, task or get_task("multilabel"), BAR)
    if lists:
        return LabelReader(table, columns, task or get_task("multilabel"), None, lists=True)
    if task is not None:
        return LabelReader(table, columns, task, _find_separator(table, values, known))
    for mark in ",;":
        if (example := _looks_joined(values, mark)) is not None:
            raise DataError(
                f"{table.name} has labels such as {example!r}: set the task to multilabel if these "
                "are several labels of one image, or to multiclass if each is one class"
            )
    if _has_fractions(values):
        raise DataError(
            f"{table.name} has labels that are numbers with a fraction, such as "
            f"{min(value for value in values if '.' in value)!r}: set the task to regression if "
            "they are numbers, or to multiclass if each is a class"
        )
    return LabelReader(table, columns, get_task("multiclass"), BAR)


def _has_fractions(values: Collection[str]) -> bool:
    """Return True if all values are numbers, and at least one is not whole."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return False
    return any(math.isfinite(number) and not number.is_integer() for number in numbers)


def _task_of_bits(table: Table, columns: Columns) -> Task:
    """Return multiclass if each row has exactly one 1, else multilabel."""
    one = all(
        sum(BITS.get(row.cells[i].strip().lower(), False) for i in columns.values) == 1
        for row in table.rows
    )
    return get_task("multiclass" if one else "multilabel")


def _find_separator(table: Table, values: set[str], known: Collection[str]) -> str | None:
    """Return the separator of multilabel values without a vertical bar."""
    if known and values <= {"", *known}:
        return None
    marks = [mark for mark in ",;" if any(mark in value for value in values)]
    if len(marks) == 1:
        return marks[0]
    if marks:
        example = next(value for value in values if "," in value)
        raise DataError(
            f"{table.name} has commas and semicolons in its labels, such as {example!r}: name the "
            f"text between two labels as {_OPTION}"
        )
    spaced = sorted(value for value in values if len(value.split()) > 1)
    if spaced:
        raise DataError(
            f"{table.name} has labels with spaces, such as {spaced[0]!r}: pass {_OPTION} ' ' if "
            f"these are several labels, or {BAR!r} if each is one label"
        )
    return None


def _looks_joined(values: set[str], mark: str) -> str | None:
    """Return an example if values look like several labels that ``mark`` joins, else None.

    They do if in at least half of the joined values a part also occurs in another value:
    ``cat,pet`` beside ``dog,pet``, and not ``tench, Tinca tinca`` beside other pairs of names.
    """
    parts = {value: {part.strip() for part in value.split(mark)} for value in values}
    places: dict[str, int] = {}
    for found in parts.values():
        for part in found:
            places[part] = places.get(part, 0) + 1
    joined = [value for value in values if mark in value]
    shared = sorted(value for value in joined if any(places[part] > 1 for part in parts[value]))
    return shared[0] if shared and 2 * len(shared) >= len(joined) else None


def _are_lists(values: set[str]) -> bool:
    filled = [value for value in values if value]
    if not filled or not all(v[0] + v[-1] in ("[]", "()") for v in filled):
        return False
    return all(_parse_list(value) is not None for value in filled)


def _parse_list(text: str) -> list[str] | None:
    """Return the items of a list as Python or JSON writes it, or None."""
    if len(text) > _LONGEST_LIST:
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(value, list | tuple):
        return None
    items = [cell_text(item).strip() for item in value if isinstance(item, str | int | float)]
    return items if len(items) == len(value) and all(items) else None


def _parse_number(where: str, text: str) -> float:
    try:
        number = float(text.replace("_", "no number"))  # float() would read 1_000
    except ValueError as error:
        raise DataError(f"{where} has {text.strip()!r}, expected a number") from error
    if not math.isfinite(number) or abs(number) > FLOAT32_MAX:
        raise DataError(f"{where} has {text.strip()}, expected a finite float32 number")
    return number
