import time

from headkit.benchmarks.timing import Timing, alternate


def test_median_and_percentiles() -> None:
    timing = Timing.of([float(value) for value in range(1, 102)])
    assert (timing.median_ms, timing.p05_ms, timing.p95_ms, timing.calls) == (51, 6, 96, 101)


def test_contenders_alternate_and_a_slower_one_is_seen() -> None:
    order: list[str] = []

    def contender(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    timings = alternate(
        {"slow": lambda: contender("slow", 0.02), "fast": lambda: contender("fast", 0.002)},
        calls=5,
        warmup=1,
    )
    assert order == ["slow", "fast"] * 6
    assert timings["slow"].median_ms > 3 * timings["fast"].median_ms
