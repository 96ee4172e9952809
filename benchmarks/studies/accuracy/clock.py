"""Measure how long a contender takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds of the wall clock and of this process's threads, since it was made.

    The seconds of a process with one thread do not depend on what else the machine does.
    """

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def read(self) -> dict[str, float]:
        """Return ``seconds`` and ``cpu_seconds``."""
        return {
            "seconds": round(time.perf_counter() - self.wall, 3),
            "cpu_seconds": round(time.process_time() - self.cpu, 3),
        }
