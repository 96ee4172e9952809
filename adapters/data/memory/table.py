"""Read a DataFrame of pandas or polars as a table, like a CSV file."""

from __future__ import annotations

from typing import Any

from headkit.adapters.data.dataset import ImageDataset, Splits
from headkit.adapters.data.options import ReadOptions
from headkit.adapters.data.table.columns import choose_columns
from headkit.adapters.data.table.open import open_table, open_validation_table
from headkit.adapters.data.table.rows import Table, table_of_values
from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import TaskName

NAME = "the DataFrame"


def has_columns(data: Any) -> bool:
    """Return True for a DataFrame of pandas, polars or a similar library."""
    return hasattr(data, "columns") and hasattr(data, "shape") and len(data.shape) == 2


def open_frame(frame: Any, task: TaskName | None, options: ReadOptions) -> Splits:
    """Open a DataFrame of paths, see ``open_table``. Paths are relative to the working folder.

    A column of labels that are numbers with a fraction is a regression.

    Raises:
        DataError: See ``open_table``.
    """
    table = table_of_frame(frame)
    if task is None and _has_fractions(frame, table, options):
        task = "regression"
    return open_table(table, task, options)


def open_validation_frame(frame: Any, train: ImageDataset, options: ReadOptions) -> ImageDataset:
    """Open validation data, see ``open_validation_table``."""
    return open_validation_table(table_of_frame(frame), train, options)


def table_of_frame(frame: Any) -> Table:
    """Return the cells of a DataFrame as text.

    Raises:
        DataError: It has no rows.
    """
    if not len(frame):
        raise DataError(f"{NAME} has no rows, expected a row per image")
    columns = [_values(frame, number) for number in range(len(frame.columns))]
    return table_of_values(NAME, frame.columns, zip(*columns, strict=True))


def _values(frame: Any, number: int) -> list[Any]:
    # By position, as two columns may have one name.
    column = frame.iloc[:, number] if hasattr(frame, "iloc") else frame[frame.columns[number]]
    return list(column.to_list())


def _has_fractions(frame: Any, table: Table, options: ReadOptions) -> bool:
    try:
        columns = choose_columns(table, None, options)
    except DataError:
        return False  # opening the table gives the error with its place
    values = [value for number in columns.values for value in _values(frame, number)]
    known = [value for value in values if isinstance(value, float) and value == value]
    return len(known) == len(values) and any(not value.is_integer() for value in known)
