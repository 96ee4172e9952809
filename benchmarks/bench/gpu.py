"""Time calls and copies on a GPU with CUDA events."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from headkit.export.runtimes.inference import Array

from .timing import Call, Milliseconds


def time_by_events(call: Call, stream: Any = None) -> Call:
    """Return a call that runs ``call`` and returns the time of its work on the GPU.

    The time that Python takes to launch the work does not count.

    Args:
        call: Function that launches work on the GPU.
        stream: torch's CUDA stream on which the work runs. Default: torch's current stream.
    """
    import torch

    def timed() -> Milliseconds:
        start, end = _events()
        context: AbstractContextManager[Any] = (
            nullcontext() if stream is None else torch.cuda.stream(stream)
        )
        with context:
            start.record()
            call()
            end.record()
        end.synchronize()
        return Milliseconds(start.elapsed_time(end))

    return timed


def measure_copy_ms(x: Array, logits: Array) -> float:
    """Return the milliseconds to copy images to the GPU and logits back; the median of 10 runs."""
    import torch

    host, back = torch.from_numpy(x).pin_memory(), torch.from_numpy(logits).to("cuda")
    milliseconds = []
    for _ in range(10):
        start, end = _events()
        start.record()
        host.to("cuda", non_blocking=True)
        back.to("cpu")
        end.record()
        end.synchronize()
        milliseconds.append(start.elapsed_time(end))
    return float(np.median(milliseconds))


def _events() -> tuple[Any, Any]:
    import torch

    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    return start, end
