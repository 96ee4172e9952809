"""What the commands share: options, and how results and progress are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print machine-readable results.")]
Weights = Annotated[
    Path | None,
    typer.Option(help="Weights file of the backbone; without it timm loads its own from the Hub."),
]
Remap = Annotated[
    bool, typer.Option("--remap", help="Assign the weights by position, not by name.")
]


def show(result: object, as_json: bool, text: str) -> None:
    """Print a result as JSON, or as the text that stands for it."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    elif text:
        print(text)


def lines_of(described: dict[str, Any]) -> list[str]:
    """One line per value; nested objects as dotted names, long lists cut."""
    found = []
    for key, value in described.items():
        if isinstance(value, dict):
            found += [f"{key}.{line}" for line in lines_of(value)]
        elif isinstance(value, list | tuple):
            shown = ", ".join(map(str, value[:12]))
            found.append(f"{key}: {shown}{f', … ({len(value)})' if len(value) > 12 else ''}")
        elif value not in ("", None):
            found.append(f"{key}: {value}")
    return found


@contextmanager
def progress_bar(
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


def number(text: str) -> int:
    """Return the whole number that is written as ``100M`` or ``1.5B``."""
    powers = {"K": 3, "M": 6, "B": 9, "G": 9}
    power = powers.get(text[-1:].upper(), 0)
    try:
        return int(float(text[:-1] if power else text) * 10**power)
    except ValueError as error:
        raise ValueError(f"{text!r} is no number such as 100M or 1.5B") from error


def table_of(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns under their names; all but the first to the right, and nothing for none."""
    shown = [["" if cell is None else str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = []
    for first, *others in shown:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
