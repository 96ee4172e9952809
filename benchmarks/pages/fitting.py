"""Render the figures of ``python -m headkit.benchmarks.studies.fitting`` as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from .machines import machines

_CONTENDERS = ("onnxruntime_fp32", "openvino_fp32", "openvino_bf16")


def table(result: Mapping[str, Any]) -> str:
    """Return the tables: what fitting takes, against the ways that it is done without headkit."""
    solver, loop, kill = result["solver"], result["loop"], result["kill"]
    rows = [
        (
            f"a path of {solver['strengths']} strengths with selection, {solver['rows']:,} x "
            f"{solver['features']:,} features, {solver['classes']} classes",
            f"{solver['seconds']['path']:.2f} s; one fit of scikit-learn's "
            f"`LogisticRegression(max_iter=1000)` {solver['seconds']['scikit_learn']:.1f} s: "
            f"{solver['ratio']:.0f} times as long",
        ),
        (
            "validation log loss of that head",
            f"{solver['val_log_loss']:.4f}; the best of scikit-learn's grid over the same "
            f"strengths {solver['best_grid_val_log_loss']:.4f}",
        ),
        (
            f"from image files to a head, {loop['architecture']}, {loop['images']:,} images, "
            "nothing cached",
            f"{loop['fit_seconds']:.1f} s, accuracy {loop['fit_accuracy']:.4f}; {loop['epochs']} "
            f"epochs of AdamW on the frozen backbone {loop['loop_seconds']:.0f} s, accuracy "
            f"{loop['loop_accuracy']:.4f}: {loop['ratio']:.0f} times as long",
        ),
        *_memory(result["memory"]),
        (
            f"killed {kill['kills']} times while extracting, then run to the end",
            "the same head, bit for bit" if kill["same_head"] else "ANOTHER head",
        ),
    ]
    lines = ["| what | measured |", "| --- | --- |"]
    lines += [f"| {what} | {measured} |" for what, measured in rows]
    return "\n".join([*lines, "", *_extraction(result["extraction"]), "", _closing(result)])


def _memory(memory: Mapping[str, Any]) -> list[tuple[str, str]]:
    few, many = sorted(memory["images"].items(), key=lambda item: int(item[0]))
    peaks = [found["peak_bytes"] / 1e9 for _, found in (few, many)]
    return [
        (
            f"memory of all processes, {int(many[0]):,} images of {many[1]['num_features']:,} "
            "features",
            f"at most {peaks[1]:.2f} GB; {int(few[0]):,} images {peaks[0]:.2f} GB",
        )
    ]


def _extraction(extraction: Mapping[str, Any]) -> list[str]:
    images = extraction["images"]
    lines = [
        f"| features of {images} JPEG and PNG files, {extraction['workers']} workers | torch loop "
        "| ONNX Runtime | OpenVINO | OpenVINO bf16 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in extraction["backbones"].items():
        cells = [f"{images / statistics.median(row['torch_loop']['seconds']):.0f} images/s"]
        cells += [
            f"{row[contender]['ratio']:.1f} times as fast" if contender in row else ""
            for contender in _CONTENDERS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _closing(result: Mapping[str, Any]) -> str:
    runs = len(result["solver"]["all_seconds"]["path"])
    return "\n".join(
        [
            f"Medians of {runs} alternating runs; the loop of {result['loop']['epochs']} epochs "
            "ran once.",
            *machines(result),
        ]
    )
