"""Run a function in a process of its own, and end it with SIGKILL at a random moment.

The study's own process imports everything once and starts no thread, so that it can fork. A fork
takes milliseconds, and a new interpreter would take seconds.

The moment is drawn in one of two ways, by turns. One half of the kills come after a time that is
uniform over the time that the writer last took, so they hit long phases, such as computing and
writing large files. The other half come right before the n-th operation of the writer on files
under the slice's folder (open, link, rename, remove, mkdir, scandir, …), where n is uniform over
the number of such operations that the writer last made. So they hit each short step, such as the
one between a record and its check, as often as every other step. Both are learned from runs that
ended by themselves; until there is one, the writer runs to its end.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Say = Callable[..., None]
"""A function that acknowledges something to the study: its arguments are JSON values."""
Writer = Callable[[Path, random.Random, Say], None]
"""What a process does: it gets the slice's folder, a generator, and a function to acknowledge."""

PAUSED, LONGEST_PAUSE = 0.05, 0.1
"""Share of the operations on files before which a process pauses, and for how many seconds at most.
So two processes meet between any two of their steps, as on a busy machine."""
TIMEOUT = 300
"""Seconds after which a process counts as hanging."""
_EVENTS = ("open", "sqlite3.connect", "shutil.rmtree")
"""Operations on files, with all that start with ``os.``."""


@dataclass
class Habits:
    """How long a writer last took, and how many operations on files it made.

    Attributes:
        seconds: Duration of the last run that ended by itself; 0 before there is one.
        operations: Number of its operations on files.
    """

    seconds: float = 0.0
    operations: int = 0


@dataclass
class Outcome:
    """What came of a process.

    Attributes:
        killed: True if it ended by SIGKILL.
        said: What it acknowledged, in order.
        error: Traceback of an error that no writer may raise; empty if there is none.
    """

    killed: bool
    said: list[list[Any]] = field(default_factory=list)
    error: str = ""


class Actor:
    """A process that runs a writer.

    Args:
        writer: What it does.
        folder: The slice's folder.
        seed: Seed of its random choices.
        habits: Habits of this writer; updated if it ends by itself.
        moment: Share of its duration or of its operations after which it is killed, 0 to 1; None
            lets it run to its end.
        by_clock: Draw the moment by the clock, not by operations.
    """

    def __init__(
        self,
        writer: Writer,
        folder: Path,
        seed: int,
        habits: Habits,
        *,
        moment: float | None = None,
        by_clock: bool = True,
    ) -> None:
        self._habits, self._started = habits, time.monotonic()
        if not habits.seconds:
            moment = None
        self._deadline = None
        target = 0
        if moment is not None and by_clock:
            self._deadline = self._started + moment * habits.seconds
        elif moment is not None:
            target = 1 + int(moment * habits.operations)
        self._reading, writing = os.pipe()
        sys.stdout.flush()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._reading)
            _run(writer, folder, seed, writing, target)
        os.close(writing)

    @property
    def deadline(self) -> float | None:
        """Time by ``time.monotonic`` at which the process is to be killed."""
        return self._deadline

    def kill(self) -> None:
        """Send SIGKILL."""
        self._deadline = None
        os.kill(self._pid, signal.SIGKILL)

    def end(self) -> Outcome:
        """Wait until the process ends, and return what came of it."""
        content, hangs = b"", False
        while True:
            until = self._deadline or self._started + TIMEOUT
            if select.select([self._reading], [], [], max(until - time.monotonic(), 0))[0]:
                piece = os.read(self._reading, 65536)
                if not piece:
                    break
                content += piece
            else:
                hangs = self._deadline is None
                self.kill()
        os.close(self._reading)
        _, status = os.waitpid(self._pid, 0)
        seconds = time.monotonic() - self._started
        said = [json.loads(line) for line in content.decode().split("\n")[:-1]]
        outcome = Outcome(os.WIFSIGNALED(status) and not hangs, said)
        if hangs:
            outcome.error = f"the process did not end in {TIMEOUT} s"
        elif not outcome.killed:
            ended = said.pop() if said else ["error", f"it ended with the status {status}"]
            if ended[0] == "error":
                outcome.error = str(ended[1])
            else:
                self._habits.seconds, self._habits.operations = seconds, int(ended[1])
        elif os.WTERMSIG(status) != signal.SIGKILL:
            outcome.error = f"the process ended with the signal {os.WTERMSIG(status)}"
        return outcome


def run_at_once(actors: list[Actor]) -> list[Outcome]:
    """Kill each process at its moment, in the order of the moments, and wait for all."""
    timed = sorted((one for one in actors if one.deadline), key=lambda one: one.deadline or 0)
    ended = {id(one): one.end() for one in timed}
    return [ended.get(id(one)) or one.end() for one in actors]


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, and return its result, a JSON value."""

    def writer(_folder: Path, _generator: random.Random, say: Say) -> None:
        say(function(*arguments))

    outcome = Actor(writer, Path(), 0, Habits()).end()
    if outcome.error:
        raise RuntimeError(outcome.error)
    return outcome.said[0][0]


def _run(writer: Writer, folder: Path, seed: int, writing: int, target: int) -> None:
    """Run a writer in this process, and end the process."""
    count = 0
    prefix, pauses = str(folder), random.Random(seed)  # noqa: S311 - no secret

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if not event.startswith("os.") and event not in _EVENTS:
            return
        if not any(
            isinstance(one, str | Path) and str(one).startswith(prefix) for one in arguments
        ):
            return
        count += 1
        if count == target:
            os.kill(os.getpid(), signal.SIGKILL)
        if pauses.random() < PAUSED:
            time.sleep(pauses.random() * LONGEST_PAUSE)

    def say(*values: Any) -> None:
        os.write(writing, json.dumps(values).encode() + b"\n")

    try:
        if folder != Path():
            sys.addaudithook(on_event)
        writer(folder, random.Random(seed), say)  # noqa: S311 - no secret
        say("end", count)
    except BaseException:
        say("error", traceback.format_exc()[-3000:])
    os._exit(0)
