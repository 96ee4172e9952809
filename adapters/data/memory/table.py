"""Read a DataFrame of pandas or polars as a table, like a CSV file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from headkit.adapters.data.dataset import ImageDataset, Splits
from headkit.adapters.data.options import ReadOptions
from headkit.adapters.data.table.columns import choose_columns
from headkit.adapters.data.table.open import open_table, open_validation_table
from headkit.adapters.data.table.rows import Table, table_of_values
from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import TaskName, get_task

from .items import Part

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


def take_images(data: Any, task: TaskName | None, options: ReadOptions) -> Any:
    """Take the images and labels out of a DataFrame with a column of images instead of paths.

    Returns:
        A ``Part``; or parts by split, if a column names splits; or ``data`` as it is.

    Raises:
        DataError: The columns of the labels or of the splits are not clear, see ``choose_columns``.
    """
    if not has_columns(data) or not len(data):
        return data
    columns = [_values(data, number) for number in range(len(data.columns))]
    found = [number for number, values in enumerate(columns) if _is_image(values[0])]
    if len(found) != 1:
        return data
    (at,) = found
    images = columns[at]
    columns[at] = [f"image {number}" for number in range(len(images))]
    table = table_of_values(NAME, data.columns, zip(*columns, strict=True))
    options = replace(options, path_column=table.header[at])
    chosen = choose_columns(table, None if task is None else get_task(task), options)
    rows = list(zip(*(columns[value] for value in chosen.values), strict=True))
    labels = [list(row) if chosen.separate else row[0] for row in rows]
    names = chosen.names if chosen.separate else ()
    if chosen.split is None:
        return Part(NAME, images, labels, names)
    splits = [chosen.split(row.cells) for row in table.rows]
    return {
        split: Part(
            f"{NAME} (split {split})",
            [image for image, own in zip(images, splits, strict=True) if own == split],
            [label for label, own in zip(labels, splits, strict=True) if own == split],
            names,
        )
        for split in dict.fromkeys(splits)
    }


def _is_image(value: Any) -> bool:
    return isinstance(value, bytes | Mapping | Image.Image) or len(getattr(value, "shape", ())) > 1


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
