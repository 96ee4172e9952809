"""See a table in memory as columns, whichever library or form it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headkit.adapters.data.splits import split_of
from headkit.adapters.data.table.rows import Table, table_of_values
from headkit.adapters.errors import DataError


@dataclass(frozen=True, eq=False)
class Frame:
    """A table in memory.

    Attributes:
        name: The name that messages use.
        header: Names of the columns.
        columns: The values of each column, one per image.
    """

    name: str
    header: tuple[str, ...]
    columns: tuple[list[Any], ...]

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def to_table(self) -> Table:
        """Return the cells as text.

        Raises:
            DataError: There are no rows.
        """
        if not len(self):
            raise DataError(f"{self.name} has no rows, expected a row per image")
        return table_of_values(self.name, self.header, zip(*self.columns, strict=True))


def as_frame(data: Any) -> Frame | None:
    """Return a table as a ``Frame``; None for data that are not a table.

    Tables are DataFrames of pandas and polars, tables of pyarrow, mappings from names of columns to
    columns of equal length, and lists of records, which are mappings with the same keys.
    """
    name = f"the {type(data).__name__}"
    if isinstance(data, Frame):
        return data
    if hasattr(data, "column_names") and hasattr(data, "to_pydict"):
        data = data.to_pydict()
    if isinstance(data, Mapping):
        return _of_mapping(data, name)
    if isinstance(data, list | tuple):
        return _of_records(data, name)
    if not hasattr(data, "columns") or len(getattr(data, "shape", ())) != 2:
        return None
    numbers = range(len(data.columns))
    if hasattr(data, "iloc"):  # by position, as two columns may have one name
        columns = [data.iloc[:, number].tolist() for number in numbers]
    else:
        columns = [data[column].to_list() for column in data.columns]
    return Frame(name, tuple(map(str, data.columns)), tuple(columns))


def _of_mapping(data: Mapping[Any, Any], name: str) -> Frame | None:
    splits = [split_of(key) if isinstance(key, str) else None for key in data]
    if len(data) < 2 or "train" in splits or all(splits):
        return None  # a mapping of splits
    columns = list(data.values())
    if not all(_is_column(column) for column in columns):
        return None
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{key} {len(column)}" for key, column in data.items())
        raise DataError(f"{name} has columns of different lengths: {lengths}")
    return Frame(name, tuple(map(str, data)), tuple(list(column) for column in columns))


def _is_column(column: Any) -> bool:
    sized = hasattr(column, "__len__") and hasattr(column, "__getitem__")
    return sized and not isinstance(column, str | bytes | Mapping)


def _of_records(data: Sequence[Any], name: str) -> Frame | None:
    if not data or not all(isinstance(one, Mapping) for one in data):
        return None
    keys = list(data[0])
    for number, one in enumerate(data):
        if set(one) != set(keys):
            raise DataError(
                f"item {number} of {name} has the keys {', '.join(map(str, one))}; item 0 has "
                f"{', '.join(map(str, keys))}: expected the same keys in each"
            )
    columns = tuple([one[key] for one in data] for key in keys)
    return Frame(name, tuple(map(str, keys)), columns)
