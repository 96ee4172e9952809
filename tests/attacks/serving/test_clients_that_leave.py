"""Clients that send large images and leave before the answers come.

At 64f666f, the server decoded every image, also for clients that were gone, and others waited for
that. Now the work for a client that leaves is given up.
"""

import time

from headkit.benchmarks.studies.http_client import encode_form

from .server import SECONDS, Server, solid


def test_answers_are_not_computed_for_clients_that_left(server: Server) -> None:
    body, kind = encode_form(solid(4990), ["cat"])
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    for _ in range(40):
        with server.connect() as one:
            one.sendall(request)
            time.sleep(0.05)
    start = time.monotonic()
    # A large image goes after the smaller ones, and before the larger ones.
    assert server.predict(solid(4000), "cat")[0] == 200
    assert time.monotonic() - start < SECONDS / 2
