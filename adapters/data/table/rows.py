"""A table of text, from a file or from values in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from headkit.adapters.errors import DataError

BAR = "|"
"""The usual text between the labels, or the numbers, of one image."""


class Row(NamedTuple):
    """The cells of one image, and the number of their line in the file."""

    number: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of text with a name for each column.

    Attributes:
        name: The name that messages use, such as the path of the file.
        header: Names of the columns.
        rows: One row per image; each has as many cells as ``header``.
        folder: Folder to which relative paths refer; empty for the working folder.
        unit: What messages call a row: ``line`` or ``row``.
        delimiter: What separates the cells of a line in a file, in words.
    """

    name: str
    header: tuple[str, ...]
    rows: Sequence[Row]
    folder: str = ""
    unit: str = "line"
    delimiter: str = ""

    def locate(self, number: int) -> str:
        """Return the place of a row for a message."""
        return f"{self.name} {self.unit} {number}"


def table_of_values(
    name: str,
    header: Iterable[object],
    rows: Iterable[Sequence[object]],
    folder: str = "",
    first: int = 0,
) -> Table:
    """Return a table of values in memory, such as those of a DataFrame.

    A missing value (None, NaN) is an empty cell. A list of labels or numbers is one cell.

    Args:
        name: The name that messages use.
        header: Names of the columns.
        rows: The values of each image, in the order of ``header``.
        folder: Folder to which relative paths refer.
        first: Number of the first row.

    Raises:
        DataError: A label in a list contains a vertical bar.
    """
    lines = [
        Row(number, tuple(cell_text(value) for value in row))
        for number, row in enumerate(rows, first)
    ]
    return Table(name, tuple(str(one).strip() for one in header), lines, folder, "row")


def cell_text(value: object) -> str:
    """Return a value as the text of a cell.

    Raises:
        DataError: A label in a list contains a vertical bar.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset):
        ordered = sorted(map(cell_text, value)) if isinstance(value, set | frozenset) else value
        parts = [cell_text(part) for part in ordered]
        if any(BAR in part for part in parts):
            raise DataError(f"a label in {parts} contains {BAR}: replace this character")
        return BAR.join(parts)
    if isinstance(value, float | np.floating):
        number = float(value)
        if np.isnan(number):
            return ""
        return str(int(number)) if number.is_integer() else str(value)
    text = str(value)
    return "" if text in ("<NA>", "NaT") else text
