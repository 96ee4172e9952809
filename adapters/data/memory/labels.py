"""Turn labels in memory into a task, the names of its outputs, and targets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headkit.adapters.data.dataset import (
    Targets,
    check_known_classes,
    check_two_classes,
    shorten_list,
)
from headkit.adapters.data.listing import natural_key
from headkit.adapters.data.table.columns import Columns
from headkit.adapters.data.table.labels import choose_reader
from headkit.adapters.data.table.rows import Row, Table
from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import TaskName, get_task

from .columns import Labels, normalize_labels

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Encoded:
    """Targets and what they mean, see ``ImageDataset``."""

    task: TaskName
    label_names: tuple[str, ...]
    targets: Targets
    warnings: tuple[str, ...] = ()


def encode_labels(
    values: Any,
    where: str,
    *,
    classes: Sequence[str] = (),
    task: TaskName | None = None,
    known: Encoded | None = None,
    separator: str | None = None,
) -> Encoded:
    """Encode the label of each image.

    Text and truth values are classes. Whole numbers are classes, called by their number. Numbers
    with a fraction are targets of a regression. Lists are the labels of one image each. A matrix of
    0 and 1 has a column per label: multiclass if each row has exactly one 1, else multilabel. Text
    may be several labels that ``|`` separates, as in a CSV file.

    Args:
        values: A list, array, tensor or column of labels, one entry or row per image.
        where: Name of the data for messages.
        classes: Names of the classes, if the labels are indices of classes.
        task: The kind of targets. If None, the labels determine it.
        known: The training data's encoding, if these are labels of validation data.
        separator: Text between several labels in one text, see ``ReadOptions``.

    Raises:
        DataError: The labels have another form, are missing, do not suit the task, or are not among
            the known ones.
    """
    task = known.task if known is not None else task
    labels = normalize_labels(values, where, tuple(map(str, classes)))
    if labels.texts is not None:
        return _encode_texts(labels, task, known, separator)
    numeric = task is not None and not get_task(task).has_classes
    if labels.lists is not None and not numeric:
        return _encode_lists(labels, labels.lists, task or "multilabel", known)
    if labels.matrix is None:
        numbers = [[_number(labels, text) for text in row] for row in labels.lists or ()]
        return _encode_numbers(labels, _same_lengths(labels, numbers), known)
    if numeric or (task is None and _is_regression(labels, labels.matrix)):
        return _encode_numbers(labels, labels.matrix, known)
    if labels.matrix.ndim == 2:
        return _encode_matrix(labels, labels.matrix, task, known)
    names = [[_class_name(labels, value)] for value in labels.matrix.tolist()]
    return _encode_lists(labels, names, task or "multiclass", known)


def _encode_texts(
    labels: Labels, task: TaskName | None, known: Encoded | None, separator: str | None
) -> Encoded:
    """Read text as the label column of a table: the same text means the same everywhere."""
    rows = [Row(number, ("", text)) for number, text in enumerate(labels.texts or ())]
    table = Table(labels.where, ("path", "label"), rows, unit="image")
    columns = Columns(0, (1,), ("label",), False, None, "", ())
    chosen = None if task is None else get_task(task)
    reader = choose_reader(
        table, columns, chosen, separator, known.label_names if known is not None else ()
    )
    if reader.task.has_classes:
        lists = [reader.labels(row) for row in rows]
        return _encode_lists(labels, lists, reader.task.name, known)
    names = reader.output_names(rows)
    return _encode_numbers(labels, np.array([reader.numbers(row, names) for row in rows]), known)


def _encode_lists(
    labels: Labels, lists: Sequence[Sequence[str]], task: TaskName, known: Encoded | None
) -> Encoded:
    where = labels.where
    if get_task(task).exclusive:
        number = next((n for n, row in enumerate(lists) if len(row) != 1), None)
        if number is not None:
            raise DataError(
                f"{where} image {number} has {len(lists[number])} labels, but the task is "
                "multiclass: expected one class; or set the task to multilabel"
            )
    flat = [label for row in lists for label in row]
    names, warnings = _order(labels, set(flat)) if known is None else (known.label_names, ())
    if known is not None:
        check_known_classes(where, flat, names)
    elif get_task(task).exclusive:
        check_two_classes(where, names)
    index = {name: number for number, name in enumerate(names)}
    indices = [[index[label] for label in row] for row in lists]
    return Encoded(task, names, get_task(task).encode(indices, len(names)), warnings)


def _order(labels: Labels, present: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the labels in order, and a warning if some of the classes have no images."""
    if not present:
        raise DataError(f"{labels.where} has no labels")
    _check_text(labels.where, present)
    if labels.names:
        empty = [name for name in labels.names if name not in present]
        warning = (
            f"skipped the classes of {labels.where} that have no images: {shorten_list(empty)}"
        )
        names = tuple(name for name in labels.names if name in present)
        return names, (warning,) if empty else ()
    if labels.matrix is not None and labels.matrix.dtype.kind != "b":
        return tuple(map(str, sorted(map(int, present)))), ()
    return tuple(sorted(present, key=natural_key)), ()


