"""What the commands share: options, and how results and progress are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
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
