"""Pass many inputs through each door; write the counts as they grow, and keep what fails."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headkit.adapters.files import write_atomically
from headkit.benchmarks.bench.machine import machine

from .doors import DOORS
from .seeds import SeedFiles
from .watched import Outcome, WatchedWorker

SLICE = 250
"""Number of inputs after which the counts are written."""
COUNTS = ("accepted", "refused", "raw_errors", "hangs", "over_memory")
FAULTS = COUNTS[2:]


@dataclass(frozen=True)
class Study:
    """How many inputs to try, and where the results go.

    Attributes:
        seeds: The valid files.
        result: JSON file of the counts, by door.
        failures: Folder for the inputs that fail.
        seed: Seed of the inputs.
        inputs: Number of inputs per door.
    """

    seeds: SeedFiles
    result: Path
    failures: Path
    seed: int
    inputs: int

    def run(self, doors: Sequence[str], seconds: float | None = None) -> int:
        """Go on with each door where its counts end; return the number of all faults.

        Args:
            doors: Names of doors.
            seconds: Time limit of all doors together, which share it evenly.
        """
        end = None if seconds is None else time.monotonic() + seconds
        faults = 0
        for number, name in enumerate(doors):
            until = None
            if end is not None:
                left = max(end - time.monotonic(), 0)
                until = time.monotonic() + left / (len(doors) - number)
            faults += self._run_door(name, until)
        return faults

    def forget(self, doors: Sequence[str]) -> None:
        """Remove the counts of these doors."""
        left = {name: counts for name, counts in self._read().items() if name not in doors}
        write_atomically(self.result, (json.dumps(left, indent=1) + "\n").encode())

    def _run_door(self, name: str, until: float | None) -> int:
        counts = self._read().get(name, {})
        if counts.get("seed") != self.seed:
            counts = {"inputs": 0, "seed": self.seed, **dict.fromkeys(COUNTS, 0)}
            counts |= {"slowest_seconds": 0.0, "peak_mb": 0.0}
        with WatchedWorker(worker_command(name, self.seeds.folder, self.seed)) as worker:
            while counts["inputs"] < self.inputs and (until is None or time.monotonic() < until):
                number = counts["inputs"]
                outcome = worker.attempt(f"try {number}")
                add_outcome(counts, outcome)
                if outcome.is_fault:
                    path = self.failures / f"{name}-{self.seed}-{number}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    worker.write_input(number, path)
                    print(format_fault(path, outcome), flush=True)
                if not counts["inputs"] % SLICE:
                    self._write(name, counts)
        self._write(name, counts)
        print(name, json.dumps(counts), flush=True)
        return sum(int(counts[kind]) for kind in FAULTS)

    def _read(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if self.result.exists():
            values = json.loads(self.result.read_text(encoding="utf-8"))
        return values

    def _write(self, name: str, counts: dict[str, Any]) -> None:
        values = {**self._read(), name: {**counts, "machine": machine()}}
        values = {door: values[door] for door in DOORS if door in values}
        write_atomically(self.result, (json.dumps(values, indent=1) + "\n").encode())


def worker_command(name: str, seeds: Path, seed: int) -> Callable[[str], list[str]]:
    """Return the function from a folder to the command of a worker for a door."""
    module = f"{__name__.rpartition('.')[0]}.worker"
    return lambda folder: [module, name, str(seeds), folder, str(seed)]


def add_outcome(counts: dict[str, Any], outcome: Outcome) -> None:
    """Count the outcome of one more input, in place."""
    counts["inputs"] += 1
    counts[outcome.result] += 1
    counts["slowest_seconds"] = max(counts["slowest_seconds"], round(outcome.seconds, 3))
    counts["peak_mb"] = max(counts["peak_mb"], round(outcome.mb, 1))


def format_fault(path: Path, outcome: Outcome) -> str:
    """Return one line about an input that failed."""
    facts = f"{outcome.result}, {outcome.seconds:.1f} s, {outcome.mb:.0f} MB"
    return f"{path}: {facts}: {outcome.error}".encode("ascii", "backslashreplace").decode()
