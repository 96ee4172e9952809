"""Read a delimited text file: commas, semicolons, tabs or vertical bars, in UTF-8."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

from headkit.adapters.errors import DataError
from headkit.adapters.files import is_file

from .columns import is_path_name
from .rows import Row, Table

SUFFIXES = (".csv", ".tsv", ".tab", ".psv", ".txt")
"""Suffixes of files that are read as tables."""
DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
_EXCEL_HINT = "sep="
"""Excel writes the delimiter in the first line of some files: ``sep=;``."""


def is_table_file(path: Path) -> bool:
    """Return True if ``path`` is a file whose suffix is one of ``SUFFIXES``, in any case."""
    return path.suffix.lower() in SUFFIXES and is_file(path)


def read_table(file: Path, path_column: str | None = None) -> Table:
    """Read a file whose first line names the columns.

    Args:
        file: A text file in UTF-8, with or without a byte order mark. The delimiter is the one
            that makes a column of paths out of the first line.
        path_column: Name of the column of paths, if the user gave one.

    Raises:
        DataError: The file cannot be read, is not valid, or lists no images.
    """
    text = _read_text(file)
    first, _, rest = text.partition("\n")
    delimiter = ""
    skipped = 0
    if first.lower().startswith(_EXCEL_HINT) and len(first.rstrip("\r")) == len(_EXCEL_HINT) + 1:
        delimiter, text, skipped = first[len(_EXCEL_HINT)], rest, 1
    delimiter = delimiter or _find_delimiter(text, path_column)
    records = _records(file, text, delimiter, skipped)
    _, cells = next(records, (0, []))
    header = tuple(name.strip() for name in cells)
    if not header:
        raise DataError(f"{file} is empty: expected a first line with the columns path,label")
    rows = []
    mark = DELIMITERS.get(delimiter, repr(delimiter))
    for number, cells in records:
        if len(cells) != len(header):
            raise DataError(
                f"{file} line {number} has {len(cells)} columns, expected {len(header)} "
                f"({', '.join(header)}){_advise(len(cells), len(header), mark)}"
            )
        rows.append(Row(number, tuple(cells)))
    if not rows:
        raise DataError(f"{file} lists no images: it has only a header line")
    folder = os.path.dirname(file)  # noqa: PTH120
    return Table(str(file), header, rows, folder, delimiter=mark)


def _read_text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file} line {line} is not UTF-8: save the file as UTF-8") from error


def _find_delimiter(text: str, path_column: str | None) -> str:
    """Return the delimiter whose columns include one of paths, else the one with most columns."""
    start = text.lstrip("\r\n")
    end = min((at for at in map(start.find, "\r\n") if at >= 0), default=len(start))
    best, most = ",", (False, 1)
    for delimiter in DELIMITERS:
        try:
            header = next(csv.reader([start[:end]], delimiter=delimiter), [])
        except csv.Error:
            continue
        names = [name.strip() for name in header]
        paths = path_column in names if path_column else any(map(is_path_name, names))
        if (paths, len(names)) > most:
            best, most = delimiter, (paths, len(names))
    return best


def _records(
    file: Path, text: str, delimiter: str, skipped: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num + skipped, cells
    except csv.Error as error:
        number = reader.line_num + skipped
        raise DataError(f"{file} line {number} is not valid CSV: {error}") from error


def _advise(found: int, expected: int, mark: str) -> str:
    if expected == 1:
        return ": the first line must name the columns, such as path,label"
    if found > expected:
        return f": put quotes around values that contain {mark}"
    return f": check that {mark} stands between all values"
