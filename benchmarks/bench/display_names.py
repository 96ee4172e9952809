"""How tables and plots name ways to run a model, and what they say of those that cannot run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from headkit.export.runtimes.inference import config_name

ONNXRUNTIME = "onnxruntime fp32"
"""What the other runtimes and precisions are set against."""


def label(row: Mapping[str, Any]) -> str:
    """Return runtime, precision and device of a row; the CPU goes without saying."""
    return config_name(row["runtime"], row["precision"], row["device"])


def unmeasured(absent: Iterable[Mapping[str, Any]], models: Collection[str]) -> list[str]:
    """Return a line for each reason why something was not measured.

    Args:
        absent: rows of ``bench``.
        models: all that were asked for; those that a line is about are named if they are not all.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for row in absent:
        found.setdefault((row["reason"], label(row)), set()).add(row["model"])
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (reason, name), of_models in found.items():
        grouped.setdefault((reason, tuple(sorted(of_models))), []).append(name)
    lines = []
    for (reason, concerned), names in grouped.items():
        of = "" if set(concerned) == set(models) else f" of {', '.join(concerned)}"
        lines.append(f"Not measured: {', '.join(names)}{of}: {reason}")
    return lines
