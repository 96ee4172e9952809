"""How objects show themselves: one line in a terminal, a table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

SHOWN_NAMES = 3
"""Names of a list that are shown before the rest is cut."""
MAX_NAME = 24
"""Characters of one name that are shown."""


def printable(text: str) -> str:
    """Return a text on one line: what a terminal would not print becomes an escape sequence."""
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape", "surrogatepass").decode()
        for mark in text
    )


def first_names(names: Sequence[str]) -> str:
    """Return the first names of a list, each cut to a fixed length."""
    shown = [
        printable(name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…")
        for name in names[:SHOWN_NAMES]
    ]
    return ", ".join([*shown, *(["…"] if len(names) > SHOWN_NAMES else [])])


def counted_names(count: int, names: Sequence[str] | None) -> str:
    """Return a number of classes, with the first label names where there are some."""
    return f"{count} ({first_names(names)})" if names else str(count)


def one_line(kind: str, facts: Mapping[str, object]) -> str:
    """Return ``Kind(name=value, …)``."""
    shown = (f"{name}={printable(str(value))}" for name, value in facts.items())
    return f"{kind}({', '.join(shown)})"


def html_table(kind: str, facts: Mapping[str, object]) -> str:
    """Return the same as an HTML table of two columns; every text in it is escaped."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(printable(str(value)))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table><caption>{escape(kind)}</caption><tbody>{rows}</tbody></table>"
