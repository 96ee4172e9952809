"""Render the results of the study ``fitting`` as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from .machines import machines

_CANDIDATES = ("onnxruntime_fp32", "openvino_fp32", "openvino_bf16")


def table(result: Mapping[str, Any]) -> str:
    """Return the tables: time and memory of fitting, compared with ways to fit without headkit."""
    solver, loop, kill = result["solver"], result["loop"], result["kill"]
    seconds, losses = solver["cpu_seconds"], solver["log_loss"]
    rows = [
        (
            f"choose among {solver['strengths']} regularization strengths and fit; "
            f"{solver['rows']:,} x {solver['features']:,} features, {solver['classes']} classes",
            f"{seconds['headkit']:.1f} s of one core; scikit-learn with `StandardScaler` and the "
            f"same strengths: `LogisticRegressionCV` {seconds['logistic_regression_cv']:.1f} s "
            f"({solver['ratios']['logistic_regression_cv']:.0f} times as long), `GridSearchCV` of "
            f"`LogisticRegression` {seconds['grid_search']:.1f} s "
            f"({solver['ratios']['grid_search']:.0f} times as long)",
        ),
        (
            f"log loss of these heads on {solver['test_rows']:,} other images",
            f"{losses['headkit']:.4f}; `LogisticRegressionCV` "
            f"{losses['logistic_regression_cv']:.4f}, `GridSearchCV` {losses['grid_search']:.4f}",
        ),
        (
            f"from image files to a head, {loop['architecture']}, {loop['images']:,} images, "
            "empty cache",
            f"{loop['fit_seconds']:.1f} s, accuracy {loop['fit_accuracy']:.4f}; {loop['epochs']} "
            f"epochs of AdamW on the frozen backbone take {loop['loop_seconds']:.0f} s "
            f"({loop['ratio']:.0f} times as long), accuracy {loop['loop_accuracy']:.4f}",
        ),
        *_memory(result["memory"]),
        (
            f"a run that was killed {kill['kills']} times during extraction and then finished",
            "the same head as an uninterrupted run, bit for bit"
            if kill["same_head"]
            else "ANOTHER head",
        ),
    ]
    lines = ["| measurement | result |", "| --- | --- |"]
    lines += [f"| {what} | {measured} |" for what, measured in rows]
    return "\n".join([*lines, "", *_extraction(result["extraction"]), "", _closing(result)])


def _memory(memory: Mapping[str, Any]) -> list[tuple[str, str]]:
    few, many = sorted(memory["images"].items(), key=lambda item: int(item[0]))
    peaks = [row["peak_bytes"] / 1e9 for _, row in (few, many)]
    return [
        (
            f"peak memory of all processes, {int(many[0]):,} images with "
            f"{many[1]['num_features']:,} features each",
            f"{peaks[1]:.2f} GB; {peaks[0]:.2f} GB with {int(few[0]):,} images",
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
            f"{row[candidate]['ratio']:.1f} times as fast" if candidate in row else ""
            for candidate in _CANDIDATES
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _closing(result: Mapping[str, Any]) -> str:
    runs = len(result["solver"]["all_cpu_seconds"]["headkit"])
    return "\n".join(
        [
            f"The times are medians of {runs} alternating runs. The loop of "
            f"{result['loop']['epochs']} epochs ran once.",
            *machines(result),
        ]
    )
