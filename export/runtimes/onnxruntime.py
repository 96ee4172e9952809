"""Run models with ONNX Runtime, on the requested execution provider and on no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.errors import DependencyMissing, ExportError, first_line
from headkit.adapters.features.runtime import Branches, Pixels, Precision, Run
from headkit.export.graph.wire_format import external_locations, with_outputs

from .inference import Array, InferenceModel, LoadedModel, RunConfig
from .model_source import ModelLike, ModelSource
from .providers import ProviderName, ProviderOptions, Providers, choose_providers
from .table import RUNTIMES

if TYPE_CHECKING:  # running an exported model needs no torch
    from torch import nn

try:
    import onnxruntime as ort
except ImportError as missing:
    raise DependencyMissing.for_feature("running an exported model", "onnxruntime") from missing

_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's option for the folder of a model's external data if it opens bytes."""
_DATA_FOLDER_SINCE = (1, 21)


def open_session(
    model: ModelLike | ModelSource,
    threads: int | None = None,
    provider: ProviderName | Sequence[ProviderName] | Providers = "cpu",
    provider_options: ProviderOptions | None = None,
    outputs: Mapping[str, Sequence[int | str]] | None = None,
) -> ort.InferenceSession:
    """Open an ONNX model.

    Args:
        model: Path of the file, its content, or an open binary file. External data must be in the
            folder of the file.
        threads: Number of CPU threads. Default: one per core.
        provider: See ``choose_providers``.
        provider_options: See ``choose_providers``.
        outputs: Shapes of float32 values inside the graph that the session shall also output, by
            name.

    Raises:
        ExportError: There is no such file, its external data are missing, or ONNX Runtime cannot
            read it or start the provider.
        DependencyMissing: The provider is not installed.
    """
    requested = (
        provider
        if isinstance(provider, Providers)
        else choose_providers(provider, provider_options)
    )
    source = model if isinstance(model, ModelSource) else ModelSource.of(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    content: Path | bytes = source.path or source.content
    if outputs:
        content = with_outputs(source.read(), outputs)
        if source.path is not None and external_locations(content):
            _check_data_folder(source)
            options.add_session_config_entry(_DATA_FOLDER, str(source.path.parent))
    execution = list(zip(requested.executions, map(dict, requested.options), strict=True))
    try:
        # With its fallback, ONNX Runtime would go on with other providers after an error.
        session = ort.InferenceSession(content, options, providers=execution, enable_fallback=0)
    except Exception as error:  # onnxruntime's own classes share no root below Exception
        reason = source.explain(first_line(error))
        raise ExportError(f"cannot read {source.noun}: {reason}") from error
    if tuple(session.get_providers()[: len(execution)]) != requested.executions:
        names = ", ".join(map(repr, requested.names))
        raise ExportError(
            f"ONNX Runtime has the provider {names} but cannot start it on this machine: "
            "check its driver and libraries, or use the provider 'cpu'"
        )
    return session


def _check_data_folder(source: ModelSource) -> None:
    major, minor, *_ = ort.__version__.split(".")
    if (int(major), int(minor)) < _DATA_FOLDER_SINCE:
        raise ExportError(
            f"more outputs of {source.noun}, whose weights are in a separate file, need ONNX "
            f"Runtime {'.'.join(map(str, _DATA_FOLDER_SINCE))} or newer, found {ort.__version__}: "
            "pip install -U onnxruntime"
        )


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

    def start(
        self,
        model: nn.Module,
        folder: Path,
        _batch_size: int,
        /,
        levels: str | Sequence[str] = (),
    ) -> Run:
        """See ``Runtime``."""
        from .onnx_backbone import onnx_backbone

        session = open_session(onnx_backbone(model, folder, levels=levels), self.threads)

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
