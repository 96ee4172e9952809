"""Time contenders against each other on a noisy machine."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

Call = Callable[[], object]
"""What is timed. If it returns ``Milliseconds``, by a clock of its own."""

CONFIDENCE = 0.99
"""Of the interval of a ratio."""
RESOLUTION = 0.005
"""Share by which identical contenders differ in spite of all: where their memory happens to lie."""
PAUSE_MS = 2.0
"""Between contenders: worker threads of the last one still spin for a while."""


class Milliseconds(float):
    """What a contender measured itself, such as by events of a GPU."""


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
        """How far the 5th and the 95th percentile lie apart, in shares of the median."""
        return (self.p95_ms - self.p05_ms) / self.median_ms if self.median_ms else 0.0

    def to_json(self) -> dict[str, float]:
        """Return the figures as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Ratio:
    """How many times as long one contender takes as another.

    Attributes:
        value: median over the rounds, in each of which both met the same machine.
        low: the true median lies between this
        high: and this, with ``CONFIDENCE``; so do the medians of all sittings.
    """

    value: float
    low: float
    high: float

    @property
    def noise(self) -> float:
        """Largest distance of the ends from the value, in shares of it."""
        return max(self.high / self.value, self.value / self.low) - 1

    @property
    def differs(self) -> bool:
        """Whether the contenders are told apart."""
        return not self.low <= 1 <= self.high

    def to_json(self) -> dict[str, float]:
        """Return the figures as JSON values."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Race:
    """What was measured.

    Attributes:
        calls: milliseconds of all counted calls, by contender.
        rounds: per sitting, the median milliseconds of each round, by contender.
    """

    calls: dict[str, list[float]]
    rounds: list[dict[str, list[float]]]

    @property
    def timings(self) -> dict[str, Timing]:
        """All counted calls of each contender, summarized."""
        return {
            name: Timing.from_samples(milliseconds) for name, milliseconds in self.calls.items()
        }

    def ratio(self, one: str, other: str) -> Ratio:
        """Return how many times as long ``one`` takes as ``other``.

        The interval of the median comes from order statistics (the sign test inverted): it assumes
        nothing of the distribution. Rounds of one sitting share where things lie in memory, hence
        it is widened to the medians of all sittings and by ``RESOLUTION``. Where sittings differ,
        that holds with ``CONFIDENCE`` for eight of them or more; of three, one in four may miss.
        """
        sittings = [
            [a / b for a, b in zip(taken[one], taken[other], strict=True)] for taken in self.rounds
        ]
        ratios = sorted(value for sitting in sittings for value in sitting)
        middle = statistics.median(ratios)
        rank = _rank(len(ratios))
        medians = [statistics.median(sitting) for sitting in sittings]
        low = min(ratios[rank], *medians, middle)
        high = max(ratios[-1 - rank], *medians, middle)
        return Ratio(middle, low / (1 + RESOLUTION), high * (1 + RESOLUTION))


def race(
    contenders: Mapping[str, Callable[[], Call]],
    *,
    sittings: int = 8,
    rounds: int = 3,
    block_ms: float = 50.0,
    warmup: int = 3,
    seed: int = 0,
) -> Race:
    """Let contenders run in turns, so that a change of the machine's speed meets all of them.

    In each round each contender is called for ``block_ms``, at least once. The first call of its
    turn is not counted: the caches are full of the last one's weights, and its threads still spin.
    The order within a round is random, and so is that in which they are made ready: the first finds
    another memory than the last.

    Args:
        contenders: by name, what makes ready (loads a model) and returns what is timed.
        sittings: how often all of them are made ready anew: memory lies elsewhere each time. With
            fewer than eight the interval of a ratio is too narrow where that matters.
        rounds: in each sitting.
        block_ms: milliseconds per turn.
        warmup: calls before the first round.
        seed: of the order.
    """
    found = Race({name: [] for name in contenders}, [])
    order = random.Random(seed)  # noqa: S311  (no secret)
    for _ in range(sittings):
        calls = {
            name: contenders[name]() for name in order.sample(list(contenders), len(contenders))
        }
        for call in calls.values():
            for _ in range(warmup):
                call()
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name in order.sample(list(calls), len(calls)):
                time.sleep(PAUSE_MS / 1000)
                _timed(calls[name])
                block = list(_block(calls[name], block_ms))
                found.calls[name] += block
                taken[name].append(statistics.median(block))
        found.rounds.append(taken)
        del calls
        gc.collect()
    return found


def turn_seconds(call: Call, block_ms: float = 50.0) -> float:
    """Return roughly how long a contender's turn in a race takes."""
    call()
    milliseconds = _timed(call)
    return (PAUSE_MS + milliseconds + max(milliseconds, block_ms)) / 1000


def alternate(contenders: Mapping[str, Call], *, calls: int = 20, warmup: int = 3) -> Race:
    """Call the contenders one by one in turn, always in the same order.

    Unlike in ``race`` each call is counted, and meets caches that the other one used.

    Args:
        contenders: what to time, by name.
        calls: counted rounds; each contender is called once in each.
        warmup: rounds before that.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-warmup, calls):
        for name, contender in contenders.items():
            milliseconds = _timed(contender)
            if number >= 0:
                taken[name].append(milliseconds)
    return Race(taken, [taken])


def _block(call: Call, milliseconds: float) -> Iterator[float]:
    left = milliseconds
    while True:
        taken = _timed(call)
        yield taken
        left -= taken
        if left <= 0:
            return


def _timed(call: Call) -> float:
    start = time.perf_counter()
    found = call()
    if isinstance(found, Milliseconds):
        return float(found)
    return (time.perf_counter() - start) * 1000


def _rank(count: int) -> int:
    """Return how many values may be left out at each end of an interval of their median."""
    below, rank = 0.5**count, 0
    while 2 * below <= 1 - CONFIDENCE and rank < (count - 1) // 2:
        rank += 1
        below += math.comb(count, rank) * 0.5**count
    return max(0, rank - 1)
