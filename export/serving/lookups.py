"""Read the store with a deadline in threads of their own: a store that hangs stops nothing.

A read that takes too long goes on in its thread; whoever asked for it gets the last known answer,
or an error. While the store hangs, nobody waits for it again until one read has come back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from headkit.adapters.errors import StoreError

logger = logging.getLogger("headkit")

T = TypeVar("T")
MAX_READS = 64
"""Maximum number of reads that may hang at once, each of which occupies a thread."""
PROBE_SECONDS = 1.0
"""While the store hangs, seconds between reads that find out whether it answers again."""


class StoreHangs(StoreError):
    """The store does not answer in time."""


class Lookups:
    """Reads of a store that each have a deadline.

    Args:
        seconds: Longest wait for something that is not known yet.
        patience: Longest wait for a new answer where an older one is known.

    Attributes:
        hanging: True from a read that took too long until the next one that came back.
    """

    def __init__(self, seconds: float = 5.0, patience: float = 0.25) -> None:
        self.seconds, self.patience, self.hanging = seconds, patience, False
        self._lock = threading.Lock()
        self._reads: dict[Hashable, Future[Any]] = {}
        self._last_start = 0.0

    def read(self, key: Hashable, function: Callable[[], T], *, known: bool) -> T:
        """Return what ``function`` returns. Simultaneous reads with the same key are one read.

        Args:
            key: What is read.
            function: Function that reads it.
            known: True if the caller has an older answer, which it uses if this raises.

        Raises:
            StoreHangs: There is no answer in time.
            Exception: Whatever ``function`` raises.
        """
        hanging = self.hanging
        future = self._start(key, function, probe=hanging)
        wait = self.patience if known or hanging else self.seconds
        try:
            if future is not None and not (known and hanging):
                return future.result(wait)
            if future is not None and future.done():
                return future.result()
        except FutureTimeoutError:
            if not self.hanging:
                logger.warning("the store does not answer within %g s", wait)
            self.hanging = True
        raise StoreHangs("the store does not answer: try again later")

    def _start(self, key: Hashable, function: Callable[[], T], *, probe: bool) -> Future[T] | None:
        with self._lock:
            running = self._reads.get(key)
            if running is not None:
                return running
            now = time.monotonic()
            too_soon = probe and now - self._last_start < PROBE_SECONDS
            if too_soon or len(self._reads) >= MAX_READS:
                return None
            self._last_start = now
            future = self._reads[key] = Future[T]()
        threading.Thread(
            target=self._run, args=(key, function, future), name="store", daemon=True
        ).start()
        return future

    def _run(self, key: Hashable, function: Callable[[], T], future: Future[T]) -> None:
        try:
            result = function()
        except BaseException as error:
            self._finish(key)
            future.set_exception(error)
        else:
            self._finish(key)
            future.set_result(result)

    def _finish(self, key: Hashable) -> None:
        with self._lock:
            self._reads.pop(key, None)
        if self.hanging:
            logger.warning("the store answers again")
        self.hanging = False
