"""Draw the results of the studies ``speed``, ``peers``, ``tasks`` and ``growth``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from headkit.benchmarks.bench.display_names import ONNXRUNTIME, format_label
from headkit.benchmarks.bench.plots import (
    INK,
    LEGEND,
    build_handles,
    choose_styles,
    save,
    simplify_axes,
)
from headkit.benchmarks.studies.peers import BATCHES, EXPORTERS

from .benchmarks import COST_TITLES, TASK_TITLES, comparable, select_latencies, speedup

_FLAT = 3
"""Smallest ratio that a panel shows above and below its values; noise would fill a smaller one."""

_WIDE = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20)
_NARROW = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4)
"""Ticks of a logarithmic axis for a range above ``_FLAT``, and for one below."""

Point = tuple[str, str, float, float, float]
"""Architecture, candidate, value, and the lower and upper end of its interval."""


def draw(results: Path, folder: Path) -> list[Path]:
    """Draw a plot for each result that exists, and return the paths of the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "peers": _peers,
        "peers_epyc": _peers,
        "speed": _speed,
        "tasks": _tasks,
        "growth": _growth,
    }
    paths = []
    for name, plot in plots.items():
        path = results / f"{name}.json"
        if path.exists():
            paths.append(save(plot(json.loads(path.read_text())), folder / f"{name}.png"))
    return paths


def _peers(result: Mapping[str, Any]) -> Any:
    """Draw the time of headkit's file relative to the other exporters', by batch size."""

    def points(batch: int) -> Iterator[Point]:
        for name, section in select_latencies(result).items():
            for peer, ratio in section["batches"][str(batch)]["ratios"].items():
                yield name, peer, ratio["value"], ratio["low"], ratio["high"]

    peers = [one for one in EXPORTERS if one != "headkit"]
    title = "headkit's time relative to the other's"
    return _dots({f"{title}, batch {batch}": list(points(batch)) for batch in BATCHES}, peers)


def _speed(result: Mapping[str, Any]) -> Any:
    """Draw the speedup over ONNX Runtime in float32, by architecture and batch size."""
    measured = [row for section in result.values() for row in section["rows"]]
    rows = [row for row in measured if comparable(row) and format_label(row) != ONNXRUNTIME]
    others = list(dict.fromkeys(format_label(row) for row in rows))

    def points(batch: int) -> Iterator[Point]:
        for row in rows:
            if row["infer_batch_size"] == batch:
                yield row["model"], format_label(row), *speedup(row)

    title = "speedup over ONNX Runtime in float32"
    batches = sorted({row["infer_batch_size"] for row in rows})
    return _dots({f"{title}, batch {batch}": list(points(batch)) for batch in batches}, others)


def _dots(panels: Mapping[str, list[Point]], candidates: list[str]) -> Any:
    """Draw panels with a common scale: values and intervals by architecture and candidate."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(point[0] for points in panels.values() for point in points))
    height = 1.4 + (0.22 + 0.09 * len(candidates)) * len(names)
    figure = Figure(figsize=(11, height), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    by_name = choose_styles(candidates)
    step = 0.8 / len(candidates)
    for ax, (title, points) in zip(axes, panels.items(), strict=True):
        for name, candidate, value, low, high in points:
            place = names.index(name) + step * (
                candidates.index(candidate) - (len(candidates) - 1) / 2
            )
            whiskers = [[value - low], [high - value]]
            ax.errorbar(
                value, place, xerr=whiskers, **by_name[candidate], ls="", ms=5, elinewidth=0.9
            )
        for border in range(1, len(names)):
            ax.axhline(border - 0.5, color="#cbd2d9", lw=0.5)
        ax.axvline(1, color=INK, lw=0.9, ls="--")
        ax.set_xscale("log")
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_ylim(-0.5, len(names) - 0.5)
        ax.set_xlabel(title)
        simplify_axes(ax, "x")
    low, high = axes[0].get_xlim()
    ticks = [tick for tick in (_WIDE if high > _FLAT * low else _NARROW) if low <= tick <= high]
    axes[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0].set_xticks([], minor=True)
    axes[0].invert_yaxis()
    figure.legend(handles=build_handles(by_name), **LEGEND)
    return figure


def _tasks(result: Mapping[str, Any]) -> Any:
    """Draw a panel per cost with logarithmic axes, and a line per way to serve all tasks."""
    from matplotlib.figure import Figure

    costs = {
        "bytes": ("megabytes of files", 1e6),
        "seconds": ("seconds until all tasks have a result", 1),
        "resident_bytes": ("megabytes of resident memory", 1e6),
    }
    figure = Figure(figsize=(11, 4), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(costs))
    by_name = choose_styles(TASK_TITLES)
    for ax, (cost, (title, unit)) in zip(axes, costs.items(), strict=True):
        for section in result.values():
            for name in next(iter(section["tasks"].values()))["measured"]:
                values = [one["measured"][name][cost] / unit for one in section["tasks"].values()]
                ax.plot(list(map(int, section["tasks"])), values, **by_name[name], ms=5, lw=1.2)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("tasks")
        ax.set_ylabel(title)
        simplify_axes(ax, "both")
    titled = {TASK_TITLES[name].replace("`", ""): style for name, style in by_name.items()}
    figure.legend(handles=build_handles(titled), **LEGEND)
    return figure


def _growth(result: Mapping[str, Any]) -> Any:
    """Draw a panel per cost with logarithmic axes, and its slope."""
    from matplotlib.figure import Figure

    panels = [(section, cost) for section in result.values() for cost in section["slopes"]]
    columns = 3
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(11, 2.9 * lines), layout="constrained", dpi=150)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    (style,) = choose_styles(["cost"]).values()
    for ax, (section, cost) in zip(axes, panels, strict=False):
        by, slope = section["by"], section["slopes"][cost]
        sizes = [row[by] for row in section["rows"]]
        values = [row[cost] for row in section["rows"]]
        ax.plot(sizes, values, **style, ms=4, lw=1.2)
        ax.set_xscale("log")
        if min(values) > 0:
            ax.set_yscale("log")
            if max(values) < _FLAT * min(values):
                ax.set_ylim(min(values) / _FLAT, max(values) * _FLAT)
        ax.set_xlabel(by)
        ax.set_ylabel(COST_TITLES[cost])
        ax.set_title("" if slope is None else f"slope {slope:z.2f}", fontsize=9)
        simplify_axes(ax, "both")
    for ax in axes[len(panels) :]:
        ax.remove()
    return figure
