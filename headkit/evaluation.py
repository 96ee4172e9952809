"""The result of ``evaluate``: its measurements, and the reports that hold them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headkit.adapters.display import format_line, format_table
from headkit.adapters.errors import OutputError
from headkit.adapters.files import check_writable, write_atomically
from headkit.adapters.heads.tasks import TaskName


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The measurements of a head on a data set.

    Attributes:
        model: What was measured: the path of a file, or the architecture.
        data: The data set.
        task: What the outputs mean.
        num_images: Number of images that were measured.
        metrics: Metrics by name: those of ``Head.metrics``, and averages, ``brier``, ``rmse``, ….
        outputs: One entry per output, with its ``label`` and its metrics under scikit-learn's
            names: ``precision``, ``recall``, ``f1``, ``support``, ``average_precision``; ``mae``,
            ``rmse``, ``r2``. A value that is undefined is None.
        confused: The pairs of classes that are confused, the most images first: ``true``,
            ``predicted``, ``count``, and ``images``, the number of images of the class ``true``.
        notes: What a user must know, in sentences.
    """

    model: str
    data: str
    task: TaskName
    num_images: int
    metrics: Mapping[str, Any]
    outputs: tuple[Mapping[str, Any], ...]
    confused: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return format_line("Evaluation", self._facts())

    def _repr_html_(self) -> str:
        return format_table("Evaluation", self._facts())

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"model": self.model, "images": self.num_images}
        return {**facts, **{k: v for k, v in self.metrics.items() if isinstance(v, float)}}

    def to_json(self) -> dict[str, Any]:
        """Return all measurements as JSON values."""
        return {
            "model": self.model,
            "data": self.data,
            "task": self.task,
            "num_images": self.num_images,
            "metrics": dict(self.metrics),
            "outputs": [dict(row) for row in self.outputs],
            "confused": [dict(row) for row in self.confused],
            "notes": list(self.notes),
        }

    def to_csv(self) -> str:
        """Return a table with one line per output: its label and its metrics."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.outputs[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.outputs)  # None is written as an empty cell
        return text.getvalue()

    def save(self, path: str | Path) -> Path:
        """Write everything to a ``.json`` file, or the table of the outputs to a ``.csv`` file.

        Raises:
            OutputError: The path has another suffix or cannot be written.
        """
        path = check_report_path(path)
        text = (
            self.to_csv()
            if path.suffix.lower() == ".csv"
            else json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        )
        return write_atomically(path, text.encode())


def check_report_path(path: str | Path) -> Path:
    """Check before minutes of work that an evaluation can be saved at ``path``.

    Raises:
        OutputError: See ``Evaluation.save``.
    """
    path = Path(path)
    if path.suffix.lower() not in (".json", ".csv"):
        raise OutputError(
            f"cannot write {path}: its suffix is {path.suffix!r}, expected .json or .csv"
        )
    return check_writable(path)
