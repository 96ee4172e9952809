"""Time calls and copies on a GPU by events of its streams."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from headkit.export.runtimes.inference import Array

from .timing import Call, Milliseconds


def timed_by_events(call: Call, stream: Any = None) -> Call:
    """Return a call that times ``call`` on its stream: launching from Python does not count.

    Args:
        call: launches work on the GPU.
        stream: torch's stream on which that work runs; torch's current one without it.
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


def copy_ms(x: Array, logits: Array) -> float:
    """Return the milliseconds that images take to the GPU, and logits back; a median of 10."""
    import torch

    host, back = torch.from_numpy(x).pin_memory(), torch.from_numpy(logits).to("cuda")
    measured = []
    for _ in range(10):
        start, end = _events()
        start.record()
        host.to("cuda", non_blocking=True)
        back.to("cpu")
        end.record()
        end.synchronize()
        measured.append(start.elapsed_time(end))
    return float(np.median(measured))


def _events() -> tuple[Any, Any]:
    import torch

    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    return start, end
