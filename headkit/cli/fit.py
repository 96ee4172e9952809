"""The commands that train heads: ``fit`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import Json, Remap, Weights, progress_bar, show

if TYPE_CHECKING:
    from headkit.adapters.heads.head import Head

Data = Annotated[
    str,
    typer.Option(
        help="Labeled images: a folder with one subfolder per class, a CSV file with the columns "
        "path and label, or a data set that timm can read, such as hfds/NAME or wds/FOLDER."
    ),
]
Val = Annotated[
    str | None,
    typer.Option(
        help="Validation images, in any form that --data accepts. Default: the validation split of "
        "--data if it has one, otherwise a held-out part of --data (see --holdout)."
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        help="Task: multiclass, multilabel or regression. Default: multilabel if an image in the "
        "CSV file has several labels, otherwise multiclass."
    ),
]
ClassFrom = Annotated[
    str | None,
    typer.Option(
        help="Folder that names the class of an image: top (directly under --data) or parent (the "
        "folder that holds the image). Default: top, unless the tree can be read in both ways."
    ),
]
PathColumn = Annotated[
    str | None,
    typer.Option(help="Column of image paths in a CSV file. Default: path, file, image and so on."),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of labels in a CSV file, or several columns separated by commas, one per "
        "class or output. Default: label, class, target and so on."
    ),
]
LabelSeparator = Annotated[
    str | None,
    typer.Option(
        help="Text between the labels of one image in a CSV file. Default: a vertical bar, or with "
        "--task multilabel also a comma or a semicolon."
    ),
]
Kind = Annotated[
    str | None,
    typer.Option(
        help="Kind of head: own (the architecture's classifier), linear, mlp or cosine. Default: "
        "own or linear, depending on the architecture."
    ),
]
Holdout = Annotated[float, typer.Option(help="Fraction of each class to hold out for validation.")]
L2 = Annotated[
    str | None,
    typer.Option(
        help="Strength of the L2 penalty for a linear head, or several strengths separated by "
        "commas: the one with the lowest validation loss is used. Default: search a wide range."
    ),
]
ClassWeights = Annotated[
    str | None,
    typer.Option(
        help="'balanced' (rare classes count more), or LABEL=WEIGHT pairs separated by commas. "
        "Default: 1 for each class."
    ),
]
Views = Annotated[
    int,
    typer.Option(
        help="Number of crops per training image. The first is the evaluation crop; the others are "
        "random."
    ),
]
Runtime = Annotated[
    str, typer.Option(help="Runtime that extracts features: auto, onnxruntime, openvino or torch.")
]
Precision = Annotated[str, typer.Option(help="Precision of the backbone: fp32 or bf16.")]
Executor = Annotated[
    str, typer.Option(help="Where features are extracted: local (this machine) or ray (a cluster).")
]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder for cached features. Default: the user's cache folder."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Do not cache features.")]
Seed = Annotated[
    int, typer.Option(help="Random seed for the held-out images, the crops and the training.")
]
BatchSize = Annotated[int, typer.Option(help="Number of images per forward pass.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Number of processes that decode images. Default: one per core."),
]
MaxUnreadable = Annotated[
    float, typer.Option(help="Maximum fraction of images that may be unreadable.")
]


def fit(
    backbone: Annotated[str, typer.Option(help="timm architecture, such as resnet50.a1_in1k.")],
    data: Data,
    out: Annotated[
        Path, typer.Option(help="Path of the new head file, with the suffix .safetensors.")
    ],
    val: Val = None,
    task: Task = None,
    class_from: ClassFrom = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    label_separator: LabelSeparator = None,
    kind: Kind = None,
    weights: Weights = None,
    remap: Remap = False,
    holdout: Holdout = 0.2,
    l2: L2 = None,
    class_weights: ClassWeights = None,
    views: Views = 1,
    runtime: Runtime = "auto",
    precision: Precision = "fp32",
    executor: Executor = "local",
    cache: Cache = None,
    no_cache: NoCache = False,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    workers: Workers = None,
    max_unreadable: MaxUnreadable = 0.05,
    report: Annotated[
        Path | None, typer.Option(help="Folder for a confusion matrix and a reliability diagram.")
    ] = None,
    notes: Annotated[str, typer.Option(help="Free text that is stored in the head file.")] = "",
    as_json: Json = False,
) -> None:
    """Train a head on the features of a frozen backbone, and save the head."""
    from headkit.adapters.file_kinds import HEAD, check_output

    check_output(out, HEAD)
    from headkit.fit import fit as fit_head

    with progress_bar() as progress:
        head = fit_head(
            backbone,
            data,
            val=val,
            task=task,  # type: ignore[arg-type]  # checked there
            class_from=class_from,  # type: ignore[arg-type]
            path_column=path_column,
            label_column=label_column,
            label_separator=label_separator,
            kind=kind,  # type: ignore[arg-type]
            weights=weights,
            remap=remap,
            holdout=holdout,
            l2=_parse_strengths(l2),
            class_weights=_parse_weights(class_weights),
            views=views,
            runtime=runtime,
            precision=precision,
            executor=executor,
            cache=choose_cache(cache, no_cache),
            seed=seed,
            batch_size=batch_size,
            workers=workers,
            max_unreadable=max_unreadable,
            report=report,
            notes=notes,
            progress=progress,
        )
    head.save(out)
    show(describe_fit(head, out), as_json, "\n".join(format_fit(head, out)))


def describe_fit(head: Head, path: Path) -> dict[str, Any]:
    """Return the result of a fit as JSON values."""
    from headkit.adapters.heads.summary import find_few_images, find_weak_classes, remarks

    names = head.label_names or tuple(map(str, range(head.num_classes)))
    weak = find_weak_classes(head.metrics.get("recall"), names)
    return {
        "head": str(path),
        "bytes": path.stat().st_size,
        **head.metrics,
        "weak_classes": [{"label": name, "recall": recall} for name, recall in weak],
        "few_images": [
            {"label": name, "images": n} for name, n in find_few_images(head.metrics, names)
        ],
        "notes": [remark.text for remark in remarks(head.metrics, names, head.task)],
    }


def format_fit(head: Head, path: Path) -> list[str]:
    """Return the lines that tell people the result of a fit."""
    from headkit.adapters.heads.summary import format_metrics, format_validation, remarks
    from headkit.adapters.heads.tasks import get_task

    names = head.label_names or tuple(map(str, range(head.num_classes)))
    outputs = "classes" if get_task(head.task).has_classes else "outputs"
    measured = format_metrics(head.metrics) or "nothing was measured"
    first = (
        f"{path}: {head.num_classes} {outputs}, {path.stat().st_size:,} bytes; on "
        f"{head.metrics['num_val']} validation images {measured}"
    )
    validation = format_validation(head.metrics)
    notes = [f"note: {remark.text}" for remark in remarks(head.metrics, names, head.task)]
    return [first, *([validation] if validation else []), *notes]


def compare(
    data: Data,
    backbones: Annotated[
        str,
        typer.Option(
            help="Architectures, globs, or ARCHITECTURE=WEIGHTS_FILE pairs, separated by commas."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for compare.json, the plot, the heads and the models.")
    ],
    batch: Annotated[int, typer.Option(help="Batch size for measuring latency.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Number of ONNX Runtime threads. Default: one per core.")
    ] = None,
    val: Val = None,
    task: Task = None,
    class_from: ClassFrom = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    label_separator: LabelSeparator = None,
    kind: Kind = None,
    holdout: Holdout = 0.2,
    l2: L2 = None,
    class_weights: ClassWeights = None,
    views: Views = 1,
    runtime: Runtime = "auto",
    precision: Precision = "fp32",
    executor: Executor = "local",
    cache: Cache = None,
    no_cache: NoCache = False,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    workers: Workers = None,
    max_unreadable: MaxUnreadable = 0.05,
    as_json: Json = False,
) -> None:
    """Compare backbones by accuracy and latency. For each one, a head is trained on the data."""
    from headkit.benchmarks.compare.compare import compare as compare_backbones

    with progress_bar("backbones") as progress:
        result = compare_backbones(
            data,
            _parse_backbones(backbones),
            out,
            batch=batch,
            threads=threads,
            progress=progress,
            val=val,
            task=task,
            class_from=class_from,
            path_column=path_column,
            label_column=label_column,
            label_separator=label_separator,
            kind=kind,
            holdout=holdout,
            l2=_parse_strengths(l2),
            class_weights=_parse_weights(class_weights),
            views=views,
            runtime=runtime,
            precision=precision,
            executor=executor,
            cache=choose_cache(cache, no_cache),
            seed=seed,
            batch_size=batch_size,
            workers=workers,
            max_unreadable=max_unreadable,
        )
    show(result, as_json, "")
    if not as_json:
        import sys

        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else 120).print(_build_table(result))
        print(f"wrote compare.json, pareto.png, heads/ and onnx/ to {out}/")
    if all("error" in row for row in result["rows"]):
        raise typer.Exit(1)


def _build_table(result: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"* no other backbone is both faster and better; batch {result['batch']}, CPU"
    )
    table.add_column("backbone", no_wrap=True)
    score = result["score"].replace("_", " ")
    for column in (score, "latency, ms", "parameters", "head, bytes", "fit, s"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        if "error" in row:
            table.add_row(row["name"], "failed", row["error"])
            continue
        table.add_row(
            f"{row['name']} {'*' if row['pareto'] else ''}",
            f"{row['score']:.4f}",
            f"{row['latency_ms']['median_ms']:.1f}",
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['head_bytes']:,}",
            f"{row['fit_seconds']:.0f}",
        )
    return table


def _parse_backbones(text: str) -> list[str] | dict[str, str | Path | None]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not any("=" in part for part in parts):
        return parts
    pairs = [part.partition("=") for part in parts]
    return {name: weights or None for name, _, weights in pairs}


def _parse_strengths(text: str | None) -> float | list[float] | None:
    if text is None:
        return None
    try:
        strengths = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"l2 is {text!r}, expected a number, or several separated by commas"
        ) from error
    return strengths[0] if len(strengths) == 1 else strengths


def _parse_weights(text: str | None) -> Any:
    if text is None or text == "balanced":
        return text
    pairs = [part.rpartition("=") for part in text.split(",")]
    try:
        return {label: float(weight) for label, _, weight in pairs}
    except ValueError as error:
        raise ValueError(
            f"class-weights is {text!r}, expected 'balanced', or LABEL=WEIGHT pairs separated by "
            "commas"
        ) from error


def choose_cache(folder: Path | None, no_cache: bool) -> bool | Path:
    """Return the argument ``cache`` of the functions for the two options."""
    return False if no_cache else True if folder is None else folder
