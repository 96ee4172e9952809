"""Draw the scores of backbones over their latencies, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headkit.adapters.files import atomic_path
from headkit.adapters.heads.tasks import get_task
from headkit.benchmarks.bench.plots import check_plots

_INK, _ACCENT, _PALE = "#1f2933", "#2b6cb0", "#9aa5b1"


def draw(result: Mapping[str, Any], path: Path) -> Path:
    """Draw the result of ``compare`` as a PNG file and return its path."""
    check_plots()
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    rows = [row for row in result["rows"] if "error" not in row]
    figure = Figure(figsize=(8, 5), layout="constrained", dpi=150)
    ax = figure.add_subplot()
    front = sorted((row for row in rows if row["pareto"]), key=_latency)
    ax.plot(
        [_latency(row) for row in front],
        [row["score"] for row in front],
        color=_ACCENT,
        linewidth=1.2,
        drawstyle="steps-post",
        zorder=1,
        label="no other is faster and better",
    )
    for row in rows:
        colour = _ACCENT if row["pareto"] else _PALE
        ax.scatter(_latency(row), row["score"], color=colour, s=36, zorder=2)
        ax.annotate(
            row["name"],
            (_latency(row), row["score"]),
            textcoords="offset points",
            xytext=(6, 5),
            fontsize=8,
            color=_INK if row["pareto"] else "#52606d",
        )
    ax.set_xscale("log")
    for axis_formatter in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.margins(x=0.18, y=0.12)
    ax.set_xlabel(f"median latency at batch {result['batch']}, ms (ONNX Runtime, CPU, log scale)")
    ax.set_ylabel(get_task(result["task"]).score_title)
    ax.grid(color="#e4e7eb", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(frameon=False, loc="lower right", fontsize=8)
    with atomic_path(path) as beside:
        figure.savefig(beside, format="png")
    return path


def _latency(row: Mapping[str, Any]) -> float:
    return float(row["latency_ms"]["median_ms"])
