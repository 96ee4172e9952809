"""Bounds for values that come from outside: types, ranges, lengths and patterns of JSON values.

A schema is a table from keys to bounds, and ``check_object`` checks an object against it. Each file
format has one schema: of heads (``heads.schema``), of a store (``registry.store.records``), ….
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bound:
    """What a value must be.

    Attributes:
        expected: What messages call it, such as ``a number from 0 to 1``.
        accepts: Function that returns True for a value within the bound.
    """

    expected: str
    accepts: Callable[[Any], bool]


def integer(low: int, high: int) -> Bound:
    """Bound an integer; a truth value is not one."""
    return Bound(
        f"a whole number from {low:,} to {high:,}",
        lambda value: (
            isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        ),
    )


def number(low: float, high: float) -> Bound:
    """Bound an integer or a float, which is finite."""
    return Bound(
        f"a number from {low:g} to {high:g}",
        lambda value: (
            isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        ),
    )


def text(max_length: int, pattern: str = "", what: str = "") -> Bound:
    """Bound the length of a text, which matches ``pattern`` as a whole if there is one."""
    compiled = re.compile(pattern) if pattern else None
    return Bound(
        what or f"text of at most {max_length:,} characters",
        lambda value: (
            isinstance(value, str)
            and len(value) <= max_length
            and (compiled is None or compiled.fullmatch(value) is not None)
        ),
    )


def one_of(*values: str) -> Bound:
    """Accept some texts and nothing else."""
    return Bound(
        f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values
    )


def list_of(item: Bound, low: int, high: int) -> Bound:
    """Bound the length of a list (or a tuple) and each of its items."""
    length = f"{low}" if low == high else f"{low} to {high:,}"
    return Bound(
        f"a list of {length} values, each {item.expected}",
        lambda value: (
            isinstance(value, list | tuple)
            and low <= len(value) <= high
            and all(map(item.accepts, value))
        ),
    )


def object_of(item: Bound, high: int, max_key: int = 100) -> Bound:
    """Bound the number of keys of an object, the length of each, and each value."""
    return Bound(
        f"an object of at most {high:,} keys, each with {item.expected}",
        lambda value: (
            isinstance(value, Mapping)
            and len(value) <= high
            and all(isinstance(key, str) and len(key) <= max_key for key in value)
            and all(map(item.accepts, value.values()))
        ),
    )


def json_value(depth: int) -> Bound:
    """Accept any JSON value whose lists and objects are nested at most ``depth`` deep."""
    return Bound(f"JSON nested at most {depth} deep", lambda value: _is_json(value, depth))


def optional(bound: Bound) -> Bound:
    """Accept null, too."""
    return Bound(f"{bound.expected}, or null", lambda value: value is None or bound.accepts(value))


def decode_json(content: bytes, max_bytes: int, what: str = "it") -> Any:
    """Return the value that JSON from outside stands for.

    Args:
        content: The JSON, in UTF-8.
        max_bytes: Its maximum size.
        what: What messages call it.

    Raises:
        ValueError: It is too large, is nested too deeply, or is not JSON.
    """
    if len(content) > max_bytes:
        raise ValueError(f"{what} has {len(content):,} bytes, expected at most {max_bytes:,}")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from error


def check_object(
    value: object, schema: Mapping[str, Bound], required: Collection[str], where: str
) -> dict[str, Any]:
    """Return the keys of an object that its schema knows. Other keys are left out.

    Args:
        value: The object.
        schema: Bounds by key.
        required: Keys that must be there.
        where: What messages call the object.

    Raises:
        ValueError: The value is not an object, or one of its values is missing or out of bounds.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {describe(value)}, expected an object")
    for key in schema:
        if key in required and key not in value:
            raise ValueError(f"{where}.{key} is missing")
    known = {key: one for key, one in value.items() if key in schema}
    for key, one in known.items():
        if not schema[key].accepts(one):
            raise ValueError(f"{where}.{key} is {describe(one)}, expected {schema[key].expected}")
    return known


def describe(value: object) -> str:
    """Return a short text that shows a value from outside, without control characters."""
    if isinstance(value, list | tuple | Mapping) and len(value) > 8:
        kind = "an object" if isinstance(value, Mapping) else "a list"
        return f"{kind} of {len(value):,} values"
    try:
        shown = ascii(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of too many digits
        return f"a {type(value).__name__}"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _is_json(value: object, depth: int) -> bool:
    if value is None or isinstance(value, str | bool | int | float):
        return True
    if depth < 1:
        return False
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_json(v, depth - 1) for k, v in value.items())
    return isinstance(value, list | tuple) and all(_is_json(v, depth - 1) for v in value)
