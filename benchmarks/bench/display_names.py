"""How tables and plots name ways to run a model, and what they say of those that cannot run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from headkit.export.runtimes.inference import config_name

ONNXRUNTIME = "onnxruntime fp32"
"""The runtime and precision that the others are compared with."""


def format_label(row: Mapping[str, Any]) -> str:
    """Return runtime, precision and device of a row, without the device if it is the CPU."""
    return config_name(row["runtime"], row["precision"], row["device"])


def describe_unmeasured(absent: Iterable[Mapping[str, Any]], models: Collection[str]) -> list[str]:
    """Return a line for each reason why something was not measured.

    Args:
        absent: Rows ``absent`` of ``bench``.
        models: Names of all requested models. A line names its models unless it is about all.
    """
    models_by_cause: dict[tuple[str, str], set[str]] = {}
    for row in absent:
        models_by_cause.setdefault((row["reason"], format_label(row)), set()).add(row["model"])
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (reason, name), concerned in models_by_cause.items():
        grouped.setdefault((reason, tuple(sorted(concerned))), []).append(name)
    lines = []
    for (reason, own), names in grouped.items():
        of_models = "" if set(own) == set(models) else f" for {', '.join(own)}"
        lines.append(f"Not measured: {', '.join(names)}{of_models}. Reason: {reason.rstrip('.')}.")
    return lines
