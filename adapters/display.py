"""Format objects for display: one line in a terminal, a table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

MAX_NAMES = 3
"""Maximum number of names of a list that are shown."""
MAX_NAME_LENGTH = 24
"""Maximum number of characters of a name that are shown."""


def escape_unprintable(text: str) -> str:
    """Return a text on one line; escape sequences replace characters that cannot be printed."""
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape", "surrogatepass").decode()
        for mark in text
    )


def escape_lines(text: str) -> str:
    """Return a text in which escape sequences replace all but printable characters and line ends.

    Labels, notes and file names may come from anybody. A terminal would obey the control characters
    in them, and show text with bidirectional marks in another order.
    """
    return "\n".join(map(escape_unprintable, text.split("\n")))


def cut_name(name: str) -> str:
    """Return a name of at most ``MAX_NAME_LENGTH`` characters, on one line."""
    short = name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…"
    return escape_unprintable(short)


def format_names(names: Sequence[str]) -> str:
    """Return the first names of a list; long names are cut."""
    shown = [cut_name(name) for name in names[:MAX_NAMES]]
    return ", ".join([*shown, *(["…"] if len(names) > MAX_NAMES else [])])


def format_count(count: int, names: Sequence[str] | None) -> str:
    """Return a number of classes, followed by the first label names if there are any."""
    return f"{count} ({format_names(names)})" if names else str(count)


def count_of(number: int, one: str, many: str) -> str:
    """Return a number and its noun: ``1 image``, or ``2 images``."""
    return f"{number} {one if number == 1 else many}"


def format_line(kind: str, facts: Mapping[str, object]) -> str:
    """Return the facts on one line: ``Kind(name=value, …)``."""
    shown = (f"{name}={escape_unprintable(str(value))}" for name, value in facts.items())
    return f"{kind}({', '.join(shown)})"


def format_table(kind: str, facts: Mapping[str, object]) -> str:
    """Return the facts as an HTML table of two columns in which all text is escaped."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(escape_unprintable(str(value)))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table><caption>{escape(kind)}</caption><tbody>{rows}</tbody></table>"
