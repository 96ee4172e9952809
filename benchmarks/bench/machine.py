"""Describe the machine and the libraries that a result was measured with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Of x86 processors, as Linux names them, on which the speed of a precision hangs."""
PACKAGES = (
    *("headkit", "numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "timm", "torch"),
    *("openvino", "timmx", "onnxslim"),
)


def machine() -> dict[str, object]:
    """Return processor, cores that this process may use, system, Python and package versions."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
    }


def package_version(name: str) -> str | None:
    """Return the version of an installed distribution, or none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the name of the processor, with the instructions that fast kernels ask for."""
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
