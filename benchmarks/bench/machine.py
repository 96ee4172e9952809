"""Describe the machine and the library versions of a measurement."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Instruction sets of x86 processors that affect the speed of a precision, as Linux names them."""
PACKAGES = (
    *("headkit", "numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "timm", "torch"),
    *("openvino", "timmx", "onnxslim"),
)


def machine() -> dict[str, object]:
    """Return processor, number of usable cores, system, and versions of Python and packages."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: value for name in PACKAGES if (value := package_version(name))},
    }


def package_version(name: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the name of the processor, with its instruction sets from ``INSTRUCTIONS``."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = info.read_text(errors="replace").splitlines()
    values = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    name = values.get("model name") or platform.machine()
    flags = set(values.get("flags", "").split())
    known = ", ".join(one for one in INSTRUCTIONS if one in flags)
    return f"{name} ({known})" if known else name
