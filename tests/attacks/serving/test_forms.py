"""Forms that take the server's processor or memory, although they are small.

At 64f666f, the form was parsed on the thread that serves all connections: the client chose the
character set, and decoding a field of a megabyte as punycode stopped the server for minutes; a form
of many short fields was a list of millions. Now the body is read whole and bounded, and the form
has few fields of limited length, all of them UTF-8.
"""

import threading
import time

import pytest

from .server import SECONDS, Server, form, photo

NAME = 'Content-Disposition: form-data; name="%s"'
IMAGE = 'Content-Disposition: form-data; name="image"; filename="x"'


def punycode() -> tuple[bytes, str]:
    body, edge = form([(IMAGE, photo()), (NAME % "head", b"a" * 300_000 + b"-" + b"b" * 300_000)])
    return body, f"multipart/form-data; boundary={edge}; charset=punycode"


def short_fields() -> tuple[bytes, str]:
    return b"a&" * 5_000_000, "application/x-www-form-urlencoded"


def carriage_returns() -> tuple[bytes, str]:
    body, edge = form([(IMAGE, b"\r" * 15_000_000), (NAME % "head", b"cat")])
    return body, f"multipart/form-data; boundary={edge}"


def thousands_of_heads() -> tuple[bytes, str]:
    body, edge = form([(IMAGE, photo()), *[(NAME % "head", b"cat")] * 200_000])
    return body, f"multipart/form-data; boundary={edge}"


@pytest.mark.parametrize("attack", [punycode, short_fields, carriage_returns, thousands_of_heads])
def test_no_form_keeps_others_waiting(
    server: Server, attack: object, background: list[threading.Thread]
) -> None:
    assert callable(attack)
    body, kind = attack()
    statuses: list[int] = []

    def send() -> None:
        statuses.append(server.ask("POST", "/predict", body, kind)[0])

    background.append(threading.Thread(target=send))
    background[0].start()
    time.sleep(1)
    start = time.monotonic()
    assert server.ask("GET", "/healthz")[0] == 200
    assert time.monotonic() - start < 10
    background[0].join(SECONDS)
    assert statuses[0] in (400, 422)
    assert server.megabytes < 1000
