"""Measure a server whose store hangs, and one that hostile clients use.

Run ``python -m headkit.benchmarks.studies.security.serving [SECTION …]`` with the sections
``hanging_store`` and ``hostile_clients``; the default is both. It writes
``benchmarks/results/security/serving.json`` after each section and keeps the other section. Needs
``headkit[dev]`` and Linux.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..sections import run_sections
from . import hanging_store, hostile_clients

RESULT = Path(__file__).parents[2] / "results" / "security" / "serving.json"
SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "hanging_store": hanging_store.measure,
    "hostile_clients": hostile_clients.measure,
}

if __name__ == "__main__":
    run_sections(__doc__, RESULT, SECTIONS)
