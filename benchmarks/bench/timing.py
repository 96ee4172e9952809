"""Time candidates against each other on a noisy machine."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

Call = Callable[[], object]
"""The function that is timed. If it returns ``Milliseconds``, that is the time of the call."""

CONFIDENCE = 0.99
"""Confidence level of the interval of a ratio."""
RESOLUTION = 0.005
"""Share by which the times of identical candidates differ because of their addresses in memory."""
PAUSE_MS = 2.0
"""Milliseconds between candidates, as worker threads of the previous one spin for a while."""


class Milliseconds(float):
    """A time that a candidate measured itself, for example with events of a GPU."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call.

    Attributes:
        median_ms: Median of all counted calls.
        p05_ms: 5th percentile: 5 % of the calls were faster.
        p95_ms: 95th percentile: 5 % of the calls were slower.
        calls: Number of counted calls.
    """

    median_ms: float
    p05_ms: float
    p95_ms: float
    calls: int

    @classmethod
    def from_samples(cls, milliseconds: list[float]) -> Timing:
        """Summarize single measurements."""
        ordered = sorted(milliseconds)
        last = len(ordered) - 1
        return cls(
            median_ms=round(statistics.median(ordered), 3),
            p05_ms=round(ordered[round(0.05 * last)], 3),
            p95_ms=round(ordered[round(0.95 * last)], 3),
            calls=len(ordered),
        )

    @property
    def spread(self) -> float:
        """Distance between the 5th and the 95th percentile, as a share of the median."""
        return (self.p95_ms - self.p05_ms) / self.median_ms if self.median_ms else 0.0

    def to_json(self) -> dict[str, float]:
        """Return the figures as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Ratio:
    """The time of one candidate divided by the time of another.

    Attributes:
        value: Median over the rounds. Within a round the state of the machine is the same for both.
        low: Lower end of the interval that contains the true median with ``CONFIDENCE``, and the
            medians of all repeats.
        high: Upper end of that interval.
    """

    value: float
    low: float
    high: float

    @property
    def noise(self) -> float:
        """Largest distance between an end and the value, as a share of the value."""
        return max(self.high / self.value, self.value / self.low) - 1

    @property
    def differs(self) -> bool:
        """True if the interval excludes 1, so that one candidate is faster than the other."""
        return not self.low <= 1 <= self.high

    def to_json(self) -> dict[str, float]:
        """Return the figures as JSON values."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Race:
    """The measurements of a race.

    Attributes:
        calls: Milliseconds of all counted calls, by candidate.
        rounds: For each repeat, the median milliseconds of each round, by candidate.
    """

    calls: dict[str, list[float]]
    rounds: list[dict[str, list[float]]]

    @property
    def timings(self) -> dict[str, Timing]:
        """Summary of all counted calls of each candidate."""
        return {
            name: Timing.from_samples(milliseconds) for name, milliseconds in self.calls.items()
        }

    def ratio(self, one: str, other: str) -> Ratio:
        """Return the time of ``one`` divided by the time of ``other``.

        The interval of the median comes from order statistics (an inverted sign test), so it
        assumes nothing about the distribution. Rounds of the same repeat share memory addresses, so
        the interval is widened to the medians of all repeats, and by ``RESOLUTION``. If repeats
        differ, the interval reaches ``CONFIDENCE`` with eight repeats or more; with three repeats,
        one interval in four may miss the true ratio.
        """
        repeats = [
            [a / b for a, b in zip(medians[one], medians[other], strict=True)]
            for medians in self.rounds
        ]
        ratios = sorted(value for repeat in repeats for value in repeat)
        middle = statistics.median(ratios)
        rank = _rank(len(ratios))
        medians = [statistics.median(repeat) for repeat in repeats]
        low = min(ratios[rank], *medians, middle)
        high = max(ratios[-1 - rank], *medians, middle)
        return Ratio(middle, low / (1 + RESOLUTION), high * (1 + RESOLUTION))


def race(
    candidates: Mapping[str, Callable[[], Call]],
    *,
    repeats: int = 8,
    rounds: int = 3,
    block_ms: float = 50.0,
    warmup: int = 3,
    seed: int = 0,
) -> Race:
    """Run candidates in turns, so that a change of the machine's speed affects all of them.

    In each round the race calls each candidate for ``block_ms``, at least once. It does not count
    the first call of a turn: the caches hold the previous candidate's weights, whose threads still
    spin. The order within a round is random. The order of preparation is random too, as the first
    candidate gets other memory than the last.

    Args:
        candidates: For each name, a function that prepares the candidate, such as loading a model,
            and returns the function to time.
        repeats: Number of times that all candidates are prepared, each time at other addresses in
            memory. With fewer than eight the interval of a ratio is too narrow if that matters.
        rounds: Number of rounds in each repeat.
        block_ms: Milliseconds per turn.
        warmup: Number of calls before the first round.
        seed: Seed of the random order.
    """
    result = Race({name: [] for name in candidates}, [])
    order = random.Random(seed)  # noqa: S311  (no secret)
    for _ in range(repeats):
        calls = {
            name: candidates[name]() for name in order.sample(list(candidates), len(candidates))
        }
        for call in calls.values():
            for _ in range(warmup):
                call()
        medians: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(rounds):
            for name in order.sample(list(calls), len(calls)):
                time.sleep(PAUSE_MS / 1000)
                _measure_ms(calls[name])
                block = list(_measure_block(calls[name], block_ms))
                result.calls[name] += block
                medians[name].append(statistics.median(block))
        result.rounds.append(medians)
        del calls
        gc.collect()
    return result


def estimate_turn_seconds(call: Call, block_ms: float = 50.0) -> float:
    """Return the approximate duration of a candidate's turn in a race."""
    call()
    milliseconds = _measure_ms(call)
    return (PAUSE_MS + milliseconds + max(milliseconds, block_ms)) / 1000


def alternate(candidates: Mapping[str, Call], *, calls: int = 20, warmup: int = 3) -> Race:
    """Call each candidate once per round, always in the same order.

    Unlike in ``race`` each call counts, and finds the caches as another candidate left them.

    Args:
        candidates: For each name, the function to time.
        calls: Number of counted rounds.
        warmup: Number of rounds before the counted ones.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(-warmup, calls):
        for name, candidate in candidates.items():
            milliseconds = _measure_ms(candidate)
            if number >= 0:
                times[name].append(milliseconds)
    return Race(times, [times])


def _measure_block(call: Call, milliseconds: float) -> Iterator[float]:
    left = milliseconds
    while True:
        elapsed = _measure_ms(call)
        yield elapsed
        left -= elapsed
        if left <= 0:
            return


def _measure_ms(call: Call) -> float:
    start = time.perf_counter()
    result = call()
    if isinstance(result, Milliseconds):
        return float(result)
    return (time.perf_counter() - start) * 1000


def _rank(count: int) -> int:
    """Return the number of values to leave out at each end of an interval of their median."""
    below, rank = 0.5**count, 0
    while 2 * below <= 1 - CONFIDENCE and rank < (count - 1) // 2:
        rank += 1
        below += math.comb(count, rank) * 0.5**count
    return max(0, rank - 1)
