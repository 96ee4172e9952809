"""The form of a request: what browsers and curl send is read, and everything else is refused."""

import time

import pytest

from headkit.export.serving.form import Form, read_form
from headkit.export.serving.limits import BadForm

KIND = "multipart/form-data; boundary=edge"


def part(headers: str, content: bytes, edge: str = "edge") -> bytes:
    return f"--{edge}\r\n{headers}\r\n\r\n".encode() + content + b"\r\n"


IMAGE = part('Content-Disposition: form-data; name="image"; filename="a.jpg"', b"\xff\r\n\r\n--\0")
HEAD = part('Content-Disposition: form-data; name="head"', b"flowers@prod")
TOP_K = part('Content-Disposition: form-data; name="top_k"', b"7")
END = b"--edge--\r\n"
EXPECTED = Form(b"\xff\r\n\r\n--\0", ["flowers@prod"])


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (IMAGE + HEAD + END, KIND, EXPECTED),
        (HEAD + IMAGE + TOP_K + END, KIND, Form(EXPECTED.image, EXPECTED.heads, 7)),
        (b"preamble\r\n" + IMAGE + HEAD + b"--edge--", KIND, EXPECTED),
        (IMAGE + HEAD + END, 'Multipart/Form-Data; charset=punycode; Boundary="edge"', EXPECTED),
        (
            part(
                "content-type: image/png\r\nCONTENT-DISPOSITION: form-data; name=image;filename=",
                b"x",
            )
            + part("Content-Disposition: form-data; name=head", "Ü".encode())
            + part('Content-Disposition: form-data; name="other"', b"1")
            + END,
            KIND,
            Form(b"x", ["Ü"]),
        ),
        (
            part(r'Content-Disposition: form-data; name="image"; filename="\"; name=\"head"', b"x")
            + HEAD
            + END,
            KIND,
            Form(b"x", ["flowers@prod"]),
        ),
    ],
)
def test_forms_of_usual_clients_are_read(body: bytes, kind: str, expected: Form) -> None:
    assert read_form(body, kind, 10) == expected


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"", KIND, "boundary does not occur"),
        (IMAGE + HEAD, KIND, "cut off"),
        ((IMAGE + HEAD)[:60], KIND, "cut off"),
        (HEAD + END, KIND, "0 files with the name 'image'"),
        (IMAGE + IMAGE + HEAD + END, KIND, "2 files with the name 'image'"),
        (IMAGE + END, KIND, "no field 'head'"),
        (IMAGE + HEAD * 11 + END, KIND, "names 11 heads; at most 10"),
        (IMAGE + HEAD * 1000 + END, KIND, "too many fields; at most 30"),
        (IMAGE.replace(b"; filename", b"; x") + HEAD + END, KIND, "'image' is text"),
        (IMAGE + HEAD.replace(b"flowers", b"\xff") + END, KIND, "not UTF-8"),
        (IMAGE + HEAD.replace(b"flowers", b"x" * 300) + END, KIND, "too long"),
        (IMAGE + HEAD + TOP_K.replace(b"7", b"0") + END, KIND, "'top_k' is not"),
        (IMAGE + HEAD + TOP_K.replace(b"7", "٣".encode()) + END, KIND, "'top_k' is not"),
        (IMAGE + HEAD + TOP_K.replace(b"7", b"9" * 150) + END, KIND, "'top_k' is not"),
        (IMAGE.replace(b"form-data", b"inline") + HEAD + END, KIND, "has no name"),
        (part("x: " + "y" * 10_000, b"") + END, KIND, "cut off or damaged"),
        (IMAGE + HEAD + END, "multipart/form-data", "with a boundary"),
        (IMAGE + HEAD + END, "multipart/form-data; boundary=" + "x" * 300, "with a boundary"),
        (b"image=x&head=flowers", "application/x-www-form-urlencoded", "with a boundary"),
        (b"{}", "application/json", "with a boundary"),
        (b"{}", "", "with a boundary"),
    ],
)
def test_other_forms_are_refused(body: bytes, kind: str, message: str) -> None:
    with pytest.raises(BadForm, match=message):
        read_form(body, kind, 10)


@pytest.mark.parametrize("content", [b"\r", b"\r\n", b"\r\n--edg", b"\r\n--", b"--edge", b'";\\'])
def test_no_form_takes_longer_than_its_size_warrants(content: bytes) -> None:
    large = content * (20_000_000 // len(content))
    head = HEAD[: HEAD.index(b"flowers")]
    bodies = [
        IMAGE[: IMAGE.index(b"\xff")] + large + b"\r\n" + HEAD + END,
        IMAGE + head + large,
        large,
    ]
    start = time.monotonic()
    for body in bodies:
        try:
            read_form(body, KIND, 10)
        except BadForm:
            continue
    assert time.monotonic() - start < 5
