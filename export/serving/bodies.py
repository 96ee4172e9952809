"""Take in the bodies of requests: all of them share memory, places and a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import HTTPException, Request

from .limits import Limits

T = TypeVar("T")

FORM_BYTES = 64 * 1024
"""Maximum size in bytes of the names of heads in a request, in addition to the image."""
SMALL_BYTES = 2**20
"""Up to this size in bytes, a body also fits where only a quarter of the memory is left."""
_FULL = "the server has no memory left for this request: try again later"


@dataclass(eq=False)
class _Body:
    """A body that has not arrived in full."""

    deadline: asyncio.Timeout
    content: bytearray = field(default_factory=bytearray)
    dropped: bool = False


class Bodies:
    """The bodies that a server holds in memory."""

    def __init__(self) -> None:
        self._arriving: set[_Body] = set()
        self._arriving_bytes = self._waiting_bytes = self._waiting = 0

    @asynccontextmanager
    async def receive(self, request: Request, limits: Limits) -> AsyncIterator[bytearray]:
        """Receive the body of a request, and keep its place until the request is answered.

        A body that arrives slowly takes no place from others. If the bodies take too much memory,
        the largest one that has not arrived in full is given up.

        Raises:
            HTTPException: 408 if the body does not arrive in time, 413 if it is too large, 503 if
                there is no place for it.
        """
        content = await self._read(request, limits)
        size, share = len(content), 1.0 if len(content) <= SMALL_BYTES else 0.75
        if self._waiting_bytes + size > share * limits.body_bytes:
            raise _busy(_FULL)
        if self._waiting >= limits.waiting:
            raise _busy(f"{self._waiting} requests are already waiting: try again later")
        self._waiting += 1
        self._waiting_bytes += size
        try:
            yield content
        finally:
            self._waiting -= 1
            self._waiting_bytes -= size

    async def _read(self, request: Request, limits: Limits) -> bytearray:
        length = request.headers.get("content-length", "")
        if length.isdigit():
            _check_size(int(length), limits)
        async with asyncio.timeout(None) as deadline:
            body = _Body(deadline)
            deadline.reschedule(asyncio.get_running_loop().time() + limits.seconds)
            self._arriving.add(body)
            try:
                return await self._read_chunks(request, body, limits)
            except asyncio.CancelledError as error:
                if body.dropped:
                    raise _busy(_FULL) from error
                if deadline.expired():
                    raise HTTPException(
                        408, f"the body did not arrive within {limits.seconds:g} s"
                    ) from error
                raise
            finally:
                self._remove(body)
        raise AssertionError

    async def _read_chunks(self, request: Request, body: _Body, limits: Limits) -> bytearray:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise HTTPException(400, "the client left before its request had arrived")
            chunk = message.get("body", b"")
            _check_size(len(body.content) + len(chunk), limits)
            self._make_room(len(chunk), limits)
            if body.dropped:
                raise _busy(_FULL)
            body.content += chunk
            self._arriving_bytes += len(chunk)
            if not message.get("more_body", False):
                return body.content

    def _make_room(self, size: int, limits: Limits) -> None:
        """Give up the largest bodies until ``size`` more bytes fit."""
        while self._arriving_bytes + self._waiting_bytes + size > limits.body_bytes:
            largest = max(self._arriving, key=lambda one: len(one.content), default=None)
            if largest is None or not largest.content:
                raise _busy(_FULL)
            self._remove(largest)
            largest.dropped, largest.content = True, bytearray()
            with suppress(RuntimeError):  # its time is up anyway
                largest.deadline.reschedule(0)  # wakes the request, which waits for more

    def _remove(self, body: _Body) -> None:
        if body in self._arriving:
            self._arriving.discard(body)
            self._arriving_bytes -= len(body.content)


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``, which is cancelled if the client closes the connection.

    Raises:
        HTTPException: The client has left.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(400, "the client left before its request was answered")
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


def _check_size(num_bytes: int, limits: Limits) -> None:
    if num_bytes > limits.upload_bytes + FORM_BYTES:
        raise HTTPException(
            413, f"the request is too large: at most {limits.upload_bytes:,} bytes are allowed"
        )


def _busy(why: str) -> HTTPException:
    return HTTPException(503, why, {"Retry-After": "1"})
