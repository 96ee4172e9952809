"""The command ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import HeadBackbone, HeadWeights, Json, Remap, progress_bar, show


def bench(
    targets: Annotated[
        list[str],
        typer.Argument(help="Architectures (which get random weights), head files, or ONNX files."),
    ],
    runtimes: Annotated[
        str | None,
        typer.Option(
            help="Runtimes, separated by commas: torch, torch.compile, onnxruntime, tensorrt, "
            "openvino. Default: all."
        ),
    ] = None,
    precisions: Annotated[
        str | None,
        typer.Option(help="Precisions, separated by commas: fp32, fp16, bf16, int8. Default: all."),
    ] = None,
    devices: Annotated[
        str | None, typer.Option(help="Devices, separated by commas: cpu, cuda. Default: both.")
    ] = None,
    batches: Annotated[
        str, typer.Option(help="Batch sizes (images per call), separated by commas.")
    ] = "1,16",
    threads: Annotated[
        int | None, typer.Option(help="Number of CPU threads. Default: one per core.")
    ] = None,
    backbone: HeadBackbone = None,
    weights: HeadWeights = None,
    remap: Remap = False,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images used to calibrate int8 and compare the runtimes' predictions. "
            "Default: random images."
        ),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option(
            help="Number of times to reload and measure each model. With fewer than 8, the "
            "confidence intervals of the time ratios are too narrow."
        ),
    ] = 8,
    rounds: Annotated[
        int, typer.Option(help="Number of rounds per repeat. Each round measures every runtime.")
    ] = 3,
    cold_starts: Annotated[
        int,
        typer.Option(
            help="Number of times to start each runtime in a new process and time its first "
            "prediction. 0 skips this measurement."
        ),
    ] = 3,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json, bench.csv and the plots.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure models on each runtime: latency, throughput, memory and file size."""
    sizes = [_parse_batch(size) for size in batches.split(",")]
    from headkit.benchmarks.bench.bench import bench as measure

    with progress_bar("models") as progress:
        result = measure(
            targets,
            runtimes=_split(runtimes),
            precisions=_split(precisions),
            devices=_split(devices),
            batches=sizes,
            threads=threads,
            backbone=backbone,
            weights=weights,
            remap=remap,
            images=images,
            out=out,
            repeats=repeats,
            rounds=rounds,
            cold_starts=cold_starts,
            progress=progress,
        )
    show(result, as_json, "")
    if not as_json:
        print_bench(result)


def print_bench(result: dict[str, Any]) -> None:
    """Print a table of the measurements, and a line for each reason why a runtime did not run."""
    from rich.console import Console
    from rich.table import Table

    from headkit.benchmarks.bench.display_names import describe_unmeasured

    columns: tuple[str, ...]
    columns = ("model", "batch", "runtime", "ms", "p95", "spread", "time ratio", "images/s")
    columns += ("of peak", "same class", "first prediction", "peak memory", "files")
    table = Table(box=None, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number in (0, 2) else "right", no_wrap=True)
    for row in result["rows"]:
        table.add_row(*_cells(row))
    # Wider than the terminal, lines wrap or scroll; Rich would cut cells off.
    Console(width=400).print(table)
    models = {row["model"] for row in (*result["rows"], *result["absent"])}
    for line in describe_unmeasured(result["absent"], models):
        print(line)
    compared = result["images"]
    print(
        "time ratio: time relative to the first row with the same model and batch size, with its "
        "confidence interval\n"
        f"same class: share of {compared['number']} {'random' if compared['random'] else 'given'} "
        "images that get the same class as in the first row"
    )


def _cells(row: dict[str, Any]) -> list[str]:
    from headkit.benchmarks.bench.display_names import format_label

    ratio = row["ratio"]
    share, first, peak = row["share_of_peak"], row["first_prediction_s"], row["peak_bytes"]
    return [
        row["model"],
        str(row["infer_batch_size"]),
        format_label(row),
        f"{row['infer_step_time']:.2f}",
        f"{row['p95_ms']:.2f}",
        f"{row['spread']:.0%}",
        f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
        f"{row['infer_samples_per_sec']:.1f}",
        "" if share is None else f"{share:.0%}",
        f"{row['same_class']:.1%}",
        "" if first is None else f"{first:.2f} s",
        "" if peak is None else f"{peak / 1e6:.0f} MB",
        "" if first is None else f"{row['file_bytes'] / 1e6:.1f} MB",
    ]


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _parse_batch(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(
            f"batches contains {text!r}, expected numbers separated by commas, such as 1,16"
        ) from error
