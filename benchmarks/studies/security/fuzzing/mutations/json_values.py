"""Change JSON values, and write JSON that no encoder writes: duplicate keys, NaN, huge numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from .byte_edits import edit_bytes

STRANGE_TEXTS = (
    *("", " ", "\0", "\n", "\x1b[2J\x1b]0;title\x07", "\u202e\u2066reversed", "\ud800", "\ufeff"),
    *("e\u0301" * 40, "a" * 300, "a" * 5000, "../../../etc/passwd", "/dev/zero", "C:\\nul", "~/x"),
    *("hub:x", "file:../x", "local-dir:/etc", "http://127.0.0.1:9/x", "%s%n", "{0}", "${x}", "..."),
    *('"', "'", "`", "<script>", "---\nlicense: x", "None", "nan", "1e999", "0x10", "-1", "9" * 30),
)
"""Texts that some reader may take for something else."""


@dataclass(frozen=True)
class Raw:
    """A piece of JSON that is written as it stands."""

    text: str


@dataclass
class Pairs:
    """An object whose keys may occur twice."""

    pairs: list[tuple[str, Any]]


def strange_value(random: Random) -> Any:
    """Return a value that hardly any schema expects."""
    kind = random.randrange(6)
    if kind == 0:
        return random.choice(STRANGE_TEXTS)
    if kind == 1:
        return random.choice(_NUMBERS)
    if kind == 2:
        return Raw(random.choice(_RAW))
    if kind == 3:
        depth = random.choice((3, 10, 70, 900, 3000, 100_000))
        return Raw(random.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth)))
    if kind == 4:
        return random.choice((None, True, False, [], {}, [None], {"": None}, [[]], [{}]))
    item = random.choice((0, 1.5, "a", None, [0], {"a": 1}))
    # Copies: a change of one must not be a change of all.
    return [copy.copy(item) for _ in range(random.choice((1, 2, 3, 5, 100, 20_000)))]


def edit_json(text: str, random: Random, names: Sequence[str] = ()) -> str:
    """Return a JSON text with one to four of its values, keys or lists changed.

    Args:
        text: A JSON text.
        random: Generator that decides about everything.
        names: Names of keys that the reader may know, for new keys.
    """
    value = json.loads(text)
    if random.random() < 0.04:
        value = strange_value(random)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        value = _edit_one(value, random, names)
    written = encode(value, ascii_only=random.random() < 0.5)
    if random.random() < 0.04:
        written = edit_bytes(written.encode("utf-8", "surrogatepass"), random).decode(
            "utf-8", "surrogateescape"
        )
    return written


def encode(value: Any, *, ascii_only: bool = False) -> str:
    """Return the JSON text of a value that may hold ``Raw`` and ``Pairs``."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Pairs | dict):
        pairs = value.pairs if isinstance(value, Pairs) else list(value.items())
        inside = (
            f"{json.dumps(key, ensure_ascii=ascii_only)}:{encode(one, ascii_only=ascii_only)}"
            for key, one in pairs
        )
        return "{" + ",".join(inside) + "}"
    if isinstance(value, list):
        return "[" + ",".join(encode(one, ascii_only=ascii_only) for one in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


def _edit_one(value: Any, random: Random, names: Sequence[str]) -> Any:
    """Return the value with one place changed; the value itself if the place is its root."""
    places = list(_places(value))
    container, key = random.choice(places)
    if container is None:
        return _change(value, random)
    if isinstance(container, Pairs):
        container.pairs.append((random.choice(container.pairs)[0], strange_value(random)))
    elif isinstance(container, dict):
        _edit_object(container, key, random, names, places)
    else:
        _edit_list(container, key, random)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container with each of its keys, or (None, None) for the root."""
    yield None, None
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Pairs):
            yield one, None
        elif isinstance(one, dict):
            yield from ((one, key) for key in one)
            waiting += one.values()
        elif isinstance(one, list):
            yield from ((one, at) for at in range(min(len(one), 50)))
            waiting += one[:50]


def _edit_object(
    value: dict[str, Any],
    key: str,
    random: Random,
    names: Sequence[str],
    places: Sequence[tuple[Any, Any]],
) -> None:
    action = random.randrange(8)
    if action == 0:
        del value[key]
    elif action == 1:
        other = random.choice(
            [*names, *STRANGE_TEXTS, *(k for _, k in places if isinstance(k, str))]
        )
        value[other] = value.pop(key)
    elif action == 2:
        others = [k for _, k in places if isinstance(k, str)]
        new = random.choice([*names, *others, *STRANGE_TEXTS])
        value[new] = random.choice((value[key], strange_value(random)))
    elif action == 3:
        value[key] = Pairs([(key, value[key]), (key, strange_value(random))])
    elif action == 4:
        container, other = random.choice(places)
        if container is not None and other is not None and not isinstance(container, Pairs):
            value[key] = json.loads(json.dumps(_plain(container[other])))
    else:
        value[key] = _change(value[key], random)


def _edit_list(value: list[Any], at: int, random: Random) -> None:
    action = random.randrange(6)
    if action == 0:
        del value[at]
    elif action == 1:
        value.insert(at, strange_value(random))
    elif action == 2:
        times = random.choice((2, 3, 50)) if len(value) < 1000 else 1
        value[:] = [copy.deepcopy(one) for _ in range(times) for one in value]
    elif action == 3:
        random.shuffle(value)
    else:
        value[at] = _change(value[at], random)


def _change(value: Any, random: Random) -> Any:
    """Return a value near the given one, or one of another type."""
    if random.random() < 0.35:
        return strange_value(random)
    if isinstance(value, bool) or value is None:
        return random.choice((0, 1, not value, None, "true"))
    if isinstance(value, int | float):
        return random.choice(_NEARBY)(value)
    if isinstance(value, str):
        return _change_text(value, random)
    if isinstance(value, list):
        return random.choice((value[:-1], value + value, [value], list(reversed(value))))
    return strange_value(random)


def _change_text(value: str, random: Random) -> str:
    at = random.randrange(len(value) + 1)
    added = random.choice(STRANGE_TEXTS)
    return random.choice(
        (
            value[:at] + added + value[at:],
            value[:at],
            value.upper(),
            value * (random.choice((2, 100)) if len(value) < 10_000 else 1),
            value[::-1],
            value.replace("-", "_").replace(".", "/"),
        )
    )


def _plain(value: Any) -> Any:
    """Return a value that Python's own encoder writes."""
    if isinstance(value, Raw):
        return value.text[:100]
    if isinstance(value, Pairs):
        return {key: _plain(one) for key, one in value.pairs}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


_NUMBERS = (
    *(0, -1, 1, 2, 3, 255, 256, 65_536, 20_000_000, 400_000_000, 2**31 - 1, 2**31, 2**53, 2**62),
    *(2**63 - 1, 2**63, 2**64, -(2**63), 10**30, -(10**30), 0.5, -0.5, 1e-9, 1e-300, 5e-324, 1e300),
)
_RAW = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-0", "-0.0", "1E400", "0.1e-400"),
    *("9" * 400, "9" * 5000, "1" + "0" * 308 + ".5", "nul", "", "'a'", '"\\ud800"', '"\\u0000"'),
)
_NEARBY: tuple[Callable[[Any], Any], ...] = (
    lambda value: value + 1,
    lambda value: value - 1,
    lambda value: -value,
    lambda value: value * 2,
    lambda value: value * 1000,
    lambda value: value / 3,
    lambda value: value + 0.5,
    str,
    lambda value: [value],
)
