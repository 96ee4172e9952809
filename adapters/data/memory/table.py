"""Open a table in memory, such as a DataFrame, like a CSV file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from headkit.adapters.data.dataset import Splits
from headkit.adapters.data.options import ReadOptions
from headkit.adapters.data.table.columns import choose_columns
from headkit.adapters.data.table.open import open_table
from headkit.adapters.data.table.rows import Table
from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import TaskName, get_task

from .frame import Frame, as_frame
from .items import Part


def open_frame(frame: Frame, task: TaskName | None, options: ReadOptions) -> Splits:
    """Open a table of paths, see ``open_table``. Paths are relative to the working folder.

    A column of labels that are numbers with a fraction is a regression.

    Raises:
        DataError: See ``open_table``.
    """
    table = frame.to_table()
    if task is None and _has_fractions(frame, table, options):
        task = "regression"
    return open_table(table, task, options)


def take_images(data: Any, task: TaskName | None, options: ReadOptions) -> Any:
    """Take the images and labels out of a table with a column of images instead of paths.

    Returns:
        A ``Part``; or parts by split, if a column names splits; a ``Frame``, if the table has no
        images; a list of the items of an iterator; other data as they are.

    Raises:
        DataError: The columns of the labels or of the splits are not clear, see ``choose_columns``.
    """
    if isinstance(data, Iterator):  # such as zip(paths, labels)
        data = list(data)
    frame = as_frame(data)
    if frame is None:
        return data
    found = [n for n, column in enumerate(frame.columns) if column and _is_image(column[0])]
    if len(found) != 1:
        return frame
    (at,) = found
    names = [f"image {number}" for number in range(len(frame))]
    columns = tuple(names if n == at else column for n, column in enumerate(frame.columns))
    table = replace(frame, columns=columns).to_table()
    options = replace(options, path_column=table.header[at])
    chosen = choose_columns(table, None if task is None else get_task(task), options)
    rows = list(zip(*(frame.columns[value] for value in chosen.values), strict=True))
    labels = [list(row) if chosen.separate else row[0] for row in rows]
    outputs = chosen.names if chosen.separate else ()
    images = frame.columns[at]
    if chosen.split is None:
        return Part(frame.name, images, labels, outputs)
    splits = [chosen.split(row.cells) for row in table.rows]
    return {
        split: Part(
            f"{frame.name} (split {split})",
            [image for image, own in zip(images, splits, strict=True) if own == split],
            [label for label, own in zip(labels, splits, strict=True) if own == split],
            outputs,
        )
        for split in dict.fromkeys(splits)
    }


def _is_image(value: Any) -> bool:
    return isinstance(value, bytes | Mapping | Image.Image) or len(getattr(value, "shape", ())) > 1


def _has_fractions(frame: Frame, table: Table, options: ReadOptions) -> bool:
    try:
        chosen = choose_columns(table, None, options)
    except DataError:
        return False  # opening the table gives the error with its place
    values = [value for number in chosen.values for value in frame.columns[number]]
    known = [value for value in values if isinstance(value, float) and value == value]
    return len(known) == len(values) and any(not value.is_integer() for value in known)
