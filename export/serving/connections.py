"""Limit the connections of a server: their number, and how long their headers may take.

uvicorn waits for the headers of a request without end, so a few hundred connections that send
nothing would keep all others out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from headkit.adapters.compat import http_protocol

from .limits import Limits

_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
)
_BODY = b'{"detail":"too many connections: try again later"}'


def limited_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return the class that uvicorn takes as ``http``.

    A connection is closed if its headers do not arrive in time. One too many, of all clients
    together or of one client, is answered with 503 and closed.
    """
    protocol: Any = http_protocol()
    by_client: Counter[str] = Counter()

    class LimitedProtocol(protocol):  # type: ignore[misc]
        """uvicorn's protocol with deadlines and limits."""

        _deadline: asyncio.TimerHandle | None = None
        _client_name: str | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            name = self.client[0] if self.client else ""
            if (
                len(self.connections) > limits.connections
                or by_client[name] >= limits.connections_per_client
            ):
                transport.write(_REFUSAL % (len(_BODY), _BODY))
                transport.close()
                return
            by_client[name] += 1
            self._client_name = name
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._expect_headers()
            else:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            if self._client_name is not None:
                by_client[self._client_name] -= 1
                if not by_client[self._client_name]:
                    del by_client[self._client_name]
                self._client_name = None
            super().connection_lost(exc)

        def _expect_headers(self) -> None:
            """Start the deadline, unless it runs: bytes that trickle in do not move it."""
            if self._deadline is None and not self.transport.is_closing():
                self._deadline = self.loop.call_later(limits.header_seconds, self._close)

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _close(self) -> None:
            self._deadline = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return LimitedProtocol
