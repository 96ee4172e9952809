"""The process that passes inputs through one door; ``watched`` starts it, and may kill it.

It reads a command per line, ``try NUMBER``, ``file PATH`` or ``write NUMBER PATH``, and answers
with a JSON object per line. Before it passes an input through the door, it says that it has the
input, because making one may take long.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TextIO

from headkit.adapters.errors import HeadkitError, first_line

from .doors import open_door
from .doors.door import Door
from .seeds import SeedFiles

MB = 1e6


def main(name: str, seeds: Path, folder: Path, seed: int) -> None:
    """Answer commands until the standard input ends."""
    import resource  # not on Windows

    answers = _take_standard_output()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable()
    warnings.simplefilter("ignore")
    door = open_door(name, SeedFiles(seeds), folder)
    gc.collect()
    _answer(answers, {"seeds": len(door.seeds)})
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "write":
            Path(arguments[1]).write_bytes(door.input(name, seed, int(arguments[0])))
            _answer(answers, {})
        else:
            given = (
                door.input(name, seed, int(arguments[0]))
                if command == "try"
                else Path(arguments[0]).read_bytes()
            )
            _answer(answers, {"bytes": len(given)})
            _answer(answers, pass_through(door, given))


def pass_through(door: Door, content: bytes) -> dict[str, object]:
    """Pass an input through a door.

    Returns:
        ``result``: ``accepted``, ``refused`` or ``raw_errors``. ``seconds``; ``mb``: growth of the
        memory at its peak, 0 where the system does not report it; ``error``: the message.
    """
    before = _reset_peak()
    start = time.perf_counter()
    result, message = "accepted", ""
    try:
        door.enter(content)
    except HeadkitError as error:
        result, message = "refused", first_line(error)
    except BaseException as error:
        result, message = "raw_errors", f"{type(error).__name__}: {first_line(error)}"
    seconds = time.perf_counter() - start
    mb = max(_read_status("VmHWM") - before, 0) / MB
    return {"result": result, "seconds": seconds, "mb": mb, "error": message}


def _take_standard_output() -> TextIO:
    """Return the standard output; what libraries print goes nowhere."""
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    return answers


def _answer(answers: TextIO, values: dict[str, object]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _reset_peak() -> int:
    """Let the peak of the memory start anew; return the bytes in use."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux
        return 0
    return _read_status("VmRSS")


def _read_status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
