"""Choose the columns of a table: the path, the labels and the split."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headkit.adapters.data.dataset import shorten_list
from headkit.adapters.data.options import ReadOptions
from headkit.adapters.data.splits import SplitName, split_of
from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import Task
from headkit.adapters.images.formats import is_image

from .rows import Table

_PATHS = (
    "path paths file files filename filenames filepath filepaths fname image images img imgs "
    "imagefile imagefilename imagename imagepath imagepaths imgfile imgname imgpath"
)
_LABELS = (
    "label labels labelname class classes classname target targets category categories "
    "categoryname tag tags"
)
PATH_NAMES = frozenset(_PATHS.split())
LABEL_NAMES = frozenset(_LABELS.split())
"""Names of columns in lowercase, without spaces and punctuation."""
SPLIT_NAMES = frozenset(("split", "splits", "datasplit", "splitname"))
"""Columns that must hold names of splits."""
MAYBE_SPLIT_NAMES = frozenset(("subset", "partition", "set", "fold", "phase", "usage", "dataset"))
"""Columns that are used if they hold nothing but names of splits."""
FLAGS: dict[str, tuple[SplitName, SplitName]] = {
    **dict.fromkeys(("isvalid", "isval", "isvalidation", "isdev"), ("val", "train")),
    **dict.fromkeys(("istrain", "istraining"), ("train", "val")),
    **dict.fromkeys(("istest", "istesting"), ("test", "train")),
}
"""Columns of true and false: the split of a true value, and that of a false one."""
INDEX_NAMES = frozenset(("", "index", "unnamed:0"))
"""Columns that number the rows; pandas writes them."""
_SEPARATORS = re.compile(r"[\s_.-]+")
_BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0"), False),
}
BITS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
"""Lowercase values of a column that says whether an image has one label."""
_SAMPLE = 50


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are used.

    Attributes:
        path: Position of the column of paths.
        values: Positions of the columns of labels or numbers.
        names: Names of these columns.
        separate: True if each of these columns is one class or output.
        split: Function that returns the split of a row's cells; None if all rows are one split.
        split_name: Name of the column that ``split`` reads; empty if there is none.
        ignored: Names of the columns that are not used.
    """

    path: int
    values: tuple[int, ...]
    names: tuple[str, ...]
    separate: bool
    split: Callable[[Sequence[str]], SplitName] | None
    split_name: str
    ignored: tuple[str, ...]


def is_path_name(name: str) -> bool:
    """Return True if a column of this name holds paths."""
    return _plain(name) in PATH_NAMES


def choose_columns(table: Table, task: Task | None, options: ReadOptions) -> Columns:
    """Choose the columns of a table by their names and by the user's word.

    Raises:
        DataError: A column is missing or occurs twice, several columns come into question, or two
            columns name the split.
    """
    path = _choose_path(table, options.path_column)
    flag = _choose_split(table)
    taken = {path, *([flag[0]] if flag else [])}
    values, separate = _choose_labels(table, task, options.label_column, taken)
    for index in (path, *values, *([flag[0]] if flag else [])):
        if table.header.count(table.header[index]) > 1:
            raise DataError(f"{table.name} has the column {table.header[index]} twice")
    used = {*taken, *values}
    ignored = [n for i, n in enumerate(table.header) if i not in used and not _is_index(n)]
    names = tuple(table.header[i] for i in values)
    split, split_name = (flag[1], table.header[flag[0]]) if flag else (None, "")
    return Columns(path, values, names, separate, split, split_name, tuple(ignored))


def _choose_path(table: Table, wanted: str | None) -> int:
    if wanted is not None:
        return _find(table, wanted, "path_column (--path-column)")
    if "path" in table.header:
        return table.header.index("path")
    named = [i for i, name in enumerate(table.header) if is_path_name(name)]
    if not named and len(table.header) > 1 and not any(map(is_image, table.header)):
        sample = table.rows[:_SAMPLE]
        named = [
            i
            for i in range(len(table.header))
            if sample and all(is_image(row.cells[i]) for row in sample)
        ]
    if len(named) == 1:
        return named[0]
    if any(map(is_image, table.header)):
        raise DataError(
            f"{_describe(table)}, expected path,label: the first line must name the columns"
        )
    what = "no column" if not named else f"{len(named)} columns"
    raise DataError(
        f"{_describe(table)}, expected path,label: {what} could be the paths of the images; name "
        "the column of paths in the first line, or as path_column (--path-column)"
    )