def _class_name(labels: Labels, value: float) -> str:
    where, names = labels.where, labels.names
    if value != int(value):
        raise DataError(
            f"{where} has the label {value}, which is not a class: set the task to regression, or "
            "use whole numbers or text"
        )
    if not names:
        return str(value if isinstance(value, bool) else int(value))
    if not 0 <= value < len(names):
        raise DataError(
            f"{where} has the class index {int(value)}, expected 0 to {len(names) - 1} for its "
            f"{len(names)} classes; drop images without a class"
        )
    return names[int(value)]


def _is_regression(labels: Labels, matrix: np.ndarray[Any, Any]) -> bool:
    if matrix.ndim == 2:
        return not _is_zero_one(matrix)
    if matrix.dtype.kind != "f":
        return False
    if (matrix == np.floor(matrix)).all():
        raise DataError(
            f"the labels of {labels.where} are whole numbers of type {matrix.dtype}, which may be "
            "classes or targets of a regression: convert them to integers, or set the task to "
            "regression"
        )
    return True


def _is_zero_one(matrix: np.ndarray[Any, Any]) -> bool:
    return bool(((matrix == 0) | (matrix == 1)).all())


def _encode_numbers(labels: Labels, values: np.ndarray[Any, Any], known: Encoded | None) -> Encoded:
    values = _reorder(labels, values.astype(np.float64).reshape(len(values), -1), known)
    if np.abs(values).max() > _FLOAT32_MAX:
        raise DataError(f"{labels.where} has a label outside the range of float32")
    outputs = values.shape[1]
    if known is not None:
        names = known.label_names
        if len(names) != outputs:
            raise DataError(
                f"{labels.where} has {outputs} numbers per image; the training data has "
                f"{len(names)}"
            )
    elif len(labels.names) == outputs:
        names = labels.names
    else:
        names = ("label",) if outputs == 1 else tuple(f"label_{i}" for i in range(outputs))
    return Encoded("regression", names, get_task("regression").encode(values.tolist(), outputs))


def _number(labels: Labels, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{labels.where} has the label {text!r}, but the task is regression: expected a number"
        )
    return number


def _same_lengths(labels: Labels, rows: list[list[float]]) -> np.ndarray[Any, Any]:
    widths = {len(row) for row in rows}
    if len(widths) != 1 or widths == {0}:
        raise DataError(
            f"the images of {labels.where} have {min(widths)} to {max(widths)} numbers each, "
            "expected as many for each image"
        )
    return np.array(rows)


def _encode_matrix(
    labels: Labels, matrix: np.ndarray[Any, Any], task: TaskName | None, known: Encoded | None
) -> Encoded:
    where = labels.where
    if not _is_zero_one(matrix):
        raise DataError(
            f"the labels of {where} are a matrix of {matrix.dtype} {list(matrix.shape)} with "
            f"values other than 0 and 1, which does not suit the task {task}"
        )
    matrix = _reorder(labels, matrix, known)
    outputs = matrix.shape[1]
    names = known.label_names if known is not None else labels.names
    names = names or tuple(map(str, range(outputs)))
    if len(names) != outputs:
        raise DataError(f"{where} has {outputs} columns of labels for {len(names)} labels")
    _check_text(where, names)
    counts = matrix.sum(1)
    one_each = bool((counts == 1).all())
    several = not one_each if task is None else not get_task(task).exclusive
    if several:
        return Encoded("multilabel", names, matrix.astype(np.float32))
    if not one_each:
        number = int(np.flatnonzero(counts != 1)[0])
        raise DataError(
            f"{where} image {number} has {int(counts[number])} classes, but the task is "
            "multiclass: expected one; or set the task to multilabel"
        )
    empty = [names[index] for index in np.flatnonzero(~matrix.astype(bool).any(0))]
    if empty and known is None:
        raise DataError(
            f"{where} has columns of labels without a 1, {shorten_list(empty)}: remove them, or "
            "set the task to multilabel"
        )
    warning = (
        f"each image of {where} has exactly one label, so the task is multiclass: set the task to "
        "multilabel if others can have several"
    )
    targets = matrix.argmax(1).astype(np.int64)
    return Encoded("multiclass", names, targets, (warning,) if task is None else ())


def _reorder(
    labels: Labels, matrix: np.ndarray[Any, Any], known: Encoded | None
) -> np.ndarray[Any, Any]:
    """Bring named columns of validation data into the order of the training data."""
    if known is None or not labels.names or labels.names == known.label_names:
        return matrix
    if sorted(labels.names) != sorted(known.label_names):
        raise DataError(
            f"{labels.where} has the columns {shorten_list(labels.names)}; the training data has "
            f"{shorten_list(known.label_names)}"
        )
    return matrix[:, [labels.names.index(name) for name in known.label_names]]


def _check_text(where: str, names: Iterable[str]) -> None:
    # The head file stores label names as UTF-8.
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where} has the label {name!r}, which is not UTF-8") from error
