"""Render the results of the studies ``speed``, ``peers``, ``tasks`` and ``growth`` as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headkit.benchmarks.bench.display_names import ONNXRUNTIME, describe_unmeasured, format_label
from headkit.benchmarks.bench.process import TIMEOUT_S
from headkit.benchmarks.studies.peers import BATCHES, EXPORTERS, verdict

from .machines import machines
from .wording import join_words, reword

TASK_TITLES = {
    "sessions": "a full ONNX model per task",
    "multi": "one model with all heads",
    "swappable": "one swappable model, head files",
    "state_dicts": "a full `state_dict` per task",
    "heads": "one backbone, head files",
}
VERDICT_TITLES = {
    "agrees": "agrees with torch",
    "other logits": "different logits",
    "fixed batch": "fixed batch size",
    "does not run": "does not run",
    "no file": "no file",
}
"""Column titles by the verdict of the study ``peers``."""

COST_TITLES = {
    "call_ms": "ms per call",
    "load_seconds": "seconds to load",
    "memory_bytes": "bytes of memory",
    "head_file_bytes": "bytes of the head file",
    "solve_seconds": "seconds to fit",
    "list_ms": "ms to list",
    "publish_ms": "ms to publish",
}
"""Titles by the cost of the study ``growth``."""


def speed(result: Mapping[str, Any]) -> str:
    """Return the tables: speedup by reduced precision, milliseconds by runtime, and their costs."""
    rows = [row for section in result.values() for row in section["rows"]]
    batches = sorted({row["infer_batch_size"] for row in rows})
    lines = [
        "![Speedup over ONNX Runtime in float32](benchmarks/speed.png)",
        "",
        "This table shows, for each architecture, the fastest runtime in a precision below "
        "float32, and its accuracy on held-out digits:",
        "",
        *_table(
            (
                *("architecture", "batch", "runtime", "speedup over ONNX Runtime fp32"),
                *("same class", "accuracy", "accuracy of ONNX Runtime fp32"),
            ),
            (
                _speedup_cells(section, row)
                for section in result.values()
                for batch in batches
                if (row := fastest_reduced(section, batch))
            ),
        ),
        "",
    ]
    for batch in batches:
        own = [row for row in rows if row["infer_batch_size"] == batch]
        head = ("architecture", "GMACs", "runtime", "ms", "p95", "images/s")
        lines += [
            f"Batch {batch}:",
            "",
            *_table((*head, "speedup over ONNX Runtime fp32"), map(_speed_cells, own)),
            "",
        ]
    absent = [
        {**row, "reason": reword(row["reason"])}
        for section in result.values()
        for row in section["absent"]
    ]
    lines += [
        "This table shows how predictions on held-out digits change with runtime and precision, "
        "and the time and memory that a new process needs to classify one image:",
        "",
        *_table(
            (
                "architecture",
                "runtime",
                "same class",
                "accuracy",
                "difference in logits",
                "share of peak",
                "first prediction",
                "peak memory",
                "files",
            ),
            (_cost_cells(row) for row in rows if row["infer_batch_size"] == 1),
        ),
        "",
        *(f"- {line}" for line in describe_unmeasured(absent, result)),
        "",
        *_peaks(result),
    ]
    return "\n".join([*lines, *machines(result)])


def fastest_reduced(section: Mapping[str, Any], batch: int) -> Mapping[str, Any] | None:
    """Return the row of the fastest CPU runtime in a precision below float32, or None."""
    reduced = [
        row
        for row in section["rows"]
        if comparable(row) and row["precision"] != "fp32" and row["infer_batch_size"] == batch
    ]
    return min(reduced, key=lambda row: row["ratio_to_onnxruntime"]["value"], default=None)


def comparable(row: Mapping[str, Any]) -> bool:
    """Return True if a row can be compared with ONNX Runtime in float32, which runs on the CPU."""
    return row["device"] == "cpu" and row["ratio_to_onnxruntime"] is not None


def speedup(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return the speedup over ONNX Runtime in float32, and the lower and upper end of its interval.

    A speedup of 2 means half the time.
    """
    ratio = row["ratio_to_onnxruntime"]
    return 1 / ratio["value"], 1 / ratio["high"], 1 / ratio["low"]


