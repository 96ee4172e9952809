"""Render what ``speed``, ``peers``, ``tasks`` and ``growth`` measured as Markdown and plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .bench_plot import GRID, MARKERS, PALETTE, label, save
from .peers import BATCHES, EXPORTERS, verdict
from .process import TIMEOUT_S

_FLAT = 3
VERDICTS = ("agrees", "other logits", "fixed batch", "does not run", "no file")


def speed(result: Mapping[str, Any]) -> str:
    """Return a table per batch size: milliseconds by runtime, and what a precision costs."""
    rows = [row for section in result.values() for row in section["rows"]]
    lines = []
    for batch in sorted({row["infer_batch_size"] for row in rows}):
        own = [row for row in rows if row["infer_batch_size"] == batch]
        lines += [
            f"Batch {batch}:",
            "",
            *_table(
                (
                    "architecture",
                    "GMACs",
                    "runtime",
                    "ms",
                    "p95",
                    "images/s",
                    "x ONNX Runtime fp32",
                ),
                (_speed_cells(row, own) for row in own),
            ),
            "",
        ]
    lines += [
        "What a runtime or a precision changes, on digits that the head has not seen, and what a "
        "process of its own takes for one image:",
        "",
        *_table(
            (
                "architecture",
                "runtime",
                "same class",
                "accuracy",
                "logits differ by",
                "of peak",
                "first prediction",
                "peak memory",
                "files",
            ),
            (_cost_cells(row) for row in rows if row["infer_batch_size"] == 1),
        ),
        "",
    ]
    absent = {
        (row["runtime"], row["precision"], row["device"], row["reason"])
        for section in result.values()
        for row in section["absent"]
    }
    lines += [f"Not measured: {a} {b} on {c}: {reason}." for a, b, c, reason in sorted(absent)]
    return "\n".join([*lines, *machines(result)])


def _speed_cells(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    reference = next(r for r in rows if r["model"] == row["model"] and _is_plain(r))
    gain = reference["infer_step_time"] / row["infer_step_time"]
    return (
        row["model"],
        f"{row['infer_gmacs']:.2f}",
        label(row),
        f"{row['infer_step_time']:.2f}",
        f"{row['p95_ms']:.2f}",
        f"{row['infer_samples_per_sec']:.0f}",
        f"{gain:.2f}",
    )


def _cost_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    share, accuracy = row["share_of_peak"], row["accuracy"]
    return (
        row["model"],
        label(row),
        f"{row['same_class']:.1%}",
        "" if accuracy is None else f"{accuracy:.1%}",
        f"{row['logit_difference']:.1e}",
        "" if share is None else f"{share:.0%}",
        f"{row['first_prediction_s']:.2f} s",
        f"{row['peak_bytes'] / 1e6:.0f} MB",
        f"{row['file_bytes'] / 1e6:.1f} MB",
    )


def _is_plain(row: Mapping[str, Any]) -> bool:
    return label(row) == "onnxruntime fp32"


def peers(result: Mapping[str, Any], plot: str = "peers") -> str:
    """Return the plot and the tables: latency of the files, export time and size, and the score."""
    lines = [f"![Time of each exporter's file relative to headkit's](benchmarks/{plot}.png)", ""]
    latency = result["latency"]
    for batch in map(str, BATCHES):
        lines += [
            f"Milliseconds per call at batch {batch}, and headkit's time relative to the fastest "
            "other (below 1: headkit is faster):",
            "",
            *_table(
                ("architecture", *EXPORTERS, "headkit / fastest other"),
                (
                    _latency_cells(name, found["batches"][batch])
                    for name, found in latency["architectures"].items()
                ),
            ),
            "",
        ]
    lines += [
        "Seconds to export, and megabytes of the file:",
        "",
        *_table(
            ("architecture", *EXPORTERS),
            (
                (name, *(_export_cell(found["exporters"][one]) for one in EXPORTERS))
                for name, found in latency["architectures"].items()
            ),
        ),
        "",
    ]
    if "exports" in result:
        lines += [*_exports(result["exports"]), ""]
    return "\n".join([*lines, *machines(result)])


def _latency_cells(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    timings, fastest = found["latency_ms"], found["fastest_peer"]
    ratio = found["ratios"][fastest]
    return (
        name,
        *(f"{timings[one]['median_ms']:.2f}" if one in timings else "-" for one in EXPORTERS),
        f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
    )


def _exports(score: Mapping[str, Any]) -> list[str]:
    rows, missed = [], []
    for exporter, found in score["exporters"].items():
        verdicts, seconds = found["verdicts"], found["export_seconds"]
        rows.append(
            (
                exporter,
                *(str(len(verdicts.get(kind, ()))) for kind in VERDICTS),
                "" if seconds is None else f"{seconds:.1f} s",
                f"{found['bytes'] / 1e6:,.1f} MB",
            )
        )
        missed += [
            f"- {exporter}, {kind}: {', '.join(f'`{name}`' for name in sorted(verdicts[kind]))}"
            for kind in VERDICTS[1:]
            if kind in verdicts
        ]
    return [
        f"The smallest architecture of each of {score['architectures']} families, traced with two "
        "images, run with one, three and eight; an exporter has "
        f"{TIMEOUT_S // 60} minutes for each. Median time and all bytes are of the "
        f"{score['common']} of which every exporter makes a file:",
        "",
        *_table(("exporter", *VERDICTS, "to export", "files"), rows),
        "",
        *missed,
    ]


def _export_cell(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return verdict(row)
    return f"{row['export_seconds']:.1f} s, {row['bytes'] / 1e6:.1f} MB"


def tasks(result: Mapping[str, Any]) -> str:
    """Return the tables: full models against heads, for 1, 10 and 100 tasks."""
    titles = {
        "sessions": "a full ONNX model per task",
        "multi": "one model with all heads",
        "swappable": "one swappable model, head files",
        "state_dicts": "a full `state_dict` per task",
        "heads": "one backbone, head files",
    }
    rows = []
    for section in ("serving", "checkpoints"):
        for count, found in result[section]["tasks"].items():
            for name, row in found["measured"].items():
                ratio = found["ratios"].get(name)
                rows.append(
                    (
                        count,
                        titles[name],
                        *(
                            f"{shown}{_less(ratio[key]) if ratio else ''}"
                            for key, shown in (
                                ("bytes", f"{row['bytes'] / 1e6:,.0f} MB"),
                                ("seconds", f"{row['seconds']:.2f} s"),
                                ("resident_bytes", f"{row['resident_bytes'] / 1e6:,.0f} MB"),
                            )
                        ),
                    )
                )
    head = ("tasks", "how", "files", "until all have answered", "resident memory")
    return "\n".join([*_table(head, rows), "", *machines(result)])


def _less(ratio: float) -> str:
    """Say how many times less; nothing where that is not so."""
    return f" ({ratio:.{1 if ratio < 10 else 0}f} x less)" if ratio >= 1.05 else ""


def growth(result: Mapping[str, Any]) -> str:
    """Return a table of slopes: cost grows as size to that power, over the upper half."""
    rows = []
    for section in result.values():
        first, last = section["rows"][0], section["rows"][-1]
        for cost, slope in section["slopes"].items():
            rows.append(
                (
                    section["by"],
                    f"{first[section['by']]:,} to {last[section['by']]:,}",
                    cost.replace("_", " "),
                    f"{first[cost]:,}",
                    f"{last[cost]:,}",
                    "" if slope is None else f"{slope:z.2f}",
                )
            )
    head = ("grows", "range", "cost", "at the start", "at the end", "slope")
    plot = "![Cost against size](benchmarks/growth.png)"
    return "\n".join([*_table(head, rows), "", plot, "", *machines(result)])


def draw(results: Path, folder: Path) -> list[Path]:
    """Draw the plots of the page from the results that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "peers": _peers_plot,
        "peers_epyc": _peers_plot,
        "growth": _growth_plot,
    }
    made = []
    for name, plot in plots.items():
        path = results / f"{name}.json"
        if path.exists():
            made.append(save(plot(json.loads(path.read_text())), folder / f"{name}.png"))
    return made


