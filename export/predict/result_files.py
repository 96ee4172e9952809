"""Write results as CSV, JSON Lines or a JSON array, one at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from headkit.adapters.errors import OutputError
from headkit.adapters.files import atomic_path, check_writable

from .scores import Result

SUFFIXES = (".csv", ".jsonl")


def check_results_path(path: str | Path) -> Path:
    """Raise an error now, not after minutes of work, if results cannot be written to ``path``.

    Raises:
        OutputError: ``path`` has another suffix than those in ``SUFFIXES``; or see
            ``check_writable``.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(
            f"cannot write {path}: its suffix is {path.suffix!r}, expected '.csv' for a table or "
            "'.jsonl' for JSON Lines"
        )
    return check_writable(path)


def write_results(
    results: Iterable[Result], path: str | Path, num_predictions: int, *, named_heads: bool
) -> Iterator[Result]:
    """Write results to a file when they come, and yield each of them.

    A file at ``path`` stays as it was until all results are written.

    Args:
        results: The results.
        path: Path of the file. ``.csv``: one line per result with the columns ``image``, ``head``
            (if ``named_heads``), ``label``, ``score``, ``label_2``, ``score_2``, …, ``error``.
            ``.jsonl``: one JSON object per line, see ``result_row``.
        num_predictions: Largest number of predictions of a result.
        named_heads: Write the name of the head.

    Raises:
        OutputError: See ``check_results_path``.
    """
    path = check_results_path(path)
    with _replacing(path) as file:
        if path.suffix.lower() == ".csv":
            table = csv.writer(file, lineterminator="\n")
            table.writerow(_columns(num_predictions, named_heads=named_heads))
        for result in results:
            if path.suffix.lower() == ".csv":
                table.writerow(_cells(result, num_predictions, named_heads=named_heads))
            else:
                row = result_row(result, named_heads=named_heads)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            yield result


def result_row(result: Result, *, named_heads: bool) -> dict[str, Any]:
    """Return a result as JSON: ``image``, ``head``, ``predictions``, and ``error`` if any."""
    row: dict[str, Any] = {"image": result.image}
    if named_heads and result.error is None:
        row["head"] = result.head
    row["predictions"] = result.predictions
    return row if result.error is None else {**row, "error": result.error}


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    with (
        atomic_path(path) as beside,
        # File names that are not Unicode have characters that UTF-8 cannot hold.
        beside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


def _columns(num_predictions: int, *, named_heads: bool) -> list[str]:
    ends = ["", *(f"_{number}" for number in range(2, num_predictions + 1))]
    pairs = [f"{column}{end}" for end in ends for column in ("label", "score")]
    return ["image", *(["head"] if named_heads else []), *pairs, "error"]


def _cells(result: Result, num_predictions: int, *, named_heads: bool) -> Sequence[object]:
    cells: list[object] = [result.image, *([result.head] if named_heads else [])]
    for prediction in result.predictions:
        cells += [prediction["label"], prediction["score"]]
    cells += [""] * (2 * (num_predictions - len(result.predictions)))
    return [*cells, result.error or ""]
