"""Read the store with a deadline in threads of their own: a store that hangs stops nothing.

A read that takes too long goes on in its thread; whoever asked for it gets the last known answer,
or an error. While the store hangs, nobody waits for it again until one read has come back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
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
HANG_SECONDS = 1.0
"""The store hangs if it has answered nothing for so many seconds, although it was asked."""
MAX_PROBES = 16
PROBE_SECONDS = 1.0
"""While the store hangs, seconds between reads that find out whether it answers again."""


class StoreHangs(StoreError):
    """The store does not answer in time."""


class Lookups:
    """Reads of a store that each have a deadline. One event loop uses them.

    Args:
        probe: A small read that tells whether the store answers.
        seconds: Longest wait for something that is not known yet.
        patience: Longest wait for a new answer where an older one is known.
    """

    def __init__(
        self, probe: Callable[[], object], seconds: float = 5.0, patience: float = 0.25
    ) -> None:
        self.probe, self.seconds, self.patience = probe, seconds, patience
        self._reads: dict[Hashable, asyncio.Future[Any]] = {}
        self._starts: dict[asyncio.Future[Any], float] = {}
        self._slow: set[Hashable] = set()
        self._last_probe = self._last_answer = 0.0
        self._hangs = False

    @property
    def hanging(self) -> bool:
        """True if no read has been answered for a while, until the next one that is."""
        if not self._hangs and self._starts:
            since = max(self._last_answer, min(self._starts.values()))
            if time.monotonic() - since > HANG_SECONDS:
                logger.warning("the store does not answer")
                self._hangs = True
        return self._hangs

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
        future = self._start(key, function, known=known)
        if future is not None and not (known and (self.hanging or key in self._slow)):
            with suppress(TimeoutError):
                wait = self.patience if known else self.seconds
                async with asyncio.timeout(wait) as deadline:
                    return await asyncio.shield(future)
            if not deadline.expired():
                return await future  # it raised a TimeoutError of its own
            if not future.done():
                self._slow.add(key)
        raise StoreHangs("the store does not answer: try again later")

    def _start(
        self, key: Hashable, function: Callable[[], T], *, known: bool
    ) -> asyncio.Future[T] | None:
        """Return the read with this key, which may run already; None if none may start."""
        if self.hanging:
            # The connections of the reads that hang may be dead, so a new read has to tell.
            if time.monotonic() - self._last_probe >= PROBE_SECONDS:
                self._last_probe = time.monotonic()
                self._run(object(), self.probe)
            return self._reads.get(key)
        running = self._reads.get(key)
        if running is not None or len(self._starts) >= (MAX_READS if known else MAX_UNKNOWN):
            return running
        future = self._reads[key] = self._run(key, function)
        return future

    def _run(self, key: Hashable, function: Callable[[], T]) -> asyncio.Future[T]:
        """Start a thread for a read."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if len(self._starts) >= MAX_READS + MAX_PROBES:
            return future
        self._starts[future] = time.monotonic()

        def run() -> None:
            try:
                outcome: tuple[Any, BaseException | None] = function(), None
            except BaseException as error:
                outcome = None, error
            with suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(self._finish, key, future, *outcome)

        threading.Thread(target=run, name="store", daemon=True).start()
        return future

    def _finish(
        self,
        key: Hashable,
        future: asyncio.Future[Any],
        result: Any,
        error: BaseException | None,
    ) -> None:
        del self._starts[future]
        if self._reads.get(key) is future:
            del self._reads[key]
        if not isinstance(error, StoreError):  # it may say that the store has not answered
            self._last_answer = time.monotonic()
            self._slow.discard(key)
            if self._hangs:
                logger.warning("the store answers again")
                self._hangs = False
                self._reads.clear()  # those that still hang must not keep new ones waiting
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
            future.exception()  # nobody may wait any more
