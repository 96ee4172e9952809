"""Log what may happen at every request only once in a while, so that the log stays small."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("headkit")

SECONDS = 10.0
"""Seconds between two entries of one kind."""


class SeldomLog:
    """A log that leaves entries out."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def warn(self, message: str, *values: object) -> None:
        """Log a warning unless one with the same ``message`` was logged a short time ago."""
        now = time.monotonic()
        if now - self._last.get(message, -SECONDS) >= SECONDS:
            self._last[message] = now
            logger.warning(message, *values)
