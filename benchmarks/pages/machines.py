"""Say what figures were measured with: every block of a page has its own line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_PACKAGES = ("torch", "timm", "onnxruntime", "openvino")


def measured_with(machine: Mapping[str, Any]) -> str:
    """Return the sentence that names versions, cores and processor."""
    packages = [f"{name} {machine['packages'][name]}" for name in _PACKAGES if _has(machine, name)]
    named = f"{', '.join(packages[:-1])} and {packages[-1]}"
    return f"Measured with {named} on {machine['cores']} cores of {machine['processor']}."


def machines(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence for the machine of all sections; where several are, it names its sections.

    Args:
        result: by section what was measured, with the ``machine`` beside it.
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
