"""A proxy in front of an S3 server that answers late, or fails, by turns.

Of every three requests one fails: with the status 500 or 503, or with a reset of the connection
before the request reaches the server or after the server has done what it asks. In the last case
the client sees an error although the write has happened. Another one is answered late.
"""

from __future__ import annotations

import http.client
import multiprocessing
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from ..s3_server import BUCKET, s3_server

DIRECT = "HEADKIT_STUDY_SERVER"
DELAY = 0.15
"""Seconds by which an answer is late."""
FAILURES = ("500", "503", "reset_before", "reset_after")
BY_TURNS = tuple(mode for failure in FAILURES for mode in ("pass", "late", failure))
_OWN_HEADERS = ("connection", "transfer-encoding", "content-length")
HANGS = "hangs"
"""Mode in which the proxy answers nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients are killed."""


class Proxy:
    """A proxy in this process, with threads.

    Args:
        server: URL of the server behind it.
        modes: What to do with one request after another, from the start again after the last one:
            ``pass``, ``late``, ``hangs`` or one of ``FAILURES``.

    Attributes:
        url: URL of the proxy.
        counts: Number of requests that were ``delayed``, ``failed`` and ``passed``.
        methods: If not empty, requests with other methods pass.
    """

    def __init__(self, server: str, modes: Sequence[str] = BY_TURNS) -> None:
        self.counts, self.methods = Counter[str](), set[str]()
        self._lock, self._server = threading.Lock(), urlsplit(server)
        self.set_modes(*modes)
        self._listening = _Server(("127.0.0.1", 0), self._make_handler())
        self.url = f"http://127.0.0.1:{self._listening.server_port}"
        self._thread = threading.Thread(target=self._listening.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._listening.shutdown()
        self._thread.join()
        self._listening.server_close()

    def set_modes(self, *modes: str, methods: Collection[str] = ()) -> None:
        """Change what is done with requests, or only with those of these methods."""
        with self._lock:
            self._modes, self._number, self.methods = modes, 0, set(methods)

    def _choose(self, method: str) -> str:
        """Return what to do with the next request."""
        with self._lock:
            if self.methods and method not in self.methods:
                return "pass"
            mode = self._modes[self._number % len(self._modes)]
            self._number += 1
            self.counts[{"late": "delayed", "pass": "passed"}.get(mode, "failed")] += 1
            return mode

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection(
            self._server.hostname or "", self._server.port, timeout=60
        )
        try:
            headers = {
                name: value
                for name, value in handler.headers.items()
                if name.lower() not in ("connection", "expect")
            }
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self) -> None:
                body = self._read_body()
                mode = proxy._choose(self.command)
                if mode == HANGS:
                    while HANGS in proxy._modes:
                        time.sleep(0.05)
                    self._reset()
                elif mode == "reset_before":
                    self._reset()
                elif mode in ("500", "503"):
                    self._send(int(mode), [("Content-Type", "application/xml")], b"")
                else:
                    answer = proxy._forward(self, body)
                    if mode == "reset_after":
                        self._reset()
                        return
                    time.sleep(DELAY if mode == "late" else 0)
                    self._send(*answer)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815

            def _read_body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                pieces = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                self.headers.replace_header("Transfer-Encoding", "identity")
                self.headers["Content-Length"] = str(sum(map(len, pieces)))
                return b"".join(pieces)

            def _send(self, status: int, headers: Any, body: bytes) -> None:
                with suppress(OSError):  # the client was killed
                    self.send_response_only(status)
                    length = str(len(body))
                    for name, value in headers:
                        if name.lower() == "content-length" and self.command == "HEAD":
                            length = value
                        elif name.lower() not in _OWN_HEADERS:
                            self.send_header(name, value)
                    self.send_header("Content-Length", length)
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body)

            def _reset(self) -> None:
                """Close the connection so that the client sees a reset, not an end."""
                self.close_connection = True
                with suppress(OSError):
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.close()

        return Handler


@contextmanager
def s3_behind_a_proxy() -> Iterator[tuple[dict[str, str], str, Callable[[], dict[str, int]]]]:
    """Run an S3 server and the proxy in a process of their own, so that this one can fork.

    Yields:
        Environment variables with which an S3 client uses the proxy, and ``DIRECT`` with the URL of
        the server behind it; the bucket; and a function that returns the proxy's counts.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    environment = ours.recv()

    def counts() -> dict[str, int]:
        ours.send("counts")
        found: dict[str, int] = ours.recv()
        return found

    try:
        yield environment, BUCKET, counts
    finally:
        with suppress(OSError):
            ours.send("end")
        process.join(10)
        if process.is_alive():
            process.kill()


def _serve(pipe: Any) -> None:
    with s3_server() as environment:
        proxy = Proxy(environment["AWS_ENDPOINT_URL"])
        direct = environment["AWS_ENDPOINT_URL"]
        pipe.send({**environment, DIRECT: direct, "AWS_ENDPOINT_URL": proxy.url})
        with suppress(EOFError):
            while pipe.recv() != "end":
                pipe.send({name: proxy.counts[name] for name in ("delayed", "failed", "passed")})
        proxy.close()