def _speedup_cells(section: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, ...]:
    plain = next(one for one in section["rows"] if format_label(one) == ONNXRUNTIME)
    return (
        row["model"],
        str(row["infer_batch_size"]),
        format_label(row),
        _speedup_text(row),
        f"{row['same_class']:.1%}",
        f"{row['accuracy']:.1%}",
        f"{plain['accuracy']:.1%}",
    )


def _speedup_text(row: Mapping[str, Any]) -> str:
    if not comparable(row):
        return ""
    value, low, high = speedup(row)
    return "1" if format_label(row) == ONNXRUNTIME else f"{value:.2f} ({low:.2f} to {high:.2f})"


def _speed_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["model"],
        f"{row['infer_gmacs']:.2f}",
        format_label(row),
        f"{row['infer_step_time']:.2f}",
        f"{row['p95_ms']:.2f}",
        f"{row['infer_samples_per_sec']:.0f}",
        _speedup_text(row),
    )


def _peaks(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the peak speed of the machine by precision and device."""
    peaks: dict[str, list[float]] = {}
    for section in result.values():
        for kind, peak in section["peak_gmacs_per_s"].items():
            if peak is not None:
                peaks.setdefault(kind, []).append(peak)
    ranges = (f"{kind} {min(some):,.0f} to {max(some):,.0f}" for kind, some in peaks.items())
    return [
        "Peak speed of the machine, measured before each architecture, in billions of "
        f"multiply-adds per second: {', '.join(ranges)}.",
        "",
    ]


def _cost_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    share, accuracy = row["share_of_peak"], row["accuracy"]
    return (
        row["model"],
        format_label(row),
        f"{row['same_class']:.1%}",
        "" if accuracy is None else f"{accuracy:.1%}",
        f"{row['logit_difference']:.1e}",
        "" if share is None else f"{share:.0%}",
        f"{row['first_prediction_s']:.2f} s",
        f"{row['peak_bytes'] / 1e6:.0f} MB",
        f"{row['file_bytes'] / 1e6:.1f} MB",
    )


def peers(result: Mapping[str, Any], plot: str = "peers") -> str:
    """Return the plot and the tables: latency of the files, export time and size, and the score."""
    measured = select_latencies(result)
    lines = [f"![headkit's time relative to each exporter's](benchmarks/{plot}.png)", ""]
    for batch in map(str, BATCHES):
        sections = {name: section["batches"][batch] for name, section in measured.items()}
        lines += [
            f"Milliseconds per call at batch {batch}, and headkit's time divided by that of the "
            "fastest other exporter (below 1, headkit is faster than all of them):",
            "",
            *_table(
                ("architecture", *EXPORTERS, "headkit / fastest other"),
                (_latency_cells(name, one) for name, one in sections.items()),
            ),
            "",
            *_outcome(batch, sections),
            "",
        ]
    lines += [
        "Export time and file size:",
        "",
        *_table(
            ("architecture", *EXPORTERS),
            (
                (name, *(_export_cell(section["exporters"][one]) for one in EXPORTERS))
                for name, section in measured.items()
            ),
        ),
        "",
    ]
    lines += machines(measured)
    if "exports" in result:
        lines += ["", *_exports(result["exports"]), "", *machines({"exports": result["exports"]})]
    return "\n".join(lines)


def select_latencies(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections with the latency of the files, by architecture."""
    return {name: section for name, section in result.items() if name != "exports"}


def _latency_cells(name: str, section: Mapping[str, Any]) -> tuple[str, ...]:
    timings, ratios = section["latency_ms"], section["ratios"]
    best = max(ratios, key=lambda one: ratios[one]["value"])  # the fastest of the others
    ratio = ratios[best]
    return (
        name,
        *(f"{timings[one]['median_ms']:.2f}" if one in timings else "-" for one in EXPORTERS),
        f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}), {best}",
    )


