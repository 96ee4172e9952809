"""Draw how a head does on validation images: confusion matrix and reliability diagram, as PNG."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor

from headkit.adapters.errors import DependencyMissing, OutputError
from headkit.adapters.files import atomic_path, write_atomically
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.tasks import get_task
from headkit.adapters.heads.tasks.statistics import BINS, assign_bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUMBERED, _NAMED = 20, 60
_INK, _ACCENT = "#1f2933", "#2b6cb0"
SIDE = 5.0
"""Height of a plot, in inches."""
Array = np.ndarray[Any, Any]
Plot: TypeAlias = "tuple[dict[str, Any], Callable[[Axes], None], float]"
"""Numbers for ``report.json``, what draws the plot, and its height in inches."""


@dataclass(frozen=True)
class _Judged:
    """A head with the names of its outputs, its scores on validation images and their targets."""

    head: Head
    names: tuple[str, ...]
    scores: Array
    y: Array


def check_report(folder: str | Path) -> Path:
    """Make the folder and see that plots can be drawn, before minutes of work.

    Raises:
        DependencyMissing: matplotlib is not installed.
        OutputError: the folder cannot be made.
    """
    DependencyMissing.check("matplotlib", "a report", "headkit[plot]")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
    return folder


def write_report(folder: str | Path, head: Head, logits: Tensor, y: Tensor) -> list[Path]:
    """Write ``report.json`` and the plots of the task.

    ``confusion.png`` for multiclass; ``reliability.png`` for multiclass (of the class predicted)
    and multilabel (of each label); ``predicted.png`` for regression.

    Args:
        folder: see ``check_report``.
        head: tells labels, task, temperature and metrics.
        logits: ``[N, num_outputs]``, of validation images.
        y: their targets, see ``ImageDataset``.

    Returns:
        The files.

    Raises:
        DependencyMissing, OutputError: see ``check_report``.
    """
    folder = check_report(folder)
    names = head.label_names or tuple(map(str, range(head.num_classes)))
    task = get_task(head.task)
    scores = task.tensor_scores(logits.double(), head.temperature).numpy()
    judged = _Judged(head, names, scores, y.numpy())
    found: dict[str, Any] = {"task": head.task, "label_names": names, "metrics": head.metrics}
    written = []
    for plot in task.plots:
        numbers, draw, side = _PLOTS[plot](judged)
        found |= numbers
        written.append(_draw(folder / f"{plot}.png", draw, side))
    text = json.dumps(found, indent=2, ensure_ascii=False).encode()
    return [write_atomically(folder / "report.json", text), *written]


def reliability(
    confidence: np.ndarray[Any, Any], correct: np.ndarray[Any, Any]
) -> list[dict[str, float]]:
    """Sort predictions into the bins of the expected calibration error.

    Args:
        confidence: ``[N]``, probabilities.
        correct: ``[N]``, whether what was given that probability is so.

    Returns:
        For each bin that is not empty its limits ``from`` and ``to``, the ``count``, and the means
        ``confidence`` and ``accuracy``.
    """
    which = assign_bins(confidence)
    return [
        {
            "from": round(number / BINS, 6),
            "to": round((number + 1) / BINS, 6),
            "count": int((which == number).sum()),
            "confidence": round(float(confidence[which == number].mean()), 6),
            "accuracy": round(float(correct[which == number].mean()), 6),
        }
        for number in np.unique(which).tolist()
    ]


def _confusion_of(judged: _Judged) -> Plot:
    names = judged.names
    matrix = np.zeros((len(names), len(names)), np.int64)
    np.add.at(matrix, (judged.y, judged.scores.argmax(1)), 1)
    side = float(np.clip(2.5 + 0.3 * len(names), 5, 14))
    return {"confusion": matrix.tolist()}, lambda ax: _confusion(ax, matrix, names), side


def _reliability_of(judged: _Judged) -> Plot:
    task, ece = get_task(judged.head.task), judged.head.metrics["ece"]
    bins = reliability(*task.confidence(judged.scores, judged.y))
    return {"reliability": bins}, lambda ax: _reliability(ax, bins, ece), SIDE


def _predicted_of(judged: _Judged) -> Plot:
    values, truth = judged.scores, judged.y.astype(np.float64)
    numbers = {"predicted": values.round(6).tolist(), "target": truth.round(6).tolist()}
    return numbers, lambda ax: _scatter(ax, values, truth, judged.names), SIDE


_PLOTS = {
    "confusion": _confusion_of,
    "reliability": _reliability_of,
    "predicted": _predicted_of,
}
"""The plots that ``Task.plots`` may name."""


def _draw(path: Path, draw: Callable[[Axes], None], side: float) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side * 1.12, side), layout="constrained", dpi=150)
    draw(figure.add_subplot())
    with atomic_path(path) as beside:
        figure.savefig(beside, format="png")
    return path


def _confusion(ax: Axes, matrix: np.ndarray[Any, Any], names: tuple[str, ...]) -> None:
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _NUMBERED:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            ink = "white" if shares[row, column] > 0.55 else _INK
            ax.text(
                column, row, str(matrix[row, column]), ha="center", va="center", color=ink, size=8
            )
    if len(names) <= _NAMED:
        shown = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
        size = 9 if len(names) <= _NUMBERED else 6
        ax.set_xticks(range(len(names)), shown, rotation=90, fontsize=size)
        ax.set_yticks(range(len(names)), shown, fontsize=size)
    ax.set(xlabel="predicted", ylabel="true", title=f"{int(matrix.sum())} validation images")
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
    bar.set_label("share of the true class")


def _reliability(ax: Axes, bins: list[dict[str, float]], ece: float) -> None:
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
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", ylabel="share that is so")
    ax.set_title("reliability (numbers: predictions per bin)", fontsize=10)
    ax.legend(loc="upper left", frameon=False, fontsize=9)


def _scatter(
    ax: Axes, values: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], names: tuple[str, ...]
) -> None:
    for column, name in enumerate(names):
        ax.scatter(truth[:, column], values[:, column], s=12, alpha=0.5, label=name)
    limits = [min(truth.min(), values.min()), max(truth.max(), values.max())]
    ax.plot(limits, limits, color="#9aa5b1", linestyle="--", linewidth=1)
    ax.set(xlabel="true", ylabel="predicted", title=f"{len(truth)} validation images")
    if len(names) <= _NUMBERED:
        ax.legend(frameon=False, fontsize=9)
