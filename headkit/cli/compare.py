"""The command ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headkit.adapters.display import escape_lines

from .options.fit import Data, takes_fit_options
from .terminal import progress_bar, show


@takes_fit_options()
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
    *,
    options: dict[str, Any],
    as_json: bool,
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
            **options,
        )
    show(result, as_json, "")
    if not as_json:
        import sys

        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else 120).print(_build_table(result))
        for line in _format_notes(result["rows"]):
            print(escape_lines(line))
        print(f"wrote compare.json, pareto.png, heads/ and onnx/ to {out}/")
    if all("error" in row for row in result["rows"]):
        raise typer.Exit(1)


def _build_table(result: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(
        title="* no other backbone is both faster and better; ~ as good as the best, within "
        f"chance; batch {result['batch']}, CPU"
    )
    table.add_column("backbone", no_wrap=True)
    score = result["score"]
    sure = any(f"{score}_interval" in row.get("metrics", {}) for row in result["rows"])
    columns = [score.replace("_", " "), *(["95 % interval"] if sure else [])]
    columns += ["weak classes", "latency, ms", "parameters", "head, bytes", "fit, s"]
    for column in columns:
        table.add_column(column, justify="right")
    for row in result["rows"]:
        if "error" in row:
            table.add_row(row["name"], "failed")
            continue
        low, high = row["metrics"].get(f"{score}_interval", (0.0, 0.0))
        table.add_row(
            f"{row['name']} {'*' if row['pareto'] else ''}",
            f"{'~ ' if row['as_good_as_best'] and sure else ''}{row['score']:.4f}",
            *([f"{low:.4f} to {high:.4f}"] if sure else []),
            str(len(row["weak_classes"])),
            f"{row['latency_ms']['median_ms']:.1f}",
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['head_bytes']:,}",
            f"{row['fit_seconds']:.0f}",
        )
    return table


def _format_notes(rows: list[dict[str, Any]]) -> list[str]:
    """Return the notes that hold for all heads, those of single heads, and the errors."""
    fitted = [row for row in rows if "error" not in row]
    common = [
        note
        for note in (fitted[0]["notes"] if fitted else [])
        if all(note in row["notes"] for row in fitted)
    ]
    own = [f"{row['name']}: {n}" for row in fitted for n in row["notes"] if n not in common]
    failed = [f"{row['name']} failed: {row['error']}" for row in rows if "error" in row]
    return [*(f"note: {note}" for note in (*common, *own)), *failed]


def _parse_backbones(text: str) -> list[str] | dict[str, str | Path | None]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not any("=" in part for part in parts):
        return parts
    pairs = [part.partition("=") for part in parts]
    return {name: weights or None for name, _, weights in pairs}
