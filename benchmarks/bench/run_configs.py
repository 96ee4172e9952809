"""List the ways to run a model that are measured, and explain why one cannot run here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

from headkit.adapters.compat import multiplies_bfloat16
from headkit.adapters.errors import DependencyMissing
from headkit.export.runtimes.inference import RunConfig
from headkit.export.runtimes.table import DEVICES, PRECISIONS, RUNTIMES


def explain_absence(config: RunConfig) -> str:
    """Return why a model cannot run in this way on this machine, or an empty string if it can."""
    runtime = RUNTIMES[config.runtime]
    if find_spec(runtime.module) is None:
        return str(DependencyMissing.for_feature(config.runtime, runtime.package))
    if runtime.module == "torch" and (config.precision, config.device) == ("bf16", "cpu"):
        return "" if multiplies_bfloat16() else "torch has no bfloat16 kernels for this processor"
    if config.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "there is no GPU that torch can use"
        name = runtime.provider_on(config.device)
        if name:
            import onnxruntime as ort

            provider = runtime.providers[name]
            if provider.execution not in ort.get_available_providers():
                return str(
                    DependencyMissing.for_feature(f"the provider {name!r}", provider.package)
                )
    return ""


def run_configs(
    runtimes: Sequence[str], precisions: Sequence[str], devices: Sequence[str], threads: int
) -> list[RunConfig]:
    """Return the combinations of these values that the table of runtimes has."""
    return [
        RunConfig(name, precision, device, threads)
        for name in runtimes
        for device in devices
        for precision in RUNTIMES[name].inference.get(device, ())
        if precision in precisions
    ]


def missing_configs(
    runtimes: Sequence[str],
    precisions: Sequence[str] | None,
    devices: Sequence[str] | None,
    threads: int,
) -> list[RunConfig]:
    """Return the combinations that were requested by name and that the table of runtimes lacks."""
    return [
        RunConfig(name, precision, device, threads)
        for name in runtimes
        for device in devices or DEVICES
        for precision in precisions or _list_precisions(name)
        if precision not in RUNTIMES[name].inference.get(device, ())
        and (precisions or (devices and device not in RUNTIMES[name].inference))
    ]


def _list_precisions(name: str) -> list[str]:
    own = RUNTIMES[name].inference.values()
    return [precision for precision in PRECISIONS if any(precision in some for some in own)]


def cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
