"""Render the results of the study ``levels``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headkit.benchmarks.studies.levels import ARCHITECTURES, BATCHES

from .machines import machines
from .wording import MISSING

_ABOUT = """`python -m headkit.benchmarks.studies.levels` times models in turns with ONNX Runtime on
one core. The table shows ratios of these times. "All levels" is a backbone with all its levels as
outputs, compared with the backbone that returns the last features alone. "100 heads" is a model
with a hundred heads over all levels, compared with the same model with one of them."""


def tables(path: Path) -> str:
    """Return tables of the run time with levels, and the time to fit a head.

    Args:
        path: The file of results, which may be absent.
    """
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    parts = [_ABOUT, _ratios(found)]
    if "fit" in found:
        parts.append(_fit(found["fit"]))
    return "\n\n".join([*parts, *(machines(found) if found else [])])


def _ratios(found: Mapping[str, Any]) -> str:
    lines = ["| backbone | batch | all levels | 100 heads |", "| --- | --- | --- | --- |"]
    columns = [
        {(row["architecture"], row["batch"]): row["ratio"] for row in found[name]["rows"]}
        if name in found
        else {}
        for name in ("outputs", "heads")
    ]
    for name in ARCHITECTURES:
        for batch in BATCHES:
            ratios = [column.get((name, batch)) for column in columns]
            shown = [MISSING if ratio is None else f"{ratio:.3f}" for ratio in ratios]
            lines.append(f"| {name} | {batch} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _fit(fit: Mapping[str, Any]) -> str:
    seconds = statistics.median(fit["cpu_seconds"])
    return (
        f"A fit on {fit['images']:,} images of {fit['classes']} classes with {fit['features']:,} "
        f"features takes {seconds:.1f} s of one core. That includes the choice among "
        f"{fit['candidates']} sets of levels and all strengths, the head, and nested "
        "cross-validation."
    )
