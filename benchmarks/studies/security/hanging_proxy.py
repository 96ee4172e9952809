"""A TCP proxy that can stop to forward, without closing anything, as a store that hangs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class HangingProxy:
    """A proxy in front of a port of this machine.

    Attributes:
        port: Port on which it listens.
    """

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._forwards, self._ends = threading.Event(), threading.Event()
        self._forwards.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._sockets: list[socket.socket] = [self._server]
        threading.Thread(target=self._accept, daemon=True).start()

    def hang(self) -> None:
        """Accept connections and forward nothing until ``recover``."""
        self._forwards.clear()

    def recover(self) -> None:
        """Forward again, also what came in the meantime."""
        self._forwards.set()

    def close(self) -> None:
        """Close the port and all connections."""
        self._ends.set()
        self._forwards.set()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._ends.is_set():
                client, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
                self._sockets += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                self._forwards.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextmanager
def hanging_proxy(upstream: int) -> Iterator[HangingProxy]:
    """Run a proxy in front of a port."""
    proxy = HangingProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
