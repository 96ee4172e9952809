"""A worker process under watch: it is killed if it hangs or takes too much memory."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

SECONDS = 5.0
"""Longest time for one input, without the time that the process waits for a free processor."""
BYTES = 10**9
"""Largest growth of the memory for one input."""
START_SECONDS = 300.0
MAKING_BYTES = 2 * 10**9
"""Largest growth of the memory while the fuzzer makes an input."""
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Outcome:
    """What happened to one input.

    Attributes:
        result: ``accepted``, ``refused``, ``raw_errors``, ``hangs`` or ``over_memory``.
        seconds: Time that it took.
        mb: Growth of the memory at its peak, in MB (10^6 bytes).
        error: The message of the error, or how the worker died.
    """

    result: str
    seconds: float
    mb: float
    error: str = ""

    @property
    def is_fault(self) -> bool:
        """True if the input was neither accepted nor refused."""
        return self.result not in ("accepted", "refused")


class WatchedWorker:
    """A worker for one door. After a fault that kills it, the next input starts another one.

    Args:
        command: Arguments of Python that start the worker: a module and its arguments. A folder for
            its files is put after ``arguments``.
        seconds: Longest time for one input.
        max_bytes: Largest growth of the memory for one input.
    """

    def __init__(
        self,
        command: Any,
        seconds: float = SECONDS,
        max_bytes: int = BYTES,
    ) -> None:
        self._command, self.seconds, self.max_bytes = command, seconds, max_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove its files."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        self._unread = b""

    def attempt(self, command: str) -> Outcome:
        """Pass an input through the door: ``try NUMBER`` or ``file PATH``.

        A fault counts only if it happens again in a new process: the machine may have been busy,
        or an earlier input may have left something behind.
        """
        outcome = self._attempt_once(command)
        if outcome.is_fault:
            self.close()
            outcome = self._attempt_once(command)
        return outcome

    def write_input(self, number: int, path: Path) -> None:
        """Write an input to a file."""
        self._start()
        self._send(f"write {number} {path}")
        if self._wait(START_SECONDS, None)[0] is None:
            raise RuntimeError(f"the worker cannot write input {number}")

    def _attempt_once(self, command: str) -> Outcome:
        self._start()
        assert self._process is not None  # noqa: S101  (for mypy)
        self._send(command)
        if self._wait(START_SECONDS, _resident(self._process.pid) + MAKING_BYTES)[0] is None:
            self.close()
            raise RuntimeError(f"the worker cannot make the input of {command!r}")
        before, start = _resident(self._process.pid), time.perf_counter()
        waited = _waited(self._process.pid)
        answer, why = self._wait(self.seconds, before + self.max_bytes)
        seconds = time.perf_counter() - start + waited - _waited(self._process.pid)
        if answer is not None:
            outcome = Outcome(**{**answer, "seconds": min(answer["seconds"], max(seconds, 0.0))})
            if outcome.seconds > self.seconds:
                return Outcome("hangs", outcome.seconds, outcome.mb, outcome.error)
            if outcome.mb * 1e6 > self.max_bytes and not outcome.is_fault:
                return Outcome("over_memory", outcome.seconds, outcome.mb, outcome.error)
            return outcome
        mb = (_resident(self._process.pid) - before) / 1e6
        error = ""
        if why == "raw_errors":
            self._process.wait()
            code = self._process.returncode
            error = f"the process died: {_signal_name(code)}"
        self.close()
        return Outcome(why, seconds, max(mb, 0.0), error)

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._folder = tempfile.TemporaryDirectory(prefix="headkit-fuzzing-")
        command = [sys.executable, "-m", *self._command(self._folder.name)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if self._wait(START_SECONDS, None)[0] is None:
            self.close()
            shown = " ".join(command[1:])
            raise RuntimeError(f"the worker does not start: run python {shown} to see why")

    def _send(self, command: str) -> None:
        assert self._process is not None  # noqa: S101  (for mypy)
        assert self._process.stdin is not None  # noqa: S101  (for mypy)
        try:
            self._process.stdin.write(f"{command}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:  # ``_wait`` reports that the process died
            pass

    def _wait(self, seconds: float, max_bytes: int | None) -> tuple[Any, str]:
        """Return the answer, or None and why there is none."""
        assert self._process is not None  # noqa: S101  (for mypy)
        assert self._process.stdout is not None  # noqa: S101  (for mypy)
        stream = self._process.stdout.fileno()
        start, waited = time.perf_counter(), _waited(self._process.pid)
        while b"\n" not in self._unread:
            left = start + seconds - time.perf_counter()
            if left <= 0:
                left += _waited(self._process.pid) - waited
            if left <= 0:
                return None, "hangs"
            if max_bytes is not None and _resident(self._process.pid) > max_bytes:
                return None, "over_memory"
            if select.select([stream], [], [], min(_POLL_SECONDS, left))[0]:
                received = os.read(stream, 65_536)
                if not received:
                    return None, "raw_errors"
                self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line), ""


def _resident(pid: int) -> int:
    """Return the bytes of memory that a process uses; 0 where the system does not report it."""
    try:
        with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123 - as fast as possible
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _waited(pid: int) -> float:
    """Return the seconds that a process waited for a free processor; 0 where nobody counts them."""
    try:
        with open(f"/proc/{pid}/schedstat") as file:  # noqa: PTH123 - as fast as possible
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _signal_name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"status {code}"
