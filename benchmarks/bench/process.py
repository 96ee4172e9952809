"""Measure a process of its own: from its start until it is done, and its memory."""

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


def in_process(module: str, *arguments: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Run ``python -m MODULE ARGUMENTS``, which ends with ``report``.

    Returns:
        What it reported, and ``seconds`` from the start of the process to its report.

    Raises:
        ExportError: it fails, or takes longer.
    """
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"a new process is not done after {timeout_s:g} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ExportError((lines or [f"a process ended with status {done.returncode}"])[-1][:300])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    # All processes of a machine share this clock.
    return {**found, "seconds": found.pop("done_at") - start}


def report(found: Mapping[str, Any]) -> None:
    """Print what a process found, when it was done, and its memory."""
    done_at = time.perf_counter()
    memory = {"peak_bytes": peak_bytes(), "resident_bytes": resident_bytes()}
    print(json.dumps({**found, "done_at": done_at, **memory}))


def peak_bytes() -> int:
    """Return the most memory that this process had resident.

    Linux counts what the process that started it had into ``ru_maxrss``, hence its own file first.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def resident_bytes() -> int | None:
    """Return the memory that this process has resident now; none where the system does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return None
    import os

    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
