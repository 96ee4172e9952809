"""Read the form of a request: an image, references to heads, and the number of predictions.

The body is complete and bounded before it is read. A part costs one search for the boundary, so
that no body takes longer than its size warrants.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .limits import BadForm

TYPE = "multipart/form-data"
OTHER_FIELDS = 20
"""Maximum number of fields in addition to the heads."""
_MAX_HEADERS = 8192
_MAX_TOP_K = 1000
_PARAMETER = re.compile(r';\s*([\w*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^;\s"]*))')

SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["image", "head"],
                    "properties": {
                        "image": {
                            "type": "string",
                            "format": "binary",
                            "description": "Image file.",
                        },
                        "head": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "Reference to a head: flowers, flowers@3, flowers@prod "
                            "or sha256:…; * for all heads.",
                        },
                        "top_k": {
                            "type": "integer",
                            "minimum": 1,
                            "maximum": _MAX_TOP_K,
                            "default": 5,
                            "description": "Maximum number of predictions per head.",
                        },
                    },
                },
                "encoding": {"head": {"style": "form", "explode": True}},
            }
        },
    }
}
"""Description of the form for OpenAPI."""


@dataclass(frozen=True)
class Form:
    """What a request asks for.

    Attributes:
        image: Content of an image file.
        heads: References to heads; at least one.
        top_k: Maximum number of predictions per head.
    """

    image: bytes
    heads: list[str]
    top_k: int = 5


def read_form(body: bytes | bytearray, content_type: str, max_heads: int) -> Form:
    """Read the body of a request to ``/predict``.

    Raises:
        BadForm: It is not a complete form with one image and 1 to ``max_heads`` heads.
    """
    images, heads, numbers = list[bytes](), list[str](), list[str]()
    for name, is_file, start, end in _parts(body, content_type, max_heads + OTHER_FIELDS):
        if name == "image":
            if not is_file:
                raise BadForm("the field 'image' is text: send it as a file")
            images.append(bytes(body[start:end]))
        elif name in ("head", "top_k"):
            if is_file or end - start > 200:
                raise BadForm(f"the field {name!r} is a file or too long: send a short text")
            try:
                text = body[start:end].decode()
            except UnicodeDecodeError as error:
                raise BadForm(f"the field {name!r} is not UTF-8") from error
            (heads if name == "head" else numbers).append(text)
    if len(images) != 1:
        raise BadForm(f"the form has {len(images)} files with the name 'image', expected one")
    if not heads:
        raise BadForm("the form has no field 'head': name at least one head, or * for all")
    if len(heads) > max_heads:
        raise BadForm(f"the request names {len(heads)} heads; at most {max_heads} are allowed")
    if not numbers:
        return Form(images[0], heads)
    top_k = int(numbers[-1]) if re.fullmatch(r"[0-9]{1,4}", numbers[-1]) else 0
    if not 1 <= top_k <= _MAX_TOP_K:
        raise BadForm(f"the field 'top_k' is not a whole number from 1 to {_MAX_TOP_K}")
    return Form(images[0], heads, top_k)


def _parts(
    body: bytes | bytearray, content_type: str, max_parts: int
) -> list[tuple[str, bool, int, int]]:
    """Return the name of each part, whether it is a file, and where its content starts and ends."""
    kind, parameters = _parameters(content_type)
    boundary = parameters.get("boundary", "")
    if kind != TYPE or not 1 <= len(boundary) <= 200 or not boundary.isascii():
        raise BadForm(f"the request is {content_type!r:.100}, expected {TYPE} with a boundary")
    edge = b"--" + boundary.encode("ascii")
    place = 0 if body.startswith(edge) else body.find(b"\r\n" + edge) + 2
    if place == 1:
        raise BadForm("the form has no part: its boundary does not occur")
    parts: list[tuple[str, bool, int, int]] = []
    while True:
        start = place + len(edge)
        if body[start : start + 2] == b"--":
            return parts
        if len(parts) >= max_parts:
            raise BadForm(f"the form has too many fields; at most {max_parts} are allowed")
        headers_end = body.find(b"\r\n\r\n", start, start + _MAX_HEADERS)
        end = body.find(b"\r\n" + edge, headers_end + 2)
        if headers_end < 0 or end < 0:
            raise BadForm("the form is cut off or damaged: its last boundary is missing")
        name, is_file = _read_headers(bytes(body[start:headers_end]))
        parts.append((name, is_file, headers_end + 4, end))
        place = end + 2


def _read_headers(headers: bytes) -> tuple[str, bool]:
    """Return the name of a part, and whether it is a file."""
    for line in headers.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            kind, parameters = _parameters(value)
            if kind == "form-data" and "name" in parameters:
                return parameters["name"], bool({"filename", "filename*"} & set(parameters))
    raise BadForm("a part of the form has no name")


def _parameters(value: str) -> tuple[str, dict[str, str]]:
    """Split ``multipart/form-data; boundary=x`` into the first value and the parameters."""
    first = value.partition(";")[0].strip().lower()
    found = _PARAMETER.finditer(value)
    return first, {
        one[1].lower(): one[3] if one[2] is None else re.sub(r"\\(.)", r"\1", one[2])
        for one in found
    }
