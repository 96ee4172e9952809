"""Change tables of comma-separated values: cells, quotes, delimiters, encodings, line ends."""

from __future__ import annotations

import csv
import io
from random import Random

from .byte_edits import edit_bytes
from .json_values import STRANGE_TEXTS

_PATHS = (
    *("a.png", "b.png", "./a.png", "../a.png", "/etc/passwd", "/dev/zero", "/dev/stdin", "pipe"),
    *("", ".", "folder", "a.png\0b", "x" * 300, "x" * 5000, "a.png ", "A.PNG", "file:///a.png"),
    *("data:image/png;base64,AAAA", "folder\\c.png", "~/a.png", "\udcff.png", "a.png\nb.png"),
)
_LABELS = (
    *("0", "1", "2", "cat", "dog", "cat|dog", "cat,dog", "cat;dog", "|", "||", "1.5", "nan", "inf"),
    *(
        "-inf",
        "1e999",
        "1e308|1e308",
        "True",
        "٣",
        "1_000",
        "0x10",
        "½",
        "-0",
        "1|2|3",
        " ",
        "cat ",
    ),
)
_HEADERS = (
    *("path", "label", "labels", "split", "is_valid", "file", "image", "target", "class", "Path"),
    *("", " ", "path ", "\ufeffpath", "a|b", "x,y"),
)
_ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-32", "utf-7", "cp1252")
_SPLITS = (
    "train",
    "val",
    "test",
    "valid",
    "TRAIN",
    "",
    "none",
    "holdout",
    "0",
    "1",
    "True",
    "False",
)


def edit_table(content: bytes, random: Random) -> bytes:
    """Return a table with one to four changes of its cells, and maybe of how it is written."""
    if random.random() < 0.1:
        return edit_bytes(content, random)
    rows = [list(row) for row in csv.reader(io.StringIO(content.decode()))]
    for _ in range(random.choice((1, 1, 2, 3, 4))):
        _edit_cells(rows, random)
    usual = random.random() < 0.6
    buffer = io.StringIO(newline="")
    writer = csv.writer(
        buffer,
        delimiter="," if usual else random.choice(",;\t| :\0"),
        quotechar='"' if usual else random.choice("\"'"),
        quoting=csv.QUOTE_MINIMAL if usual else random.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL)),
        lineterminator="\n"
        if usual
        else random.choice(("\r\n", "\r", "\n\n", "\n\r", "\v", "\u2028")),
    )
    try:
        writer.writerows(rows)
    except csv.Error:  # a NUL or a lone quote cannot be written
        buffer = io.StringIO("\n".join(",".join(row) for row in rows))
    text = buffer.getvalue()
    action = random.randrange(14)
    if action == 0:
        text = random.choice(("sep=;\n", "sep=\n", "\n\n", "#", '"', "\ufeff\ufeff")) + text
    elif action == 1:
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice(('"', '""', "\0", "\r", ",", "\x1a")) + text[at:]
    elif action == 2:
        text += random.choice(("\0" * 50, '"', ",,,,,\n", "a.png", "x" * 200_000))
    encoding = "utf-8" if random.random() < 0.8 else random.choice(_ENCODINGS)
    errors = "surrogateescape" if encoding == "utf-8" else "replace"
    try:
        return text.encode(encoding, errors)
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _edit_cells(rows: list[list[str]], random: Random) -> None:
    if not rows:
        rows.append(["path", "label"])
    at = random.randrange(len(rows))
    action = random.randrange(10)
    if action == 0:
        del rows[at]
    elif action == 1:
        rows.insert(at, list(random.choice(rows)))
    elif action == 2:
        size = sum(len(cell) for row in rows for cell in row)
        times = random.choice((2, 3, 500)) if size < 10_000 else 1
        rows[:] = [list(row) for _ in range(times) for row in rows]
    elif action == 3:
        random.shuffle(rows)
    elif action == 4:
        name = random.choice((*_HEADERS, *STRANGE_TEXTS))
        rows[0].append(name)
        for row in rows[1:]:
            row.append(random.choice((*_LABELS, *_SPLITS)))
    elif action == 5:
        rows[0] = [random.choice(_HEADERS) for _ in rows[0]]
    elif rows[at]:
        column = random.randrange(len(rows[at]))
        known = _PATHS if column == 0 else (*_LABELS, *_SPLITS)
        rows[at][column] = random.choice((*known, *STRANGE_TEXTS))
        if random.random() < 0.02:
            rows[at][column] = "x" * random.choice((131_073, 1_000_000))
