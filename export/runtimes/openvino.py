"""Run models with OpenVINO on the CPU, in bfloat16 if the processor supports it."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.errors import ExportError, first_line
from headkit.adapters.features.runtime import Branches, Pixels, Precision, Run

from .inference import Array, InferenceModel, LoadedModel, RunConfig

if TYPE_CHECKING:
    from torch import nn

MAX_STREAMS = 4
"""Maximum number of streams. Each stream keeps the activations of a batch in memory."""
_HINTS = {"fp32": "f32", "bf16": "bf16"}


@cache
def openvino_core() -> Any:
    """Return OpenVINO's ``Core``, which exists until the process ends.

    OpenVINO's plugin for CPUs gives the thread that loads it a stack for signals
    (openvinotoolkit/openvino#11894). It frees that stack with the last core or model, while the
    thread may still use it. A signal after that, such as the end of a worker of torch's
    ``DataLoader``, ended the process (openvino 2026.4). A core keeps the plugin loaded.
    """
    import openvino

    return openvino.Core()


def compile_model(
    path: Path,
    batch_size: int,
    precision: str,
    *,
    input_size: Sequence[int] | None = None,
    threads: int | None = None,
    **options: Any,
) -> Any:
    """Compile an ONNX file for the CPU.

    Args:
        path: Path of the file, which has none of ONNX Runtime's own operators.
        batch_size: Number of images per call.
        precision: ``fp32`` or ``bf16``.
        input_size: Shape of one image. Default: the shape in the file.
        threads: Number of CPU threads. Default: one per core.
        **options: Other properties of OpenVINO.

    Returns:
        OpenVINO's ``CompiledModel``.

    Raises:
        ExportError: The processor does not support the precision, or OpenVINO cannot run the model.
    """
    hint = _HINTS[precision]
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        core = openvino_core()
        if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ExportError("this processor does not support bf16: use the precision fp32")
        graph = core.read_model(path)
        size = graph.input(0).partial_shape[1:] if input_size is None else input_size
        graph.reshape([batch_size, *size])
        return core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": hint, **options})
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot run {path.name}: {first_line(error)}") from error


@dataclass(frozen=True)
class OpenVinoRuntime:
    """Extraction of features with OpenVINO on the CPU."""

    precision: Precision = "fp32"
    threads: int | None = None
    name: str = "openvino"

    @property
    def streams(self) -> int:
        """Number of batches at once. Threads that share one wait for each other at each layer."""
        return min(MAX_STREAMS, self.threads or os.cpu_count() or 1)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of OpenVINO and of the packages that convert the backbone."""
        from .onnx_backbone import converter_versions

        return {"openvino": version("openvino"), **converter_versions()}

    def start(
        self,
        model: nn.Module,
        folder: Path,
        batch_size: int,
        /,
        levels: str | Sequence[str] = (),
    ) -> Run:
        """See ``Runtime``."""
        from .onnx_backbone import onnx_backbone

        # OpenVINO does not support ONNX Runtime's own operators.
        path = onnx_backbone(model, folder, optimize=False, levels=levels)
        compiled = compile_model(
            path, batch_size, self.precision, threads=self.threads, NUM_STREAMS=self.streams
        )
        own = threading.local()

        def run(pixels: Pixels) -> Branches:
            if not hasattr(own, "request"):
                own.request = compiled.create_infer_request()
            outputs = own.request.infer([pixels]).values()
            return tuple(np.array(output, np.float32) for output in outputs)

        return run


def extraction_runtime(precision: Precision, threads: int | None) -> OpenVinoRuntime:
    """See ``RuntimeModule``."""
    return OpenVinoRuntime(precision, threads)


def load(model: InferenceModel, config: RunConfig, batch_size: int) -> LoadedModel:
    """See ``RuntimeModule``."""
    compiled = compile_model(
        model.onnx(optimized=False),
        batch_size,
        config.precision,
        input_size=model.input_size,
        threads=config.threads,
        PERFORMANCE_HINT="LATENCY",
    )
    request = compiled.create_infer_request()

    def run(x: Array) -> Array:
        return np.array(next(iter(request.infer([x]).values())), np.float32)

    return LoadedModel(run, lambda x: lambda: request.infer([x], share_inputs=True))
