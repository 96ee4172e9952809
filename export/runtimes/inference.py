"""What each runtime shares with those who load models: the model, how to run it, what is loaded."""

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
        runtime: a key of ``table.RUNTIMES``.
        precision: precision of the arithmetic.
        device: ``cpu`` or ``cuda``.
        threads: number of threads on the CPU.
    """

    runtime: str
    precision: str
    device: str
    threads: int

    def __str__(self) -> str:
        return config_name(self.runtime, self.precision, self.device)


def config_name(runtime: str, precision: str, device: str) -> str:
    """Return how tables name a way to run a model; the CPU goes without saying."""
    return f"{runtime} {precision}{'' if device == 'cpu' else f' {device}'}"


class InferenceModel(Protocol):
    """A model that can be had in the form that each runtime takes."""

    @property
    def input_size(self) -> tuple[int, ...]:
        """Shape of one image, as the model takes it."""
        ...

    def module(self) -> Any:
        """Return the model as a torch module in eval mode on the CPU; a new one each time.

        Raises:
            ExportError: the model is none that torch can run.
        """
        ...

    def onnx(self, precision: str = "fp32", *, optimized: bool = True) -> Path:
        """Return the ONNX file.

        Args:
            precision: precision of the backbone.
            optimized: with ONNX Runtime's own operators, which other runtimes do not know.

        Raises:
            ExportError: the model cannot be had in this precision.
        """
        ...


@dataclass(frozen=True)
class LoadedModel:
    """A model that is loaded for one batch size.

    Attributes:
        run: from images, a batch ``[batch, *input_size]``, to logits float32
            ``[batch, num_classes]``.
        bind: from images to a call that computes their logits. On a GPU the images lie there
            already, nothing is copied back, and the call may return before the logits are there.
        stream: torch's stream of the GPU on which the calls of ``bind`` run; torch's current one
            without it.
    """

    run: Callable[[Array], Array]
    bind: Callable[[Array], Callable[[], object]]
    stream: Any = None
