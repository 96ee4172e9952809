"""``headkit bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import Json, Weights, progress_bar, show


def bench(
    targets: Annotated[
        list[str],
        typer.Argument(help="Architectures (with random weights), head files or ONNX files."),
    ],
    runtimes: Annotated[
        str | None,
        typer.Option(help="By comma: torch, torch.compile, onnxruntime, tensorrt, openvino."),
    ] = None,
    precisions: Annotated[
        str | None, typer.Option(help="By comma: fp32, fp16, bf16, int8.")
    ] = None,
    devices: Annotated[str | None, typer.Option(help="By comma: cpu, cuda.")] = None,
    batches: Annotated[str, typer.Option(help="Images per call, several by comma.")] = "1,16",
    threads: Annotated[int | None, typer.Option(help="Of the CPU; without it all cores.")] = None,
    weights: Weights = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images to calibrate on, and to compare predictions on."),
    ] = None,
    sittings: Annotated[
        int,
        typer.Option(help="How often all are loaded anew; with fewer, intervals are too narrow."),
    ] = 8,
    rounds: Annotated[int, typer.Option(help="Turns of each in a sitting.")] = 3,
    cold_starts: Annotated[
        int, typer.Option(help="Processes started for each; 0 leaves cold starts out.")
    ] = 3,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json, bench.csv and plots.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure latency, throughput, memory and size on the runtimes that are present."""
    sizes = [_number(size) for size in batches.split(",")]
    from headkit.benchmarks.bench.bench import bench as measure

    with progress_bar("models") as progress:
        result = measure(
            targets,
            runtimes=_listed(runtimes),
            precisions=_listed(precisions),
            devices=_listed(devices),
            batches=sizes,
            threads=threads,
            weights=weights,
            images=images,
            out=out,
            sittings=sittings,
            rounds=rounds,
            cold_starts=cold_starts,
            progress=progress,
        )
    show(result, as_json, "")
    if not as_json:
        print_bench(result)


def print_bench(result: dict[str, Any]) -> None:
    """Print a table of what was measured, and a line for each thing that could not run."""
    from rich.console import Console
    from rich.table import Table

    from headkit.benchmarks.bench.display_names import unmeasured

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
    for line in unmeasured(result["absent"], models):
        print(line)
    compared = result["images"]
    print(
        f"time ratio: to the first line of the model and batch size, with the interval it lies in; "
        f"same class: on {compared['number']} {'random' if compared['random'] else 'given'} images"
    )


def _cells(row: dict[str, Any]) -> list[str]:
    from headkit.benchmarks.bench.display_names import label

    ratio = row["ratio"]
    share, first, peak = row["share_of_peak"], row["first_prediction_s"], row["peak_bytes"]
    return [
        row["model"],
        str(row["infer_batch_size"]),
        label(row),
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


def _listed(given: str | None) -> list[str] | None:
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"batches has {text!r}, expected numbers by comma: 1,16") from error
