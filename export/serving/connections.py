"""Limit the connections of a server: their number, and how long their clients may take.

uvicorn waits without end for the headers of a request, and for a client that does not read its
response. A few hundred such connections would keep all others out.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from headkit.adapters.compat import http_protocol

from .limits import Limits

_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
)
_BODY = b'{"detail":"too many connections: try again later"}'
_WATCH_SECONDS = 1.0
"""Seconds between two looks at a connection whose client may not read."""
_LINES, _BYTES_PER_LINE = 1000, 64
"""A chunked body has at most so many lines, and one more for so many of its bytes.

Each chunk costs the server 20 microseconds, however small it is.
"""


def limited_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return the class that uvicorn takes as ``http``.

    A connection is closed if its headers do not arrive in time, if its client does not read, or if
    its body comes in very many small chunks. One connection too many, of all clients together or of
    one client, takes the place of the oldest one whose request has not arrived in full. If there is
    none, it is answered with 503 and closed.
    """
    protocol: Any = http_protocol()
    by_client: defaultdict[str, set[Any]] = defaultdict(set)

    class LimitedProtocol(protocol):  # type: ignore[misc]
        """uvicorn's protocol with deadlines and limits."""

        _deadline: asyncio.TimerHandle | None = None
        _watch: asyncio.TimerHandle | None = None
        _stuck_since: float | None = None
        _client_name: str | None = None
        _waits_since = 0.0
        _writing_paused = False
        _lines = _bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._waits_since = self.loop.time()
            self._watch = self.loop.call_later(_WATCH_SECONDS, self._look)
            name = self.client[0] if self.client else ""
            own = by_client[name]
            if not (
                _make_room(own, limits.connections_per_client)
                and _make_room(self.connections - {self}, limits.connections)
            ):
                if not own:
                    del by_client[name]
                transport.write(_REFUSAL % (len(_BODY), _BODY))
                transport.close()
                return
            own.add(self)
            self._client_name = name
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._is_chunked():
                self._lines += data.count(b"\n")
                self._bytes += len(data)
                if self._lines > _LINES + self._bytes / _BYTES_PER_LINE:
                    self.transport.abort()
                    return
            cycle = self.cycle
            super().data_received(data)
            if self.cycle is not cycle:
                self._lines = self._bytes = 0
            if self.cycle is None or self.cycle.response_complete:
                self._expect_headers()
            else:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            if self._watch is not None:
                self._watch.cancel()
            self._give_place_back()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            self._writing_paused = True
            super().pause_writing()

        def resume_writing(self) -> None:
            self._writing_paused = False
            super().resume_writing()

        def give_way(self) -> float | None:
            """Return since when the connection waits for its client; None if it does not."""
            if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
                return self._waits_since
            return None

        def abort(self) -> None:
            """Close the connection at once."""
            self._give_place_back()
            self.connections.discard(self)
            self.transport.abort()

        def _give_place_back(self) -> None:
            if self._client_name is None:
                return
            own = by_client[self._client_name]
            own.discard(self)
            if not own:
                del by_client[self._client_name]
            self._client_name = None

        def _is_chunked(self) -> bool:
            return (
                self.cycle is not None
                and self.cycle.more_body
                and any(name == b"transfer-encoding" for name, _ in self.headers)
            )

        def _expect_headers(self) -> None:
            """Start the deadline, unless it runs: bytes that trickle in do not move it."""
            if self._deadline is None and not self.transport.is_closing():
                self._waits_since = self.loop.time()
                self._deadline = self.loop.call_later(limits.header_seconds, self._close)

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _close(self) -> None:
            self._deadline = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

        def _look(self) -> None:
            """Abort the connection if its client has not read for too long."""
            now = self.loop.time()
            if not (self._writing_paused or self.transport.is_closing()):
                self._stuck_since = None
            elif self._stuck_since is None:
                self._stuck_since = now
            elif now - self._stuck_since > limits.seconds:
                self.transport.abort()
                return
            self._watch = self.loop.call_later(_WATCH_SECONDS, self._look)

    return LimitedProtocol


def _make_room(connections: set[Any], limit: int) -> bool:
    """Return True if there is room for one more, after the oldest that can gave way."""
    if len(connections) < limit:
        return True
    since = {one: one.give_way() for one in connections}
    candidates = [one for one in connections if since[one] is not None]
    if not candidates:
        return False
    min(candidates, key=lambda one: since[one] or 0.0).abort()
    return True
