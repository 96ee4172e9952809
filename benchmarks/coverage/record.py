"""Check the contract for many architectures in worker processes, and record the results.

The record has one JSON line per architecture and check. A worker that crashes, hangs or runs out of
memory fails one line only. An interrupted run resumes: lines that passed with the same timm version
are not checked again.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import timm
import torch

from headkit.adapters.compat import family_of
from headkit.adapters.errors import UnknownArchitecture, first_line
from headkit.adapters.files import exists, make_parent_folder, write_atomically, writing
from headkit.benchmarks.bench.process import peak_bytes

from .contract import CHECKS, Row

Progress = Callable[[str, int, int | None], None]
Key = tuple[str, str]
"""Architecture and check."""


@dataclass(frozen=True)
class Summary:
    """The results of a run.

    Attributes:
        rows: Rows of all requested architectures, by architecture and check.
        seconds: Duration of this run.
        peak_bytes: Largest sum of the peak resident memory of the workers and this process.
    """

    rows: dict[Key, Row]
    seconds: float
    peak_bytes: int

    def failed(self, check: str) -> list[Row]:
        """Return the rows of ``check`` that did not pass."""
        return [row for (_, name), row in self.rows.items() if name == check and not row["passed"]]

    def passed(self, check: str) -> list[Row]:
        """Return the rows of ``check`` that passed."""
        return [row for (_, name), row in self.rows.items() if name == check and row["passed"]]


def coverage(
    checks: Sequence[str],
    path: Path,
    *,
    names: Iterable[str] | None = None,
    max_params: int | None = None,
    workers: int = 2,
    timeout: float = 600,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Run checks on architectures and write the rows to ``path``.

    Args:
        checks: Names of checks from ``contract.CHECKS``, in the order in which they run.
        path: File of JSON lines. New rows are added to the existing ones.
        names: Names of the architectures. Default: all of timm.
        max_params: Maximum number of parameters without the classifier. Larger architectures are
            skipped in every check except ``structure``, whose rows must exist.
        workers: Number of processes, each with one thread.
        timeout: Maximum seconds for one row.
        fresh: Run checks again that passed. Checks that failed always run again.
        progress: Called after each row with the check, the number of rows done, and their total.
    """
    make_parent_folder(path)
    started = time.perf_counter()
    requested = sorted(timm.list_models()) if names is None else sorted(set(names))
    rows = {} if fresh and names is None else load(path)
    peak = peak_bytes() or 0
    for check in checks:
        todo = [
            name
            for name in requested
            if (fresh or not rows.get((name, check), {}).get("passed"))
            and _is_small(rows, name, check, max_params)
        ]
        todo.sort(key=lambda name: rows.get((name, "structure"), {}).get("parameters", 0))
        with writing(path), path.open("a", encoding="utf-8") as log:
            for done, (row, worker_peak) in enumerate(_run(check, todo, workers, timeout), 1):
                rows[row["name"], check] = row
                log.write(json.dumps(row) + "\n")
                log.flush()
                peak = max(peak, worker_peak + (peak_bytes() or 0))
                if progress is not None:
                    progress(check, done, len(todo))
    save(path, rows)
    of_requested = {key: row for key, row in rows.items() if key[0] in set(requested)}
    return Summary(of_requested, time.perf_counter() - started, peak)


def load(path: Path) -> dict[Key, Row]:
    """Return the rows of the installed timm version; skip a line that a kill left incomplete."""
    rows: dict[Key, Row] = {}
    if exists(path):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row["timm"] == timm.__version__:
                rows[row["name"], row["check"]] = row
    return rows


def save(path: Path, rows: dict[Key, Row]) -> None:
    """Write the rows in order of name and check, one line each."""
    lines = [json.dumps(rows[key]) for key in sorted(rows)]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def smallest_of_each_family(rows: dict[Key, Row]) -> list[str]:
    """Return, for each family, the architecture with the fewest parameters."""
    smallest: dict[str, Row] = {}
    for row in rows.values():
        if row["check"] == "structure" and row["passed"]:
            best = smallest.get(row["family"])
            order = (row["parameters"], row["name"])
            if best is None or order < (best["parameters"], best["name"]):
                smallest[row["family"]] = row
    return sorted(row["name"] for row in smallest.values())


