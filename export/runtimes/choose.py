"""Choose the runtime that extracts features."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from headkit.adapters.errors import DependencyMissing, HeadkitError
from headkit.adapters.features.runtime import PRECISIONS, Precision, Runtime

from .table import ANY_DEVICE, RUNTIMES

if TYPE_CHECKING:
    from torch import nn

FASTEST: dict[Precision, tuple[str, ...]] = {
    "fp32": ("onnxruntime", "torch"),
    "bf16": ("openvino", "torch"),
}
"""Runtimes that ``auto`` tries in this order for a backbone on a CPU. Elsewhere it uses torch."""


def choose_runtime(
    name: str, precision: str, model: nn.Module, threads: int | None = None
) -> Runtime:
    """Return the runtime of a name, or with ``auto`` the fastest one that is installed.

    Args:
        name: Key of ``RUNTIMES`` that extracts features, or ``auto``.
        precision: ``fp32`` or ``bf16``.
        model: The backbone, on its device.
        threads: Number of CPU threads. Default: one per core.

    Raises:
        DependencyMissing: The runtime is not installed.
        HeadkitError: There is no such runtime, or it does not support the precision or the device.
    """
    device = next(model.parameters()).device.type
    rows = {key: row for key, row in RUNTIMES.items() if row.extraction}
    if precision not in PRECISIONS:
        raise HeadkitError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if name == "auto":
        candidates = FASTEST[precision] if device == "cpu" else ("torch",)
        name = next(one for one in candidates if find_spec(rows[one].module))
    if name not in rows:
        raise HeadkitError(f"runtime is {name!r}, expected one of auto, {', '.join(rows)}")
    row = rows[name]
    if precision not in row.extraction.get(device, row.extraction.get(ANY_DEVICE, ())):
        offers = "; ".join(f"{' or '.join(some)} on {on}" for on, some in row.extraction.items())
        raise HeadkitError(
            f"the runtime {name!r} supports {offers}, but {precision} on {device} was requested"
        )
    if find_spec(row.module) is None:
        raise DependencyMissing.for_feature(f"the runtime {name!r}", row.package)
    return row.load_module().extraction_runtime(precision, threads)
