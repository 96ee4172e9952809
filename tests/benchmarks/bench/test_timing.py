import gc
import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from scipy.stats import binom

from headkit.benchmarks.bench.timing import Milliseconds, Race, Timing, alternate, race


@pytest.fixture(scope="module", autouse=True)
def _freeze_objects() -> Iterator[None]:
    """Freeze existing objects, so that the garbage collection before each repeat skips them."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_median_percentiles_and_spread() -> None:
    timing = Timing.from_samples([float(value) for value in range(1, 102)])
    assert (timing.median_ms, timing.p05_ms, timing.p95_ms, timing.calls) == (51, 6, 96, 101)
    assert timing.spread == pytest.approx(90 / 51)


def test_candidates_alternate_and_a_slower_one_is_detected() -> None:
    order: list[str] = []

    def candidate(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    measured = alternate(
        {"slow": lambda: candidate("slow", 0.1), "fast": lambda: candidate("fast", 0.002)},
        calls=5,
        warmup=1,
    )
    assert order == ["slow", "fast"] * 6
    assert measured.timings["slow"].median_ms > 3 * measured.timings["fast"].median_ms


def work(kilobytes: int) -> Callable[[], Callable[[], object]]:
    """Return a candidate that hashes its own bytes on one thread."""

    def ready() -> Callable[[], object]:
        content = random.Random(0).randbytes(1024 * kilobytes)  # noqa: S311
        return lambda: hashlib.sha256(content).digest()

    return ready


def test_ratio_of_identical_candidates_is_within_the_stated_noise() -> None:
    found = []
    for seed in range(3):
        measured = race({"one": work(1000), "other": work(1000)}, block_ms=10, seed=seed)
        ratio = measured.ratio("one", "other")
        found.append(not ratio.differs and abs(ratio.value - 1) <= ratio.noise)
    assert sum(found) >= 2  # each may fail once in a hundred


def test_a_slowdown_planted_in_one_of_two_candidates_is_detected() -> None:
    measured = race({"one": work(1000), "slowed": work(1150)}, block_ms=10)
    ratio = measured.ratio("slowed", "one")
    assert ratio.differs
    assert ratio.low > 1
    assert 1.1 < ratio.value < 1.2


def test_each_repeat_prepares_the_candidates_again_and_each_turn_has_an_uncounted_call() -> None:
    made, called = [], []

    def ready() -> Callable[[], object]:
        made.append(1)
        return lambda: called.append(1)

    measured = race({"it": ready}, repeats=2, rounds=3, block_ms=0, warmup=4)
    assert len(made) == 2
    assert len(measured.calls["it"]) == 6
    assert len(called) == 2 * (4 + 3 * 2)


def test_a_candidate_can_measure_its_own_time() -> None:
    measured = race({"it": lambda: lambda: Milliseconds(7)}, repeats=1, rounds=3)
    assert set(measured.calls["it"]) == {7.0}


def test_interval_contains_the_true_ratio_as_often_as_stated() -> None:
    generator = random.Random(0)  # noqa: S311
    missed = 0
    for _ in range(400):
        rounds = [
            {
                "a": [1.1 * math.exp(generator.gauss(0, 0.1)) for _ in range(8)],
                "b": [math.exp(generator.gauss(0, 0.1)) for _ in range(8)],
            }
            for _ in range(3)
        ]
        ratio = Race({}, rounds).ratio("a", "b")
        missed += not ratio.low <= 1.1 <= ratio.high
    assert missed <= binom.ppf(0.999, 400, 0.01)


@pytest.mark.parametrize("noise", [0.01, 0.05])
@pytest.mark.parametrize(("number", "rounds"), [(8, 3), (8, 8), (12, 20)])
def test_interval_contains_the_true_ratio_if_repeats_differ(
    number: int, rounds: int, noise: float
) -> None:
    generator = random.Random(0)  # noqa: S311
    missed = 0
    for _ in range(400):
        repeats = []
        for _ in range(number):
            shift = math.exp(generator.gauss(0, 0.03))  # by addresses in memory
            a = [1.1 * shift * math.exp(generator.gauss(0, noise)) for _ in range(rounds)]
            b = [math.exp(generator.gauss(0, noise)) for _ in range(rounds)]
            repeats.append({"a": a, "b": b})
        ratio = Race({}, repeats).ratio("a", "b")
        missed += not ratio.low <= 1.1 <= ratio.high
    assert missed <= binom.ppf(0.999, 400, 0.01)


def test_interval_contains_the_medians_of_all_repeats() -> None:
    quiet = {"a": [10.0] * 20, "b": [10.0] * 20}
    moved = {"a": [10.5] * 20, "b": [10.0] * 20}
    ratio = Race({}, [quiet, quiet, moved]).ratio("a", "b")
    assert ratio.value == 1.0
    assert ratio.high > 1.05
    assert not ratio.differs


def test_candidates_are_prepared_in_random_order() -> None:
    made: list[str] = []

    def ready(name: str) -> Callable[[], None]:
        made.append(name)
        return lambda: None

    names = ["a", "b", "c"]
    race({name: partial(ready, name) for name in names}, repeats=6, rounds=1, block_ms=0)
    repeats = [made[k : k + 3] for k in range(0, 18, 3)]
    assert all(sorted(repeat) == names for repeat in repeats)
    assert len({repeat[0] for repeat in repeats}) > 1
