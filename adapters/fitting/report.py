"""Write a report on a head's validation images: numbers as JSON, and plots as PNG."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor

from headkit.adapters.errors import DependencyMissing
from headkit.adapters.files import atomic_path, make_folder, write_atomically
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.tasks import get_task
from headkit.adapters.heads.tasks.statistics import BINS, assign_bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_CELL_NUMBERS, _MAX_CLASS_NAMES = 20, 60
"""Maximum classes of a confusion matrix with numbers in its cells, and with names of classes."""
_INK, _ACCENT = "#1f2933", "#2b6cb0"
SIDE = 5.0
"""Height of a plot, in inches."""
Array = np.ndarray[Any, Any]
Plot: TypeAlias = "tuple[dict[str, Any], Callable[[Axes], None], float]"
"""Numbers for ``report.json``, a function that draws the plot, and its height in inches."""


@dataclass(frozen=True)
class _Validation:
    """A head, the names of its outputs, and the scores and targets of validation images."""

    head: Head
    names: tuple[str, ...]
    scores: Array
    y: Array


def check_report(folder: str | Path) -> Path:
    """Make the folder, and check before minutes of work that plots can be drawn.

    Raises:
        DependencyMissing: matplotlib is not installed.
        OutputError: The folder cannot be made.
    """
    DependencyMissing.check("matplotlib", "a report", "headkit[plot]")
    return make_folder(folder)


def write_report(folder: str | Path, head: Head, logits: Tensor, y: Tensor) -> list[Path]:
    """Write ``report.json`` and the plots of the task.

    The plots are ``confusion.png`` for multiclass, ``reliability.png`` for multiclass (of the
    predicted class) and multilabel (of each label), and ``predicted.png`` for regression.

    Args:
        folder: See ``check_report``.
        head: The head, which has labels, task, temperature and metrics.
        logits: Logits of validation images ``[N, num_outputs]``.
        y: Targets of validation images, see ``ImageDataset``.

    Returns:
        The paths of the files.

    Raises:
        DependencyMissing, OutputError: See ``check_report``.
    """
    folder = check_report(folder)
    names = head.label_names or tuple(map(str, range(head.num_classes)))
    task = get_task(head.task)
    scores = task.tensor_scores(logits.double(), head.temperature).numpy()
    validation = _Validation(head, names, scores, y.numpy())
    report: dict[str, Any] = {"task": head.task, "label_names": names, "metrics": head.metrics}
    written = []
    for plot in task.plots:
        numbers, draw, side = _PLOTS[plot](validation)
        report |= numbers
        written.append(_save_plot(folder / f"{plot}.png", draw, side))
    text = json.dumps(report, indent=2, ensure_ascii=False).encode()
    return [write_atomically(folder / "report.json", text), *written]


def compute_reliability(
    confidence: np.ndarray[Any, Any], correct: np.ndarray[Any, Any]
) -> list[dict[str, float]]:
    """Compare confidence with accuracy in each bin of the expected calibration error.

    Args:
        confidence: Predicted probabilities ``[N]``.
        correct: Whether each prediction is right ``[N]``.

    Returns:
        One row for each bin that is not empty: its limits ``from`` and ``to``, the ``count`` of
        predictions, and the means ``confidence`` and ``accuracy``.
    """
    bin_numbers = assign_bins(confidence)
    return [
        {
            "from": round(number / BINS, 6),
            "to": round((number + 1) / BINS, 6),
            "count": int((bin_numbers == number).sum()),
            "confidence": round(float(confidence[bin_numbers == number].mean()), 6),
            "accuracy": round(float(correct[bin_numbers == number].mean()), 6),
        }
        for number in np.unique(bin_numbers).tolist()
    ]


def _prepare_confusion(validation: _Validation) -> Plot:
    names = validation.names
    matrix = np.zeros((len(names), len(names)), np.int64)
    np.add.at(matrix, (validation.y, validation.scores.argmax(1)), 1)
    side = float(np.clip(2.5 + 0.3 * len(names), 5, 14))
    return {"confusion": matrix.tolist()}, lambda ax: _draw_confusion(ax, matrix, names), side


def _prepare_reliability(validation: _Validation) -> Plot:
    task, ece = get_task(validation.head.task), validation.head.metrics["ece"]
    bins = compute_reliability(*task.confidence(validation.scores, validation.y))
    return {"reliability": bins}, lambda ax: _draw_reliability(ax, bins, ece), SIDE


def _prepare_predicted(validation: _Validation) -> Plot:
    values, truth = validation.scores, validation.y.astype(np.float64)
    numbers = {"predicted": values.round(6).tolist(), "target": truth.round(6).tolist()}
    return numbers, lambda ax: _draw_predicted(ax, values, truth, validation.names), SIDE


_PLOTS = {
    "confusion": _prepare_confusion,
    "reliability": _prepare_reliability,
    "predicted": _prepare_predicted,
}
"""The plots that ``Task.plots`` may name."""


def _save_plot(path: Path, draw: Callable[[Axes], None], side: float) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side * 1.12, side), layout="constrained", dpi=150)
    draw(figure.add_subplot())
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _draw_confusion(ax: Axes, matrix: np.ndarray[Any, Any], names: tuple[str, ...]) -> None:
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _MAX_CELL_NUMBERS:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            ink = "white" if shares[row, column] > 0.55 else _INK
            ax.text(
                column, row, str(matrix[row, column]), ha="center", va="center", color=ink, size=8
            )
    if len(names) <= _MAX_CLASS_NAMES:
        shown = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
        size = 9 if len(names) <= _MAX_CELL_NUMBERS else 6
        ax.set_xticks(range(len(names)), shown, rotation=90, fontsize=size)
        ax.set_yticks(range(len(names)), shown, fontsize=size)
    ax.set(xlabel="predicted", ylabel="true", title=f"{int(matrix.sum())} validation images")
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
    bar.set_label("share of the true class")


def _draw_reliability(ax: Axes, bins: list[dict[str, float]], ece: float) -> None:
    ax.plot([0, 1], [0, 1], color="#9aa5b1", linestyle="--", linewidth=1, label="calibrated")
    ax.bar(
        [b["from"] for b in bins],
        [b["accuracy"] for b in bins],
        width=1 / BINS,
        align="edge",
        color=_ACCENT,
        alpha=0.25,
        edgecolor=_ACCENT,
    )
    ax.plot(
        [b["confidence"] for b in bins],
        [b["accuracy"] for b in bins],
        "o-",
        color=_ACCENT,
        markersize=4,
        linewidth=1.5,
        label=f"this head, calibration error {ece:.3f}",
    )
    for b in bins:
        ax.text((b["from"] + b["to"]) / 2, 0.01, f"{b['count']}", ha="center", size=6, color=_INK)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", ylabel="observed frequency")
    ax.set_title("reliability (numbers: predictions per bin)", fontsize=10)
    ax.legend(loc="upper left", frameon=False, fontsize=9)


def _draw_predicted(
    ax: Axes, values: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], names: tuple[str, ...]
) -> None:
    for column, name in enumerate(names):
        ax.scatter(truth[:, column], values[:, column], s=12, alpha=0.5, label=name)
    limits = [min(truth.min(), values.min()), max(truth.max(), values.max())]
    ax.plot(limits, limits, color="#9aa5b1", linestyle="--", linewidth=1)
    ax.set(xlabel="true", ylabel="predicted", title=f"{len(truth)} validation images")
    if len(names) <= _MAX_CELL_NUMBERS:
        ax.legend(frameon=False, fontsize=9)
