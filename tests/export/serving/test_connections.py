"""Connections that send nothing, or too slowly, do not keep others out."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import uvicorn

from headkit.export.serving.connections import limited_protocol
from headkit.export.serving.limits import Limits

LIMITS = Limits(connections=40, connections_per_client=30, header_seconds=0.5, seconds=1)
LARGE = 50_000_000


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/slow":
            await asyncio.sleep(1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/large":
            for _ in range(LARGE // 50_000):
                await send({"type": "http.response.body", "body": bytes(50_000), "more_body": True})
        await send({"type": "http.response.body", "body": b"fine"})

    config = uvicorn.Config(app, port=0, log_level="critical", http=limited_protocol(LIMITS))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(30)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def ask(connection: socket.socket, path: str = "/") -> bytes:
    connection.sendall(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode())
    answer = b""
    while not answer.endswith((b"\r\n0\r\n\r\n", b"}")):  # all of a chunked body, or a refusal
        received = connection.recv(10_000)
        if not received:
            break
        answer += received
    return answer


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(10)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_half_open_connections_are_closed_in_time(port: int) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(port)) for _ in range(10)]
        half = [stack.enter_context(connect(port)) for _ in range(10)]
        for connection in half:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: ")
        with connect(port) as honest:
            assert ask(honest).startswith(b"HTTP/1.1 200")
        start = time.monotonic()
        for connection in half:
            for _ in range(3):  # bytes that trickle in do not move the deadline
                connection.sendall(b"x")
        assert all(map(is_closed, [*idle, *half]))
        assert time.monotonic() - start < 5


def test_connections_of_one_client_are_limited(port: int) -> None:
    with ExitStack() as stack:
        kept = [stack.enter_context(connect(port)) for _ in range(LIMITS.connections_per_client)]
        for connection in kept:
            connection.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.2)
        refused = stack.enter_context(connect(port))
        assert refused.recv(1000).startswith(b"HTTP/1.1 503")
        assert is_closed(refused)
        for connection in kept:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    with connect(port) as again:
        assert ask(again).startswith(b"HTTP/1.1 200")


def test_the_oldest_connection_without_a_request_gives_way(port: int) -> None:
    with ExitStack() as stack:
        slow = stack.enter_context(connect(port))
        slow.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n12345")
        time.sleep(0.1)
        others = [stack.enter_context(connect(port)) for _ in range(LIMITS.connections_per_client)]
        assert is_closed(slow)
        assert ask(others[0]).startswith(b"HTTP/1.1 200")
        for _ in range(3 * LIMITS.connections_per_client):
            newest = stack.enter_context(connect(port))
        assert ask(newest).startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_is_disconnected(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(LIMITS.seconds + 3)
        received = 0
        with suppress(ConnectionResetError):
            while some := connection.recv(2**16):
                received += len(some)
        assert received < LARGE


@pytest.mark.parametrize("size", [1, 10_000])
def test_a_body_of_very_many_small_chunks_is_cut_off(port: int, size: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (size, bytes(size))
        try:
            for _ in range(100):
                connection.sendall(chunk * (1 + 2000 // size))
            connection.sendall(b"0\r\n\r\n")
            answer = connection.recv(1000)
        except OSError:
            answer = b""
        assert answer.startswith(b"HTTP/1.1 200") == (size > 1)


def test_slow_answers_and_further_requests_keep_their_connection(port: int) -> None:
    with connect(port) as connection:
        for _ in range(3):
            assert b"200" in ask(connection)
            time.sleep(0.1)
        assert b"200" in ask(connection, "/slow")  # longer than the headers may take
        assert b"200" in ask(connection)
