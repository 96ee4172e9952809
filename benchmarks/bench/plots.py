"""Draw the results of ``bench``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headkit.adapters.errors import DependencyMissing
from headkit.adapters.files import atomic_path

from .display_names import format_label

PALETTE = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#b83280", "#718096", "#b7791f", "#319795")
GRID, INK = "#e4e7eb", "#1f2933"
MARKERS = "osD^vPX*"

Style = dict[str, Any]


def check_plots() -> None:
    """Raise ``DependencyMissing`` if plots cannot be drawn."""
    DependencyMissing.check("matplotlib", "a plot", "headkit[plot]")


def draw(result: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write ``latency.png`` and ``throughput.png``; return their paths."""
    check_plots()
    rows = result["rows"]
    return (
        save(_latency(rows), folder / "latency.png"),
        save(_throughput(rows), folder / "throughput.png"),
    )


def choose_styles(names: Iterable[str]) -> dict[str, Style]:
    """Return colour and marker for each name, the same in all plots of a result.

    No two of the first 64 look alike.
    """
    styles = {}
    for number, name in enumerate(dict.fromkeys(names)):
        turn, place = divmod(number, len(PALETTE))
        styles[name] = {"color": PALETTE[place], "marker": MARKERS[(place + turn) % len(MARKERS)]}
    return styles


def _latency(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Draw a panel per batch size: median, 5th and 95th percentile, by model and legend."""
    from matplotlib.figure import Figure

    batches = sorted({row["infer_batch_size"] for row in rows})
    height = 1.2 + 0.2 * len(rows) / len(batches) + 0.25 * len({row["model"] for row in rows})
    figure = Figure(figsize=(5.2 * len(batches) + 1.5, height), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
    styles = choose_styles(format_label(row) for row in rows)
    for ax, batch in zip(axes, batches, strict=True):
        place, ticks = 0.0, {}
        for model in dict.fromkeys(row["model"] for row in rows):
            own = [r for r in rows if (r["model"], r["infer_batch_size"]) == (model, batch)]
            for row in own:
                median = row["infer_step_time"]
                whiskers = [[median - row["p05_ms"]], [row["p95_ms"] - median]]
                ax.errorbar(
                    median,
                    place,
                    xerr=whiskers,
                    **styles[format_label(row)],
                    ls="",
                    ms=5,
                    elinewidth=0.9,
                )
                ax.annotate(
                    f"{median:.3g}",
                    (max(median, row["p95_ms"]), place),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                )
                place += 1
            ticks[place - (len(own) + 1) / 2] = _short(model)
            place += 1
        ax.set_yticks(list(ticks), list(ticks.values()), fontsize=8)
        ax.set_xscale("log")
        ax.margins(x=0.12, y=0.02)
        ax.set_xlabel(f"ms per call at batch {batch} (median, 5th to 95th percentile, log scale)")
        simplify_axes(ax, "x")
    axes[0].invert_yaxis()
    figure.legend(handles=build_handles(styles), **LEGEND)
    return figure


def _throughput(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Draw a panel per model: images per second over the batch size."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = min(3, len(models))
    lines = -(-len(models) // columns)
    figure = Figure(figsize=(4.2 * columns, 0.8 + 3 * lines), layout="constrained", dpi=150)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    styles = choose_styles(format_label(row) for row in rows)
    for ax, model in zip(axes, models, strict=False):
        for name, style in styles.items():
            own = sorted(
                (row["infer_batch_size"], row["infer_samples_per_sec"])
                for row in rows
                if row["model"] == model and format_label(row) == name
            )
            if own:
                ax.plot(*zip(*own, strict=True), **style, ms=4, lw=1.2)
        batches = sorted({row["infer_batch_size"] for row in rows})
        ax.set_xscale("log", base=2)
        ax.set_xticks(batches, [str(batch) for batch in batches])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
        ax.set_title(_short(model), fontsize=9)
        ax.set_xlabel("batch size")
        ax.set_ylabel("images per second")
        simplify_axes(ax, "both")
    for ax in axes[len(models) :]:
        ax.remove()
    figure.legend(handles=build_handles(styles), **LEGEND)
    return figure


LEGEND: dict[str, Any] = {
    "loc": "outside upper center",
    "ncols": 4,
    "frameon": False,
    "fontsize": 8,
}


def build_handles(styles: Mapping[str, Style]) -> list[Any]:
    """Return the symbols of a legend, one for each name."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], **style, ls="", ms=6, label=name) for name, style in styles.items()]


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"…{name[-29:]}"


def simplify_axes(ax: Any, axis: str) -> None:
    """Draw grid lines behind the data, and remove the borders at the top and at the right."""
    ax.grid(color=GRID, linewidth=0.6, axis=axis)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG file, whole or not at all."""
    with atomic_path(path) as beside:
        figure.savefig(beside, format="png")
    return path