def match_architectures(globs: str, rows: dict[Key, Row] | None = None) -> list[str]:
    """Return the architectures that match at least one glob.

    Args:
        globs: Globs separated by commas, such as ``resnet*,vit_*``.
        rows: If given, only the smallest architecture of each family in its ``structure`` rows can
            match.

    Raises:
        UnknownArchitecture: Nothing matches.
    """
    known = sorted(timm.list_models()) if rows is None else smallest_of_each_family(rows)
    names = [name for name in known if any(fnmatchcase(name, g) for g in globs.split(","))]
    if not known:
        raise UnknownArchitecture(
            "there are no results of --structure to choose the smallest architectures from: run "
            "headkit coverage --structure with the same --out first"
        )
    if not names:
        raise UnknownArchitecture.with_nearest(globs, known)
    return names


def _is_small(rows: dict[Key, Row], name: str, check: str, max_params: int | None) -> bool:
    if check == "structure" or max_params is None:
        return True
    known = rows.get((name, "structure"))
    return bool(known and known["passed"] and known["parameters"] <= max_params)


def _run(
    check: str, names: Sequence[str], workers: int, timeout: float
) -> Iterable[tuple[Row, int]]:
    """Yield each complete row, with the sum of the workers' peak memory in bytes."""
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(names))
    pool = [_Worker(context) for _ in range(min(workers, len(names)))]
    peaks = [0] * len(pool)
    try:
        while True:
            for worker in pool:
                if worker.name is None and waiting:
                    worker.start(check, waiting.pop())
            busy = {worker.connection: worker for worker in pool if worker.name is not None}
            if not busy:
                return
            ready = wait(list(busy), timeout=1)
            for worker in list(busy.values()):
                if worker.connection in ready or worker.is_overdue(timeout):
                    outcome, peak = worker.finish(timeout)
                    number = pool.index(worker)
                    peaks[number] = max(peaks[number], peak)
                    if not worker.process.is_alive():
                        pool[number] = _Worker(context)
                    yield outcome, sum(peaks)
    finally:
        for worker in pool:
            worker.process.kill()


class _Worker:
    """A process that runs checks. When it dies, ``_run`` replaces it with a new worker."""

    def __init__(self, context: Any) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.name: str | None = None
        self.check = ""
        self.since = 0.0

    def start(self, check: str, name: str) -> None:
        """Send the worker a check."""
        self.check, self.name, self.since = check, name, time.perf_counter()
        with suppress(OSError):  # finish() notices a worker that has died
            self.connection.send((check, name))

    def is_overdue(self, timeout: float) -> bool:
        """Return True if the check takes longer than ``timeout`` seconds."""
        return time.perf_counter() - self.since > timeout

    def finish(self, timeout: float) -> tuple[Row, int]:
        """Return the row of the check and the peak memory in bytes; kill a worker without one."""
        name, peak = self.name, 0
        assert name is not None  # noqa: S101 - the pool calls this for busy workers only
        seconds = time.perf_counter() - self.since
        try:
            if not self.connection.poll():
                self.process.kill()
                outcome: Row = {"passed": False, "error": f"took longer than {timeout:.0f} s"}
            else:
                outcome, peak = self.connection.recv()
        except (EOFError, OSError):  # the process has died
            self.process.join()
            code = self.process.exitcode
            what = f"signal {-code}" if code and code < 0 else f"status {code}"
            outcome = {"passed": False, "error": f"the process ended with {what}"}
        self.process.join(0 if self.process.is_alive() else None)
        self.name = None
        return {**_row_keys(name, self.check), **outcome, "seconds": round(seconds, 2)}, peak


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # otherwise each collection goes through all objects of torch and timm again
    gc.disable()  # collect after each row instead
    while True:
        check, name = connection.recv()
        try:
            outcome: Row = {"passed": True, **CHECKS[check](name)}
        except Exception as error:
            outcome = {"passed": False, "error": f"{type(error).__name__}: {first_line(error)}"}
        gc.collect()
        connection.send((outcome, peak_bytes() or 0))


def _row_keys(name: str, check: str) -> Row:
    return {"name": name, "check": check, "family": family_of(name), "timm": timm.__version__}
