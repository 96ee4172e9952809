"""A fault that is planted is counted."""

import sys
from pathlib import Path

import pytest

from headkit.adapters.errors import DataError
from headkit.benchmarks.studies.security.fuzzing.doors.door import Door
from headkit.benchmarks.studies.security.fuzzing.watched import WatchedWorker
from headkit.benchmarks.studies.security.fuzzing.worker import pass_through

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the study runs on Linux")

MODULE = "tests.benchmarks.studies.security.fuzzing.planted"
FAULTS = {
    "sleep": "hangs",
    "spin": "hangs",
    "grow": "over_memory",
    "report": "over_memory",
    "die": "raw_errors",
    "raw_errors": "raw_errors",
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_planted_fault_is_counted_and_the_next_input_is_fine(what: str) -> None:
    with WatchedWorker(lambda _: [MODULE], seconds=1.0, max_bytes=200_000_000) as worker:
        outcome = worker.attempt(f"try {what}")
        assert (outcome.result, outcome.is_fault) == (FAULTS[what], True)
        assert ("SIGSEGV" in outcome.error) == (what == "die")
        for fine in ("accepted", "refused"):
            after = worker.attempt(f"try {fine}")
            assert (after.result, after.is_fault) == (fine, False)


@pytest.mark.parametrize(
    ("error", "result", "message"),
    [
        (None, "accepted", ""),
        (DataError("no"), "refused", "no"),
        (KeyError("x"), "raw_errors", "KeyError: 'x'"),
        (SystemExit(1), "raw_errors", "SystemExit: 1"),
        (RecursionError("deep"), "raw_errors", "RecursionError: deep"),
    ],
)
def test_only_errors_of_headkit_refuse(
    error: BaseException | None, result: str, message: str
) -> None:
    def enter(_content: bytes) -> None:
        if error is not None:
            raise error

    outcome = pass_through(Door([b""], lambda content, _: content, enter), b"")
    assert (outcome["result"], outcome["error"]) == (result, message)


def test_growth_of_memory_is_measured_for_one_input(tmp_path: Path) -> None:
    def enter(content: bytes) -> None:
        assert len(b"x" * int(content)) > 0

    door = Door([b""], lambda content, _: content, enter)
    large, small = (pass_through(door, content)["mb"] for content in (b"300000000", b"1000"))
    assert isinstance(large, float)
    assert isinstance(small, float)
    assert 250 < large < 400  # the system may take some pages back before they are counted
    assert small < 30