def _outcome(batch: str, sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence that names the architectures with a significant difference."""
    faster = [
        f"`{name}`"
        for name, one in sections.items()
        if all(ratio["high"] < 1 for ratio in one["ratios"].values())
    ]
    slower = [
        f"`{name}` ({peer}: {ratio['value']:.3f})"
        for name, one in sections.items()
        for peer, ratio in one["ratios"].items()
        if ratio["low"] > 1
    ]
    sentences = [
        f"At batch {batch} headkit's file is faster than every other file for {join_words(faster)}."
        if faster
        else f"At batch {batch} there is no architecture for which headkit's file is faster than "
        "every other file.",
        f"headkit's file is slower than at least one other file for {join_words(slower)}."
        if slower
        else "No other file is faster than headkit's for any architecture.",
        "A difference counts only if the interval of the ratio excludes 1.",
    ]
    return [" ".join(sentences)]


def _exports(score: Mapping[str, Any]) -> list[str]:
    rows, missed = [], []
    for exporter, outcome in score["exporters"].items():
        verdicts = outcome["verdicts"]
        rows.append(
            (
                exporter,
                *(str(len(verdicts.get(kind, ()))) for kind in VERDICT_TITLES),
                f"{outcome['bytes'] / 1e6:,.1f} MB",
            )
        )
        missed += [
            f"- {exporter}, {title}: {', '.join(f'`{name}`' for name in sorted(verdicts[kind]))}"
            for kind, title in VERDICT_TITLES.items()
            if kind in verdicts and kind != "agrees"
        ]
    return [
        f"Each exporter exports the smallest architecture of each of {score['architectures']} "
        "families. It traces the model with two images. ONNX Runtime then runs the file with one, "
        f"three and eight images. The time limit for an export is {TIMEOUT_S // 60} minutes. The "
        f'column "size of files" is the total over the {score["common"]} architectures that every '
        "exporter can export:",
        "",
        *_table(("exporter", *VERDICT_TITLES.values(), "size of files"), rows),
        "",
        *missed,
    ]


def _export_cell(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return VERDICT_TITLES[verdict(row)]
    return f"{row['export_seconds']:.1f} s, {row['bytes'] / 1e6:.1f} MB"


def tasks(result: Mapping[str, Any]) -> str:
    """Return the tables: full models against heads, for 1, 10 and 100 tasks."""
    rows = []
    for section in ("serving", "checkpoints"):
        for count, tasks_result in result[section]["tasks"].items():
            for name, row in tasks_result["measured"].items():
                ratio = tasks_result["ratios"].get(name)
                rows.append(
                    (
                        count,
                        TASK_TITLES[name],
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
    head = (
        "tasks",
        "method",
        "size of files",
        "time until all tasks have a result",
        "resident memory",
    )
    plot = "![Files, time and memory against tasks](benchmarks/tasks.png)"
    return "\n".join([*_table(head, rows), "", plot, "", *machines(result)])


def _less(ratio: float) -> str:
    """Return how many times less it is; empty if the difference is below 5 %."""
    return f" ({ratio:.{1 if ratio < 10 else 0}f} x less)" if ratio >= 1.05 else ""


def growth(result: Mapping[str, Any]) -> str:
    """Return a table of slopes: over the last factor of ten, cost grows as size to that power."""
    rows = []
    for section in result.values():
        first, last = section["rows"][0], section["rows"][-1]
        for cost, slope in section["slopes"].items():
            rows.append(
                (
                    section["by"],
                    f"{first[section['by']]:,} to {last[section['by']]:,}",
                    COST_TITLES[cost],
                    f"{first[cost]:,}",
                    f"{last[cost]:,}",
                    "" if slope is None else f"{slope:z.2f}",
                )
            )
    head = ("what grows", "range", "cost", "at the start", "at the end", "slope")
    plot = "![Cost against size](benchmarks/growth.png)"
    return "\n".join([*_table(head, rows), "", plot, "", *machines(result)])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"| {' | '.join(['---'] * len(head))} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
