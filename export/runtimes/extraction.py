"""Engines that run a backbone from its ONNX file while features are extracted."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from timm.models import get_model_args
from torch import nn

from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.backbone.preprocessing import preprocessing, timm_cfg
from headkit.adapters.errors import ExportError, first_line
from headkit.adapters.features.engine import ENGINES, Branches, EngineKind, Pixels, Precision, Run
from headkit.export.exporter import export
from headkit.export.graph.forms import opset_of, put_preprocessing
from headkit.export.graph.onnx_file import write
from headkit.export.preprocess.onnx_graph import normalizing_model
from headkit.export.preprocess.pillow import Preprocess

from .onnxruntime import open_session
from .openvino import openvino_core

MAX_STREAMS = 4
"""Each keeps the activations of a batch in memory."""
_MAKERS = ("headkit", "onnxscript", "timm", "torch")


@dataclass(frozen=True)
class OnnxEngine:
    """ONNX Runtime on the CPU."""

    precision: Precision = "fp32"
    threads: int | None = None
    name: str = "onnxruntime"
    streams: int = 1

    @property
    def versions(self) -> dict[str, str]:
        """Of ONNX Runtime, and of what converts the backbone."""
        return {name: version(name) for name in ("onnxruntime", *_MAKERS)}

    def start(self, model: nn.Module, folder: Path, _batch_size: int, /) -> Run:
        """See ``Engine``."""
        session = open_session(onnx_backbone(model, folder), self.threads)

        def run(pixels: Pixels) -> Branches:
            return _branches(session.run(None, {"image": pixels}))

        return run


@dataclass(frozen=True)
class OpenVinoEngine:
    """OpenVINO on the CPU; bfloat16 where the processor has it."""

    precision: Precision = "fp32"
    threads: int | None = None
    name: str = "openvino"

    @property
    def streams(self) -> int:
        """Batches that run at once: threads that share one wait for each other at each layer."""
        return min(MAX_STREAMS, self.threads or os.cpu_count() or 1)

    @property
    def versions(self) -> dict[str, str]:
        """Of OpenVINO, and of what converts the backbone."""
        return {name: version(name) for name in ("openvino", *_MAKERS)}

    def start(self, model: nn.Module, folder: Path, batch_size: int, /) -> Run:
        """See ``Engine``."""
        # Without ONNX Runtime's own operators, which OpenVINO does not know.
        path = onnx_backbone(model, folder, optimize=False)
        hint = {"fp32": "f32", "bf16": "bf16"}[self.precision]
        try:
            core = openvino_core()
            options: dict[str, Any] = {
                "INFERENCE_PRECISION_HINT": hint,
                "NUM_STREAMS": self.streams,
            }
            if self.threads is not None:
                options["INFERENCE_NUM_THREADS"] = self.threads
            if hint == "bf16" and "BF16" not in core.get_property(
                "CPU", "OPTIMIZATION_CAPABILITIES"
            ):
                raise ExportError("this processor has no bfloat16: ask for precision fp32")
            graph = core.read_model(path)
            graph.reshape([batch_size, *graph.input(0).partial_shape[1:]])
            compiled = core.compile_model(graph, "CPU", options)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot run {path}: {first_line(error)}") from error

        own = threading.local()

        def run(pixels: Pixels) -> Branches:
            if not hasattr(own, "request"):
                own.request = compiled.create_infer_request()
            return _branches([np.array(value) for value in own.request.infer([pixels]).values()])

        return run


def onnx_backbone(model: nn.Module, folder: Path, *, optimize: bool = True) -> Path:
    """Return the ONNX file of a backbone: the one in ``folder``, or a new, verified one.

    Input ``image`` uint8 ``[batch, 3, H, W]``, resized and cropped; outputs ``features``, ….

    Raises:
        ExportError: see ``export``.
    """
    cfg = preprocessing(model)
    key = {
        "fingerprint": backbone_info(model).fingerprint,
        "model_args": {k: str(v) for k, v in get_model_args(model).items() if k != "num_classes"},
        "preprocessing": cfg,
        "optimize": optimize,
        "versions": {name: version(name) for name in _MAKERS},
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = folder / f"{timm_cfg(model)['architecture']}-{digest}.onnx"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as made:
        plain = export(model, Path(made) / "backbone.onnx", "backbone", optimize=optimize).path
        graph = onnx.load(plain)
    try:
        preprocess = Preprocess.from_cfg(cfg)
    except ValueError as error:
        raise ExportError(str(error)) from error
    put_preprocessing(graph, normalizing_model(preprocess, opset_of(graph)))
    write(graph, path)
    return path


def _branches(outputs: Sequence[Any]) -> Branches:
    return tuple(np.asarray(output, np.float32) for output in outputs)


ENGINES["onnxruntime"] = EngineKind(OnnxEngine, "onnxruntime", "onnxruntime", ("fp32",), ("cpu",))
ENGINES["openvino"] = EngineKind(OpenVinoEngine, "openvino", "openvino", ("fp32", "bf16"), ("cpu",))
