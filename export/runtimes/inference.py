"""Types that all runtimes share: a model to run, the way to run it, and the loaded model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RunConfig:
    """One way to run a model.

    Attributes:
        runtime: Key of ``table.RUNTIMES``.
        precision: Precision of the arithmetic.
        device: ``cpu`` or ``cuda``.
        threads: Number of CPU threads.
    """

    runtime: str
    precision: str
    device: str
    threads: int

    def __str__(self) -> str:
        return config_name(self.runtime, self.precision, self.device)


def config_name(runtime: str, precision: str, device: str) -> str:
    """Return the name of a way to run a model in tables, which omits the device if it is a CPU."""
    return f"{runtime} {precision}{'' if device == 'cpu' else f' {device}'}"


class InferenceModel(Protocol):
    """A model that provides the form that each runtime loads."""

    @property
    def input_size(self) -> tuple[int, ...]:
        """Shape of one input image, ``(channels, height, width)``."""
        ...

    def module(self) -> Any:
        """Return the model as a new torch module in eval mode on the CPU.

        Raises:
            ExportError: torch cannot run the model.
        """
        ...

    def onnx(self, precision: str = "fp32", *, optimized: bool = True) -> Path:
        """Return the ONNX file.

        Args:
            precision: Precision of the backbone.
            optimized: Whether the file may contain ONNX Runtime's own operators, which other
                runtimes do not support.

        Raises:
            ExportError: The model does not exist in this precision.
        """
        ...


@dataclass(frozen=True)
class LoadedModel:
    """A model that is loaded for one batch size.

    Attributes:
        run: Function from images ``[batch, *input_size]`` to logits float32
            ``[batch, num_classes]``.
        bind: Function from images to a call that computes their logits. On a GPU, the images are
            already in its memory, nothing is copied back, and the call may return before the
            logits are computed.
        stream: torch's CUDA stream on which the calls of ``bind`` run. If None, torch's current
            stream.
    """

    run: Callable[[Array], Array]
    bind: Callable[[Array], Callable[[], object]]
    stream: Any = None
