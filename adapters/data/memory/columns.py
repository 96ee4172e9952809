"""Read the labels of images in memory, of any type, in one of three forms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headkit.adapters.errors import DataError

EXPECTED = (
    "one class per image (text or whole numbers), several labels per image (lists, or a matrix of "
    "0 and 1), or numbers for a regression"
)


@dataclass(frozen=True)
class Labels:
    """The labels of ``N`` images; one of ``texts``, ``lists`` and ``matrix`` is set.

    Attributes:
        where: Name of the data for messages.
        texts: One text per image.
        lists: The labels of each image, any number of them.
        matrix: Finite numbers ``[N]``, or ``[N, outputs]`` with at least two outputs.
        names: Names of the columns of ``matrix``, or of its class indices; or empty.
    """

    where: str
    texts: list[str] | None = None
    lists: list[list[str]] | None = None
    matrix: np.ndarray[Any, Any] | None = None
    names: tuple[str, ...] = ()


def to_column(values: Any, where: str) -> Any:
    """Return a tensor, a column of a table or a sparse matrix as an array; other values as a list.

    Raises:
        DataError: ``values`` is not a sequence.
    """
    if hasattr(values, "detach"):
        return values.detach().cpu().numpy()
    if hasattr(values, "toarray"):  # a sparse matrix
        return values.toarray()
    if hasattr(values, "to_numpy"):
        return values.to_numpy()
    if isinstance(values, np.ndarray) and values.ndim:
        return values
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise DataError(
            f"the labels of {where} are of type {type(values).__name__}, expected a list or array "
            f"with {EXPECTED}"
        )
    return list(values)


def normalize_labels(values: Any, where: str, names: tuple[str, ...]) -> Labels:
    """Read labels of any type.

    Args:
        values: A list, array, tensor, column or table.
        where: Name of the data for messages.
        names: Names of the classes, if the labels are indices of classes. Default: the names of
            the columns of a table.

    Raises:
        DataError: The labels have another form, or one is missing.
    """
    columns = getattr(values, "columns", None)
    if columns is not None and not names:
        names = tuple(map(str, columns))
    column = to_column(values, where)
    if not len(column):
        raise DataError(f"{where} has no labels, expected {EXPECTED}")
    if isinstance(column, np.ndarray):
        if column.dtype.kind in "biuf":
            return _read_numbers(column, where, names)
        if column.ndim == 2 and column.shape[1] == 1:
            column = column[:, 0]  # as in scikit-learn, a column is one label per image
        column = column.tolist()
    if all(getattr(value, "shape", None) == (1,) for value in column):
        column = [value[0] for value in column]  # one number in an array each
    return _read_elements([_to_python(value) for value in column], where, names)


def _to_python(value: Any) -> Any:
    """Return one image's label as a Python object; several labels as a list."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(map(_to_python, value), key=str)
    if isinstance(value, list | tuple):
        return [_to_python(one) for one in value]
    if isinstance(value, str):
        return str(value)  # not a subclass
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _read_elements(values: list[Any], where: str, names: tuple[str, ...]) -> Labels:
    for number, value in enumerate(values):
        if value is None or value != value or str(value) in ("<NA>", "NaT"):
            raise DataError(
                f"image {number} of {where} has no label ({value}): add one or drop the image"
            )
    kinds = {type(value) for value in values}
    if kinds == {list}:
        return _read_lists(values, where, names)
    if kinds == {str}:
        return Labels(where, texts=[value.strip() for value in values])
    if kinds <= {int, float} or kinds == {bool}:
        return _read_numbers(np.array(values), where, names)
    found = sorted(kind.__name__ for kind in kinds)
    raise DataError(f"the labels of {where} are of type {', '.join(found)}, expected {EXPECTED}")


def _read_lists(values: list[list[Any]], where: str, names: tuple[str, ...]) -> Labels:
    """Read lists: labels of one image each, or the rows of a matrix."""
    flat = [one for row in values for one in row]
    if all(isinstance(one, bool | int | float) for one in flat):
        widths = {len(row) for row in values}
        bits = all(one in (0, 1) for one in flat)
        fractions = any(isinstance(one, float) and not math.isnan(one) for one in flat)
        if len(widths) == 1 and widths != {0} and (bits or fractions):
            return _read_numbers(np.array(values), where, names)
        if fractions:
            raise DataError(
                f"the images of {where} have {min(widths)} to {max(widths)} numbers each, expected "
                "as many for each image"
            )
        return Labels(where, lists=[[_name(one, names, where) for one in row] for row in values])
    if not all(isinstance(one, str) for one in flat):
        found = sorted({type(one).__name__ for one in flat})
        raise DataError(
            f"{where} has lists of labels of type {', '.join(found)}, expected text or numbers"
        )
    lists = [[one.strip() for one in row] for row in values]
    number = next((n for n, row in enumerate(lists) if "" in row), None)
    if number is not None:
        raise DataError(f"image {number} of {where} has an empty label in {values[number]!r}")
    return Labels(where, lists=lists)


def _name(value: Any, names: tuple[str, ...], where: str) -> str:
    if not isinstance(value, int):
        raise DataError(f"{where} has the label {value} in a list, expected a class")
    if names and not 0 <= value < len(names):
        raise DataError(
            f"{where} has the class index {value}, expected 0 to {len(names) - 1} for its "
            f"{len(names)} classes"
        )
    return names[value] if names else str(value)


def _read_numbers(values: np.ndarray[Any, Any], where: str, names: tuple[str, ...]) -> Labels:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
        names = names if len(names) > 1 else ()
    if values.ndim not in (1, 2) or not values.shape[-1]:
        raise DataError(
            f"the labels of {where} have the shape {list(values.shape)}, expected {EXPECTED}"
        )
    if values.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
        if len(bad):
            raise DataError(
                f"{len(bad)} images of {where} have no label, or a label that is not finite, such "
                f"as image {bad[0]} ({values[bad[0]]}): add it or drop the image"
            )
    return Labels(where, matrix=values, names=names)
