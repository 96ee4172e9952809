"""The commands that show, clear and limit the cache of features."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import Json, format_table, show

if TYPE_CHECKING:
    from headkit.adapters.features.disk_space import CacheUsage, Freed

app = typer.Typer(
    help="Show, clear or limit the cache of features and converted backbones.",
    invoke_without_command=True,
    rich_markup_mode=None,
)

Cache = Annotated[
    Path | None, typer.Option(help="Folder of the cache. Default: the user's cache folder.")
]
_WHAT = {"backbones": "converted backbone", "checkpoints": "tuning that has not ended"}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)


@app.callback()
def cache(
    context: typer.Context,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Show where the cache is, and how much space each backbone takes."""
    if context.invoked_subcommand is not None:
        context.obj = cache
        return
    from headkit.adapters.features.disk_space import describe_cache

    usage = describe_cache(cache or True)
    show(usage.to_json(), as_json, "\n".join(_format(usage)))


@app.command()
def clear(
    context: typer.Context,
    backbone: Annotated[
        str | None,
        typer.Option(help="Architecture whose features are removed. Default: all of them."),
    ] = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Remove features and converted backbones. They are computed again when they are needed."""
    from headkit.adapters.features.disk_space import clear_cache

    freed = clear_cache(cache or context.obj or True, backbone)
    show(asdict(freed), as_json, "\n".join(_format_freed(freed)))


@app.command()
def limit(
    context: typer.Context,
    size: Annotated[
        str,
        typer.Argument(
            help="Maximum size of the cache, such as 10GB or 500MB; or none for no limit."
        ),
    ],
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Limit the cache, now and after each fit. The least recently used entries go first."""
    from headkit.adapters.features.disk_space import limit_cache

    largest = None if size.lower() == "none" else parse_size(size)
    freed = limit_cache(largest, cache or context.obj or True)
    first = "the cache has no limit" if largest is None else f"limit: {format_bytes(largest)}"
    result: dict[str, Any] = {"limit": largest, **asdict(freed)}
    show(result, as_json, "\n".join([first, *_format_freed(freed)]))


def parse_size(text: str) -> int:
    """Return the number of bytes for a text such as ``10GB``, ``1.5 GiB`` or ``500M``."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"size is {text!r}, expected a size such as 10GB or 500MB, or none")
    number, unit, binary = match.groups()
    factor = _UNITS[unit.upper()]
    if binary and unit:
        factor = 1024 ** ("KMGT".index(unit.upper()) + 1)
    return int(float(number) * factor)


def format_bytes(count: int) -> str:
    """Return a number of bytes in the unit that people would choose."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def _format(usage: CacheUsage) -> list[str]:
    limit = "no limit"
    if usage.limit is not None:
        limit = f"limit for features, backbones and checkpoints: {format_bytes(usage.limit)}"
    lines = [f"{usage.folder}: {format_bytes(usage.num_bytes)}, {limit}"]
    if not usage.entries:
        return lines
    rows = [
        (
            entry.backbone,
            _WHAT.get(entry.kind) or f"features, {entry.runtime}",
            "x".join(map(str, entry.input_size)),
            entry.images,
            format_bytes(entry.num_bytes),
            entry.last_used.replace("T", " ").removesuffix("+00:00"),
        )
        for entry in usage.entries
    ]
    header = ("backbone", "what", "input", "images", "size", "last used (UTC)")
    return [*lines, format_table(header, rows)]


def _format_freed(freed: Freed) -> list[str]:
    lines = [f"removed {freed.files} files, {format_bytes(freed.num_bytes)}"]
    return lines + [f"kept {folder}, which is in use" for folder in freed.in_use]