def _peers_plot(result: Mapping[str, Any]) -> Any:
    """Time of each exporter's file relative to headkit's, by architecture and batch size."""
    from matplotlib.figure import Figure

    found = result["latency"]["architectures"]
    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(BATCHES), sharey=True, squeeze=False)[0]
    others = [one for one in EXPORTERS if one != "headkit"]
    for ax, batch in zip(axes, map(str, BATCHES), strict=True):
        for number, one in enumerate(others):
            places, values, errors = [], [], []
            for place, row in enumerate(found.values()):
                ratio = row["batches"][batch]["ratios"].get(one)
                if ratio is not None:
                    places.append(place + 0.15 * (number - 1.5))
                    values.append(1 / ratio["value"])
                    errors.append(
                        (
                            1 / ratio["value"] - 1 / ratio["high"],
                            1 / ratio["low"] - 1 / ratio["value"],
                        )
                    )
            ax.errorbar(
                values,
                places,
                xerr=list(zip(*errors, strict=True)),
                fmt=MARKERS[number],
                color=PALETTE[number],
                ms=5,
                lw=0.9,
                label=one,
            )
        ax.axvline(1, color="#52606d", lw=0.9, ls="--")
        ax.set_yticks(range(len(found)), list(found), fontsize=8)
        ax.set_xlabel(f"time relative to headkit's file, batch {batch}")
        ax.grid(color=GRID, linewidth=0.6, axis="x")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def _growth_plot(result: Mapping[str, Any]) -> Any:
    """A panel per cost, both axes logarithmic, with the slope."""
    from matplotlib.figure import Figure

    panels = [(section, cost) for section in result.values() for cost in section["slopes"]]
    columns = 3
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(11, 2.9 * lines), layout="constrained", dpi=150)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, (section, cost) in zip(axes, panels, strict=False):
        by, slope = section["by"], section["slopes"][cost]
        sizes = [row[by] for row in section["rows"]]
        values = [row[cost] for row in section["rows"]]
        ax.plot(sizes, values, color=PALETTE[0], marker="o", ms=4, lw=1.2)
        ax.set_xscale("log")
        if min(values) > 0:
            ax.set_yscale("log")
            if max(values) < _FLAT * min(values):  # else noise would fill the panel
                ax.set_ylim(min(values) / _FLAT, max(values) * _FLAT)
        ax.set_xlabel(by)
        ax.set_ylabel(cost.replace("_", " "))
        ax.set_title("" if slope is None else f"slope {slope:z.2f}", fontsize=9)
        ax.grid(color=GRID, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(panels) :]:
        ax.remove()
    return figure


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"| {' | '.join(['---'] * len(head))} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def machines(result: Mapping[str, Any]) -> list[str]:
    """Say what all this was measured with; a line for each machine or set of versions."""
    found = {json.dumps(s["machine"]): s["machine"] for s in result.values() if "machine" in s}
    lines = []
    for machine in found.values():
        packages = machine["packages"]
        lines.append(
            f"Measured with torch {packages['torch']}, timm {packages['timm']} and onnxruntime "
            f"{packages['onnxruntime']} on {machine['cores']} cores of {machine['processor']}."
        )
    return lines
