"""Time contenders against each other on a noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call.

    Attributes:
        median_ms: of all counted calls.
        p05_ms: 5 % of the calls were faster.
        p95_ms: 5 % of the calls were slower.
        calls: number of counted calls.
    """

    median_ms: float
    p05_ms: float
    p95_ms: float
    calls: int

    @classmethod
    def of(cls, milliseconds: list[float]) -> Timing:
        """Summarize single measurements."""
        ordered = sorted(milliseconds)
        last = len(ordered) - 1
        return cls(
            median_ms=round(statistics.median(ordered), 3),
            p05_ms=round(ordered[round(0.05 * last)], 3),
            p95_ms=round(ordered[round(0.95 * last)], 3),
            calls=len(ordered),
        )

    def to_json(self) -> dict[str, float]:
        """Return the figures as JSON values."""
        return asdict(self)


def alternate(
    contenders: Mapping[str, Callable[[], object]], *, calls: int = 20, warmup: int = 3
) -> dict[str, Timing]:
    """Call the contenders in turn, so that a change of the machine's speed meets all of them.

    Args:
        contenders: what to time, by name.
        calls: counted rounds; each contender is called once in each.
        warmup: rounds before that.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(-warmup, calls):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            if round_number >= 0:
                taken[name].append((time.perf_counter() - start) * 1000)
    return {name: Timing.of(milliseconds) for name, milliseconds in taken.items()}
