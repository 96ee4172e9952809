"""Draw the picture at the top of README: one backbone, many small head files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headkit.adapters.files import atomic_path

INK, GREY, BLUE, ORANGE = "#1f2933", "#7b8794", "#2b6cb0", "#dd6b20"
TASKS = ("flowers", "birds", "defects")


def draw(result: dict[str, Any], path: Path) -> Path:
    """Draw what ``headkit demo`` measured: bytes of the backbone, the head and the ONNX model.

    Args:
        result: ``benchmarks/results/demo.json``.
        path: Path of the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.9), dpi=150)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, 110)
    ax.set_ylim(0, 39)
    ax.axis("off")
    head = f"{result['head_bytes'] / 1e3:.0f} kB"
    backbone = result["model_bytes"] - result["head_tensor_bytes"]

    _box(ax, 3, 11, 25, 18, BLUE, "timm backbone", f"frozen · shipped once · {_mb(backbone)}")
    for number, task in enumerate(TASKS):
        y = 27.5 - 11.5 * number
        _box(ax, 41, y, 25, 8, ORANGE, f"{task}.safetensors", f"head with labels · {head}")
        _arrow(ax, (28.5, 20), (40.5, y + 4))
        _arrow(ax, (66.5, y + 4), (78.5, 20))
    _box(
        ax, 79, 11, 28, 18, INK, "ONNX model", f"compared with torch · {_mb(result['onnx_bytes'])}"
    )
    ax.text(34.5, 32.5, "fit", ha="center", color=GREY, fontsize=13, style="italic")
    ax.text(72.5, 32.5, "export, graft", ha="center", color=GREY, fontsize=13, style="italic")
    note = "Sizes: tf_efficientnet_lite0 with a head for 10 classes"
    ax.text(54, 1.2, note, ha="center", color=GREY, fontsize=8.5)
    with atomic_path(path) as unfinished:
        figure.savefig(unfinished, format="png", facecolor="white")
    return path


def main(results: Path, docs: Path) -> Path:
    """Draw the picture from the committed measurement."""
    return draw(json.loads((results / "demo.json").read_text()), docs / "headkit.png")


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def _box(
    ax: Any, x: float, y: float, width: float, height: float, color: str, title: str, text: str
) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=1.2"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, lw=0))
    middle = x + width / 2
    ax.text(
        middle,
        y + height / 2 + 1.5,
        title,
        ha="center",
        va="center",
        color="white",
        fontsize=13,
        weight="bold",
    )
    ax.text(
        middle, y + height / 2 - 1.7, text, ha="center", va="center", color="white", fontsize=9.5
    )


def _arrow(ax: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.6})
