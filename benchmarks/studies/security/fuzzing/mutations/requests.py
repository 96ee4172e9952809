"""Change HTTP requests: multipart bodies, headers, methods, paths, and how a body is divided."""

from __future__ import annotations

from random import Random

from . import parts
from .byte_edits import edit_bytes
from .json_values import STRANGE_TEXTS

_REFERENCES = (
    *("plain", "deep", "*", "plain@1", "plain@2", "plain@latest", "plain@prod", "none", "plain@"),
    *(
        "@1",
        "plain@1@2",
        "sha256:",
        "sha256:00",
        "sha256:" + "0" * 64,
        "plain@99999999999999999999",
    ),
    *("../x", "plain/../deep", "PLAIN", "plain@01", "plain@-1", "%2e%2e", "plain@\u0661"),
)
_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW", "")
_PATHS = (
    *("/predict", "/heads", "/healthz", "/metrics", "/docs", "/openapi.json", "/", "//predict"),
    *(
        "/predict/",
        "/heads/plain",
        "/heads/*",
        "/heads/..",
        "/heads/",
        "/predict?top_k=3",
        "/x" * 999,
    ),
)
_HEADERS = (
    ("content-length", ("0", "-1", "1", "x", "99999999999999999999", "18446744073709551616", "٣")),
    ("content-type", ("text/plain", "application/json", "multipart/form-data", "", "a" * 5000)),
    ("content-type", ("application/x-www-form-urlencoded", "multipart/form-data; boundary=")),
    ("content-type", ("multipart/form-data; boundary=edge; boundary=other; charset=utf-7",)),
    ("content-type", ('multipart/form-data; boundary="a b"', "multipart/mixed; boundary=edge")),
    ("transfer-encoding", ("chunked", "gzip", "x")),
    ("content-encoding", ("gzip", "deflate", "x")),
    ("expect", ("100-continue",)),
    ("host", ("", "x" * 9999, "a\x00b")),
    ("accept", ("*/*", "text/html", "\xff")),
    ("x-a", ("a" * 60_000, "\xff\xfe")),
)
_NUMBERS = (
    "1",
    "5",
    "0",
    "-1",
    "1000",
    "1001",
    "1e3",
    "",
    "x",
    "9" * 30,
    "9" * 5000,
    "1.0",
    "nan",
    "٣",
)


def edit_request(content: bytes, random: Random) -> bytes:
    """Return a request with one to four changes.

    A request is the parts ``method``, ``target``, ``headers`` (a line each) and ``fields``: parts
    of the form, each of which has headers, an empty line and content. ``body`` replaces the fields.
    """
    request = parts.split(content)
    fields = parts.split(request["fields"])
    for _ in range(random.choice((1, 1, 2, 3, 4))):
        action = random.randrange(12)
        if action == 0:
            request["method"] = random.choice(_METHODS).encode()
        elif action == 1:
            target = random.choice((*_PATHS, *(f"/heads/{name}" for name in _REFERENCES)))
            request["target"] = target.encode()
        elif action == 2:
            name, values = random.choice(_HEADERS)
            line = f"{name}: {random.choice(values)}".encode("utf-8", "replace")
            request["headers"] += b"\n" + line
        elif action == 3:
            request["chunk"] = str(random.choice((1, 7, 100, 65_536))).encode()
        elif action == 4 and random.random() < 0.3:
            request["body"] = _body_of_its_own(random)
        else:
            _edit_fields(fields, random)
    request["fields"] = parts.join(fields)
    if random.random() < 0.1:
        request["body"] = edit_bytes(encode_fields(fields), random)
    return parts.join(request)


def encode_fields(fields: dict[str, bytes], edge: bytes = b"edge") -> bytes:
    """Return the multipart body of the fields."""
    whole = b"".join(b"--%s\r\n%s\r\n" % (edge, one) for one in fields.values())
    return b"%s--%s--\r\n" % (whole, edge)


def encode_field(name: str, content: bytes, filename: str | None = None) -> bytes:
    """Return one field of a multipart body: headers, an empty line, content."""
    shown = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    header = f"Content-Disposition: {shown}\r\n\r\n"
    return header.encode("utf-8", "surrogatepass") + content


def _edit_fields(fields: dict[str, bytes], random: Random) -> None:
    key = random.choice([*fields, "0"])
    new = str(len(fields) + random.randrange(10**9))
    action = random.randrange(9)
    if action == 0:
        fields.pop(key, None)
    elif action == 1:
        fields[new] = fields.get(key, b"")
    elif action == 2:
        fields[key] = edit_bytes(fields.get(key, b""), random)
    elif action == 3:
        for number in range(random.choice((3, 1001, 2000))):
            fields[f"{new}-{number}"] = encode_field("head", random.choice(_REFERENCES).encode())
    elif action == 4:
        fields[new] = encode_field("top_k", random.choice(_NUMBERS).encode())
    elif action == 5:
        name = random.choice((*STRANGE_TEXTS, "image", "head", "top_k"))
        filename = random.choice((None, *STRANGE_TEXTS))
        fields[new] = encode_field(name, random.choice((b"", b"x" * 9999, b"plain")), filename)
    elif action == 6:
        header, _, rest = fields.get(key, b"").partition(b"\r\n\r\n")
        line = random.choice(
            (
                b"Content-Type: image/png; charset=utf-7",
                b"Content-Transfer-Encoding: base64",
                b"Content-Disposition: form-data; name*=utf-8''head",
                b"X: " + b"y" * 20_000,
                b"\xff\xfe: \0",
                b"Content-Type: text/plain; charset=nothing",
                b": ",
            )
        )
        fields[key] = header + b"\r\n" + line + b"\r\n\r\n" + rest
    else:
        text = random.choice((*_REFERENCES, *_REFERENCES, *STRANGE_TEXTS))
        fields[new] = encode_field("head", text.encode("utf-8", "surrogatepass"))


def _body_of_its_own(random: Random) -> bytes:
    return random.choice(
        (
            b"",
            b"--edge",
            b"--edge--",
            b"--edge\r\n\r\n\r\n--edge--",
            b"--edge\r\nContent-Disposition: form-data\r\n\r\nx\r\n--edge--",
            b'--edge\r\nContent-Disposition: form-data; name="head\r\n\r\nx\r\n--edge--',
            b"\r\n" * 5000 + b"--edge--",
            b"--edge\r\n" * 3000,
            b"head=plain&image=x",
            b'{"head": "plain"}',
            random.randbytes(3000),
        )
    )
