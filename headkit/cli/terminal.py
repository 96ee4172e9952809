"""Options that several commands share, and the display of results and progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from headkit.adapters.display import escape_lines

Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Weights file for the backbone, or a folder with one. Default: timm's pretrained "
        "weights from the Hugging Face Hub."
    ),
]
HeadWeights = Annotated[
    Path | None,
    typer.Option(
        help="Weights file for the backbone of a head, or a folder with one. Default: timm's "
        "pretrained weights, if the head names them."
    ),
]
HeadBackbone = Annotated[
    str | None,
    typer.Option(
        help="Backbone of a head that was trained on a model of your own: local-dir:FOLDER or "
        "hf-hub:USER/REPO. Default: the architecture that the head names."
    ),
]
Remap = Annotated[
    bool,
    typer.Option("--remap", help="Match the tensors of the weights file by position, not by name."),
]


def show(result: object, as_json: bool, text: str) -> None:
    """Print a result as JSON, or ``text``, which says the same to people."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    elif text:
        print(escape_lines(text))


def format_lines(values: dict[str, Any]) -> list[str]:
    """Return one line per value. Nested keys are joined by dots; long lists are cut."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{key}.{line}" for line in format_lines(value)]
        elif isinstance(value, list | tuple):
            shown = ", ".join(map(str, value[:12]))
            lines.append(f"{key}: {shown}{f', … ({len(value)})' if len(value) > 12 else ''}")
        elif value not in ("", None):
            lines.append(f"{key}: {value}")
    return lines


@contextmanager
def progress_bar(
    things: str = "images",
) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show progress on stderr: a bar on a terminal, elsewhere a line for each tenth."""
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
            said = f"{what}: {done}{f' of {total}' if total else ''} {things}"
            print(escape_lines(said), file=sys.stderr)

    yield line


def parse_count(text: str) -> int:
    """Return the integer for a text such as ``100M`` or ``1.5B``."""
    powers = {"K": 3, "M": 6, "B": 9, "G": 9}
    power = powers.get(text[-1:].upper(), 0)
    try:
        return int(float(text[:-1] if power else text) * 10**power)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a number, expected one such as 100M or 1.5B") from error


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as text. The first column is aligned left, all others right; None is blank."""
    shown = [["" if cell is None else str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = []
    for first, *others in shown:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