def _choose_split(table: Table) -> tuple[int, Callable[[Sequence[str]], SplitName]] | None:
    plain = [_plain(name) for name in table.header]
    sure = [i for i, name in enumerate(plain) if name in SPLIT_NAMES]
    flags = [i for i, name in enumerate(plain) if name in FLAGS]
    maybe = [
        i
        for i, name in enumerate(plain)
        if name in MAYBE_SPLIT_NAMES and all(split_of(row.cells[i]) for row in table.rows)
    ]
    found = sure + flags or maybe
    if len({table.header[i] for i in found}) > 1:
        raise DataError(
            f"{table.name} has the columns {', '.join(table.header[i] for i in found)}, which all "
            "say which images are for training: keep one of them"
        )
    if not found:
        return None
    (index, *_) = found
    if index in flags:
        true, false = FLAGS[plain[index]]
        _check_values(table, index, "True or False", lambda text: text.lower() in _BOOLEANS)

        def flagged(cells: Sequence[str]) -> SplitName:
            return true if _BOOLEANS[cells[index].strip().lower()] else false

        return index, flagged

    _check_values(table, index, "one of train, val, test", lambda text: bool(split_of(text)))

    def named(cells: Sequence[str]) -> SplitName:
        return split_of(cells[index]) or "train"

    return index, named


def _check_values(table: Table, index: int, expected: str, accept: Callable[[str], bool]) -> None:
    for row in table.rows:
        if not accept(text := row.cells[index].strip()):
            name = table.header[index]
            called = "the split" if _plain(name) in SPLIT_NAMES else f"the {name}"
            raise DataError(
                f"{table.locate(row.number)} has {called} {text!r}, expected {expected}"
            )


def _choose_labels(
    table: Table, task: Task | None, wanted: str | Sequence[str] | None, taken: set[int]
) -> tuple[tuple[int, ...], bool]:
    option = "label_column (--label-column)"
    if wanted is not None:
        if isinstance(wanted, str):
            wanted = [wanted] if wanted in table.header else wanted.split(",")
        found = tuple(_find(table, name.strip(), option) for name in wanted)
        if not found:
            raise DataError(f"{option} names no column of {table.name}")
        return found, len(found) > 1
    if "label" in table.header:
        return (table.header.index("label"),), False
    others = [i for i, name in enumerate(table.header) if i not in taken and not _is_index(name)]
    if task is not None and not task.has_classes:
        if not others:
            raise _no_labels(table, "no column is left for the numbers")
        return tuple(others), True
    named = [i for i in others if _plain(table.header[i]) in LABEL_NAMES]
    if len(named) == 1:
        return (named[0],), False
    if len(named) > 1:
        listed = ", ".join(table.header[i] for i in named)
        raise _no_labels(table, f"the columns {listed} could be the labels; name one as {option}")
    bits = [i for i in others if _holds_bits(table, i)]
    if len(bits) > 1 and bits == others:
        return tuple(bits), True
    if len(others) == 1 and not _holds_numbers(table, others[0]):
        return (others[0],), False
    if not others:
        raise _no_labels(table, "no column is left for the labels")
    hint = f"name the column of labels as {option}"
    numbers = [i for i in others if _holds_numbers(table, i)]
    if len(one_per_class := bits if len(bits) > 1 else numbers) > 1:
        names = shorten_list((table.header[i] for i in one_per_class), 8).replace(", ", ",")
        hint += f", or {names} if each of these columns is one class"
    if numbers:
        hint += "; or if each output has its own column, set the task to regression"
    raise _no_labels(table, hint)


def _no_labels(table: Table, reason: str) -> DataError:
    return DataError(f"{_describe(table)}, expected path,label: {reason}")


def _describe(table: Table) -> str:
    place = " in its first line" if table.unit == "line" else ""
    return f"{table.name} has the columns {shorten_list(table.header, 8)}{place}"


def _find(table: Table, name: str, option: str) -> int:
    if name not in table.header:
        raise DataError(
            f"{option} is {name!r}, but {table.name} has the columns "
            f"{shorten_list(table.header, 8)}"
        )
    return table.header.index(name)


def _plain(name: str) -> str:
    return _SEPARATORS.sub("", name.lower())


def _is_index(name: str) -> bool:
    return _plain(name) in INDEX_NAMES


def _holds_bits(table: Table, index: int) -> bool:
    return all(row.cells[index].strip().lower() in BITS for row in table.rows)


def _holds_numbers(table: Table, index: int) -> bool:
    try:
        for row in table.rows:  # some cells may be blank
            float(row.cells[index].strip() or 0)
    except ValueError:
        return False
    return True
