"""Measure a new process: the time from its start to its report, and its memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headkit.adapters.errors import ExportError

TIMEOUT_S = 900


def run_in_process(module: str, *arguments: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Run ``python -m MODULE ARGUMENTS`` in a new process, which must end with ``report``.

    Returns:
        The reported values, and ``seconds`` from the start of the process to its report.

    Raises:
        ExportError: The process fails, or takes longer than ``timeout_s`` seconds.
    """
    start = time.perf_counter()
    try:
        ended = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(
            f"the process `python -m {module}` took longer than {timeout_s:g} s"
        ) from error
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        silent = f"the process `python -m {module}` ended with status {ended.returncode}"
        raise ExportError((lines or [silent])[-1][:300])
    values: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    # All processes of a machine share this clock.
    return {**values, "seconds": values.pop("done_at") - start}


def report(values: Mapping[str, Any]) -> None:
    """Print the values that a process measured, the time of the clock, and its memory as JSON."""
    done_at = time.perf_counter()
    memory = {"peak_bytes": peak_bytes(), "resident_bytes": resident_bytes()}
    print(json.dumps({**values, "done_at": done_at, **memory}))


def peak_bytes() -> int | None:
    """Return the peak resident memory of this process, or None if the system does not report it.

    On Linux ``ru_maxrss`` includes the peak of the parent process, so ``/proc`` is read first.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def resident_bytes() -> int | None:
    """Return the resident memory of this process, or None if the system does not report it."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return None
    import os

    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
