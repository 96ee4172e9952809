"""Run a benchmark by sections: each writes its part of the result as soon as it is measured."""

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
    """Measure the sections that the command line names, or all; keep the others as they are.

    Args:
        description: for ``--help``.
        result: JSON file with an object per section, unless ``--result`` names another.
        sections: by name; each gets a folder for its files, gone afterwards.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("sections", nargs="*", choices=[[], *sections])
    parser.add_argument("--result", type=Path, default=result, help="file to write")
    options = parser.parse_args()
    result, asked = options.result, options.sections or list(sections)
    found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    for name in asked:
        with tempfile.TemporaryDirectory(prefix="headkit-") as folder:
            found[name] = {**sections[name](Path(folder)), "machine": machine()}
        found = {one: found[one] for one in sections if one in found}
        write_atomically(result, (json.dumps(found, indent=1) + "\n").encode())
        print(name, json.dumps(found[name]))
