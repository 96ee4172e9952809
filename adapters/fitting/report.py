"""Draw how a head does on validation images: confusion matrix and reliability diagram, as PNG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from headkit.adapters.errors import DependencyMissing, OutputError
from headkit.adapters.files import atomic_path, write_atomically
from headkit.adapters.heads.head import Head

from .metrics import BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUMBERED, _NAMED = 20, 60
_INK, _ACCENT = "#1f2933", "#2b6cb0"


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
    """Write ``report.json`` and the plots that fit the task.

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
    scaled = logits.double() / head.temperature
    found: dict[str, Any] = {"task": head.task, "label_names": names, "metrics": head.metrics}
    written = []
    if head.task == "regression":
        values, truth = scaled.numpy(), y.double().numpy()
        found["predicted"], found["target"] = values.round(6).tolist(), truth.round(6).tolist()
        written.append(
            _draw(folder / "predicted.png", lambda ax: _scatter(ax, values, truth, names))
        )
    else:
        if head.task == "multiclass":
            probabilities = scaled.softmax(1)
            confidence, predicted = (t.numpy() for t in probabilities.max(1))
            correct = predicted == y.numpy()
            matrix = np.zeros((len(names), len(names)), np.int64)
            np.add.at(matrix, (y.numpy(), predicted), 1)
            found["confusion"] = matrix.tolist()
            side = float(np.clip(2.5 + 0.3 * len(names), 5, 14))
            written.append(
                _draw(folder / "confusion.png", lambda ax: _confusion(ax, matrix, names), side)
            )
        else:
            confidence, correct = scaled.sigmoid().flatten().numpy(), y.flatten().numpy() > 0.5
        bins = reliability(confidence, correct)
        found["reliability"] = bins
        ece = head.metrics["ece"]
        written.append(_draw(folder / "reliability.png", lambda ax: _reliability(ax, bins, ece)))
    text = json.dumps(found, indent=2, ensure_ascii=False).encode()
    return [write_atomically(folder / "report.json", text), *written]


def reliability(
    confidence: np.ndarray[Any, Any], correct: np.ndarray[Any, Any]
) -> list[dict[str, float]]:
    """Sort predictions into the bins of confidence of ``calibrate.metrics``.

    Args:
        confidence: ``[N]``, probabilities.
        correct: ``[N]``, whether what was given that probability is so.

    Returns:
        For each bin that is not empty its limits ``from`` and ``to``, the ``count``, and the means
        ``confidence`` and ``accuracy``.
    """
    which = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
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


def _draw(path: Path, draw: Any, side: float = 5.0) -> Path:
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
