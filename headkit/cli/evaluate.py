"""The command ``evaluate``. An exported model is measured without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .options.fit import (
    BatchSize,
    Cache,
    ClassFrom,
    Executor,
    LabelColumn,
    LabelSeparator,
    MaxUnreadable,
    NoCache,
    PathColumn,
    Precision,
    Runtime,
    Workers,
    choose_cache,
)
from .terminal import (
    HeadBackbone,
    HeadWeights,
    Json,
    Remap,
    format_table,
    progress_bar,
    show,
)

MAX_ROWS = 30
"""Maximum number of classes in the table; of more classes it shows those with the lowest F1."""
MAX_PAIRS = 8
"""Maximum number of confused pairs that are printed."""


def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="Head file, reference to a head in the store, or exported ONNX file."),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Labeled images, in any form that fit accepts. Labels are matched to those of the "
            "head by name."
        ),
    ],
    split: Annotated[
        str | None,
        typer.Option(
            help="Split of the data: test, val or train. Default: the test split, or else the "
            "validation split; all images if the data have no splits."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the head, for a multi model.")] = None,
    backbone: HeadBackbone = None,
    weights: HeadWeights = None,
    remap: Remap = False,
    class_from: ClassFrom = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    label_separator: LabelSeparator = None,
    runtime: Runtime = "auto",
    precision: Precision = "fp32",
    executor: Executor = "local",
    cache: Cache = None,
    no_cache: NoCache = False,
    batch_size: BatchSize = 16,
    workers: Workers = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Number of threads for an ONNX file. Default: one per core."),
    ] = None,
    max_unreadable: MaxUnreadable = 0.05,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File for the report: .json for everything, or .csv for the metrics of each class."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a head or an exported model on labeled images."""
    from headkit.evaluate import evaluate as evaluate_head
    from headkit.evaluation import check_report_path

    if out is not None:
        check_report_path(out)
    with progress_bar() as progress:
        result = evaluate_head(
            model,
            data,
            split=split,
            name=name,
            backbone=backbone,
            weights=weights,
            remap=remap,
            class_from=class_from,  # type: ignore[arg-type]  # checked there
            path_column=path_column,
            label_column=label_column,
            label_separator=label_separator,
            runtime=runtime,
            precision=precision,
            executor=executor,
            cache=choose_cache(cache, no_cache),
            batch_size=batch_size,
            workers=workers,
            threads=threads,
            max_unreadable=max_unreadable,
            progress=progress,
        )
    if out is not None:
        result.save(out)
    described = result.to_json()
    lines = _format(described)
    if out is not None:
        lines.append(f"wrote {out}")
    show(described, as_json, "\n".join(lines))


def _format(result: Mapping[str, Any]) -> list[str]:
    from headkit.adapters.heads.summary import format_metrics
    from headkit.adapters.heads.tasks import get_task

    metrics = result["metrics"]
    if get_task(result["task"]).exclusive:  # each micro average equals the accuracy
        metrics = {name: value for name, value in metrics.items() if not name.startswith("micro_")}
    return [
        f"{result['model']} on {result['data']}: {result['num_images']} images",
        format_metrics(metrics),
        "",
        *_format_outputs(result["outputs"]),
        *_format_confused(result["confused"]),
        *(f"note: {note}" for note in result["notes"]),
    ]


def _format_outputs(outputs: list[dict[str, Any]]) -> list[str]:
    from headkit.adapters.display import cut_name

    columns = [name for name in outputs[0] if name != "label"]
    shown = outputs
    if len(outputs) > MAX_ROWS:
        order = "f1" if "f1" in columns else columns[-1]
        known = [row for row in outputs if row[order] is not None]
        shown = sorted(known, key=lambda row: row[order])[:MAX_ROWS]
    rows = [
        [cut_name(row["label"]), *(_format_cell(row[name]) for name in columns)] for row in shown
    ]
    names = ("images" if name == "support" else name.replace("_", " ") for name in columns)
    lines = format_table(("output" if "mae" in columns else "class", *names), rows).splitlines()
    if len(shown) < len(outputs):
        lines.append(
            f"({len(shown)} of {len(outputs)} classes, the worst first; --out FILE.csv has all)"
        )
    return [*lines, ""]


def _format_cell(value: float | None) -> str | None:
    if value is None:
        return None
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _format_confused(confused: list[dict[str, Any]]) -> list[str]:
    from headkit.adapters.display import cut_name

    pairs = [
        f"{row['count']} of {row['images']} {cut_name(row['true'])} as {cut_name(row['predicted'])}"
        for row in confused[:MAX_PAIRS]
    ]
    return [f"most confused: {'; '.join(pairs)}"] if pairs else []
