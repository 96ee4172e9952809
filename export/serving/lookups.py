"""Read the store with a deadline in threads of their own: a store that hangs stops nothing.

A read that takes too long goes on in its thread; whoever asked for it gets the last known answer,
or an error. While the store hangs, nobody waits for it again until one read has come back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, TypeVar

from headkit.adapters.errors import StoreError

logger = logging.getLogger("headkit")

T = TypeVar("T")
MAX_READS = 64
"""Maximum number of reads that may hang at once, each of which occupies a thread."""
MAX_UNKNOWN = 48
"""Maximum number of reads after which no read starts of what is not known yet."""
PROBE_SECONDS = 1.0
"""While the store hangs, seconds between reads that find out whether it answers again."""


class StoreHangs(StoreError):
    """The store does not answer in time."""


class Lookups:
    """Reads of a store that each have a deadline. One event loop uses them.

    Args:
        seconds: Longest wait for something that is not known yet.
        patience: Longest wait for a new answer where an older one is known.

    Attributes:
        hanging: True from a read that took too long, while no other came back, until the next one
            that comes back.
    """

    def __init__(self, seconds: float = 5.0, patience: float = 0.25) -> None:
        self.seconds, self.patience, self.hanging = seconds, patience, False
        self._reads: dict[Hashable, asyncio.Future[Any]] = {}
        self._slow: set[Hashable] = set()
        self._running = 0
        self._last_start = self._last_end = 0.0

    async def read(self, key: Hashable, function: Callable[[], T], *, known: bool) -> T:
        """Return what ``function`` returns. Simultaneous reads with the same key are one read.

        Args:
            key: What is read.
            function: Function that reads it.
            known: True if the caller has an older answer, which it uses if this raises.

        Raises:
            StoreHangs: There is no answer in time.
            Exception: Whatever ``function`` raises.
        """
        loop = asyncio.get_running_loop()
        hanging = self.hanging
        future = self._start(loop, key, function, known=known)
        if future is not None and not (known and (hanging or key in self._slow)):
            start = loop.time()
            wait = self.patience if known or hanging else self.seconds
            with suppress(TimeoutError):
                async with asyncio.timeout(wait) as deadline:
                    return await asyncio.shield(future)
            if not deadline.expired():
                return await future  # it raised a TimeoutError of its own
            self._slow.add(key)
            if not self.hanging and self._last_end < start:
                logger.warning("the store does not answer within %g s", wait)
                self.hanging = True
        raise StoreHangs("the store does not answer: try again later")

    def _start(
        self, loop: asyncio.AbstractEventLoop, key: Hashable, function: Callable[[], T], known: bool
    ) -> asyncio.Future[T] | None:
        """Return the read with this key, which may run already; None if none may start."""
        running, now = self._reads.get(key), loop.time()
        may_probe = now - self._last_start >= PROBE_SECONDS
        # The connection of a read that hangs may be dead, so that another one tries again.
        if running is not None and not (self.hanging and may_probe):
            return running
        too_many = self._running >= (MAX_READS if known else MAX_UNKNOWN)
        if too_many or (self.hanging and not may_probe):
            return running
        self._last_start = now
        self._running += 1
        future = self._reads[key] = loop.create_future()

        def finish(result: Any, error: BaseException | None) -> None:
            self._finish(loop, key, future)
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
                future.exception()  # nobody may wait any more

        def run() -> None:
            try:
                outcome: tuple[Any, BaseException | None] = function(), None
            except BaseException as error:
                outcome = None, error
            with suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(finish, *outcome)

        threading.Thread(target=run, name="store", daemon=True).start()
        return future

    def _finish(
        self, loop: asyncio.AbstractEventLoop, key: Hashable, future: asyncio.Future[Any]
    ) -> None:
        self._running -= 1
        self._last_end = loop.time()
        self._slow.discard(key)
        if self._reads.get(key) is future:
            del self._reads[key]
        if self.hanging:
            logger.warning("the store answers again")
        self.hanging = False
