"""Run a study section by section; write the result after each section."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headkit.adapters.files import write_atomically
from headkit.benchmarks.bench.machine import machine


def run_sections(
    description: str | None, result: Path, sections: Mapping[str, Callable[[Path], dict[str, Any]]]
) -> None:
    """Measure the sections that the command line names, or all; keep the other sections.

    Args:
        description: Text for ``--help``.
        result: Default of ``--result``, a JSON file with an object per section.
        sections: Functions by name of the section. Each takes a temporary folder for its files.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "sections", nargs="*", choices=[[], *sections], help="sections to measure (default: all)"
    )
    parser.add_argument("--result", type=Path, default=result, help="JSON file to write")
    options = parser.parse_args()
    result, requested = options.result, options.sections or list(sections)
    values = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    for name in requested:
        with tempfile.TemporaryDirectory(prefix="headkit-") as folder:
            values[name] = {**sections[name](Path(folder)), "machine": machine()}
        values = {one: values[one] for one in sections if one in values}
        write_atomically(result, (json.dumps(values, indent=1) + "\n").encode())
        print(name, json.dumps(values[name]))
