"""Render the machine and the versions of a measurement as a sentence for its block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_PACKAGES = ("torch", "timm", "onnxruntime", "openvino")


def measured_with(machine: Mapping[str, Any]) -> str:
    """Return a sentence with versions, number of cores and processor."""
    packages = [f"{name} {machine['packages'][name]}" for name in _PACKAGES if _has(machine, name)]
    text = f"{', '.join(packages[:-1])} and {packages[-1]}"
    return f"Measured with {text} (processor: {machine['processor']}, {machine['cores']} cores)."


def machines(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence per machine and set of versions, with its sections if there are several.

    Args:
        result: The sections of a result by name, each with its ``machine``.
    """
    sections: dict[str, list[str]] = {}
    for name, section in result.items():
        sections.setdefault(json.dumps(section["machine"], sort_keys=True), []).append(name)
    if len(sections) == 1:
        return [measured_with(json.loads(machine)) for machine in sections]
    return [
        f"{measured_with(json.loads(machine))} This holds for {', '.join(names)}."
        for machine, names in sections.items()
    ]


def _has(machine: Mapping[str, Any], package: str) -> bool:
    return machine["packages"].get(package) is not None
