"""Hundreds of connections that send the first bytes of a request and then nothing.

At 64f666f, the server waited for the rest for longer than the minute that the script gave it, and
each of them kept a connection. Now the headers of a request have a deadline, and where too many
connections are open, the oldest one whose request has not arrived gives way.
"""

from contextlib import ExitStack, suppress

from .server import Server


def test_half_open_connections_are_closed(server: Server) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(server.connect()) for _ in range(100)]
        for one in sockets:
            one.sendall(b"POST /predict HTTP/1.1\r\nHost: ")
        server.seconds()
        for one in sockets:
            one.settimeout(30)
            assert one.recv(100) == b""  # closed


def test_connections_beyond_the_limit_take_the_place_of_the_oldest(server: Server) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(server.connect()) for _ in range(600)]
        for one in sockets:
            one.sendall(b"GET /healthz HTTP/1.1\r\n")
        server.seconds()
        sockets[0].settimeout(5)  # half of the deadline of the headers
        with suppress(ConnectionResetError):
            assert sockets[0].recv(100) == b""
