"""Run models with ONNX Runtime, on the requested execution provider and on no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.errors import DependencyMissing, ExportError, first_line
from headkit.adapters.features.runtime import Branches, Pixels, Precision, Run
from headkit.adapters.file_kinds import MODEL, explain_wrong_kind

from .inference import Array, InferenceModel, LoadedModel, RunConfig
from .table import RUNTIMES, providers

if TYPE_CHECKING:  # running an exported model needs no torch
    from torch import nn

try:
    import onnxruntime as ort
except ImportError as missing:
    raise DependencyMissing.for_feature("running an exported model", "onnxruntime") from missing


def open_session(
    path: str | Path,
    threads: int | None = None,
    provider: str = "cpu",
    provider_options: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """Open an ONNX file.

    Args:
        path: Path of the file. Its external data must be in the same folder.
        threads: Number of CPU threads. Default: one per core.
        provider: Key of ``table.providers()``.
        provider_options: See ONNX Runtime's documentation of the provider.

    Raises:
        ExportError: There is no such file, its external data are missing, or ONNX Runtime cannot
            read it or start the provider.
        DependencyMissing: The provider is not installed.
    """
    known = providers()
    if provider not in known:
        raise ExportError(f"provider is {provider!r}, expected one of {', '.join(known)}")
    requested = known[provider]
    if requested.execution not in ort.get_available_providers():
        raise DependencyMissing.for_feature(f"the provider {provider!r}", requested.package)
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"cannot read model {path}: no such file")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        execution = [(requested.execution, dict(provider_options or {}))]
        session = ort.InferenceSession(path, options, providers=execution)
    except Exception as error:  # onnxruntime's own classes share no root below Exception
        raise ExportError(f"cannot read model {path}: {_explain(path, error)}") from error
    if session.get_providers()[0] != requested.execution:
        raise ExportError(
            f"ONNX Runtime has the provider {provider!r} but cannot start it on this machine: "
            "check its driver and libraries, or use the provider 'cpu'"
        )
    return session


@dataclass(frozen=True)
class OnnxRuntime:
    """Extraction of features with ONNX Runtime on the CPU."""

    precision: Precision = "fp32"
    threads: int | None = None
    name: str = "onnxruntime"
    streams: int = 1

    @property
    def versions(self) -> dict[str, str]:
        """Versions of ONNX Runtime and of the packages that convert the backbone."""
        from .onnx_backbone import converter_versions

        return {"onnxruntime": version("onnxruntime"), **converter_versions()}

    def start(self, model: nn.Module, folder: Path, _batch_size: int, /) -> Run:
        """See ``Runtime``."""
        from .onnx_backbone import onnx_backbone

        session = open_session(onnx_backbone(model, folder), self.threads)

        def run(pixels: Pixels) -> Branches:
            outputs = session.run(None, {"image": pixels})
            return tuple(np.asarray(output, np.float32) for output in outputs)

        return run


def extraction_runtime(precision: Precision, threads: int | None) -> OnnxRuntime:
    """See ``RuntimeModule``."""
    return OnnxRuntime(precision, threads)


def load(model: InferenceModel, config: RunConfig, _batch_size: int) -> LoadedModel:
    """See ``RuntimeModule``. A GPU uses CUDA, or TensorRT for the runtime ``tensorrt``."""
    path = model.onnx(config.precision)
    if config.device != "cpu":
        return _load_on_gpu(path, config)
    session = open_session(path, config.threads)
    name = session.get_inputs()[0].name

    def run(x: Array) -> Array:
        return np.asarray(session.run(None, {name: x})[0], np.float32)

    return LoadedModel(run, lambda x: lambda: session.run(None, {name: x}))


def _load_on_gpu(path: Path, config: RunConfig) -> LoadedModel:
    """Bind inputs and outputs to the device; the kernels run on a stream of torch."""
    import torch

    provider = RUNTIMES[config.runtime].provider_on(config.device)
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    session = open_session(
        path, config.threads, provider, {"user_compute_stream": str(stream.cuda_stream)}
    )
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def bind_arrays(x: Array) -> Any:
        binding = session.io_binding()
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0))
        binding.bind_output(output, "cuda")
        return binding

    def run(x: Array) -> Array:
        binding = bind_arrays(x)
        session.run_with_iobinding(binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0], np.float32)

    def bind(x: Array) -> Callable[[], object]:
        binding = bind_arrays(x)
        return lambda: session.run_with_iobinding(binding)

    return LoadedModel(run, bind, stream)


def _explain(path: Path, error: BaseException) -> str:
    """Return why a file cannot be opened. ONNX Runtime names neither a head nor missing data."""
    mistake = explain_wrong_kind(path, MODEL)
    if mistake is not None:
        return f"{mistake}; `headkit export` makes a model from a head"
    try:
        from headkit.export.graph.onnx_file import missing_data
    except ImportError:  # a deployment without the package onnx
        return first_line(error)
    missing = missing_data(path)
    if missing:
        return f"its external data {', '.join(missing)} is missing"
    return first_line(error)
