"""Clients that send requests and never read the responses, or leave before they come.

At 64f666f, the server waited without end until a client would read, and computed every answer for
clients that were gone. Now a client that does not read for half a minute is disconnected, and the
work for a client that leaves is given up.
"""

import time
from contextlib import ExitStack

from headkit.benchmarks.studies.http_client import encode_form

from .server import SECONDS, Server, photo, solid


def test_answers_are_not_computed_for_clients_that_left(server: Server) -> None:
    body, kind = encode_form(solid(4990), ["cat"])
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    for _ in range(40):
        with server.connect() as one:
            one.sendall(request)
            time.sleep(0.05)
    start = time.monotonic()
    assert (
        server.predict(solid(4000), "cat")[0] == 200
    )  # a large one, which goes after smaller ones
    assert time.monotonic() - start < SECONDS / 2


def test_pipelined_requests_that_nobody_reads_stop_nothing(server: Server) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(20):
            one = stack.enter_context(server.connect())
            one.settimeout(0.2)
            try:
                for _ in range(200):
                    one.sendall(request * 100)
            except OSError:  # the server reads no more
                pass
        server.seconds()
        assert server.megabytes < 1000
    assert server.predict(photo(), "*")[0] == 200
