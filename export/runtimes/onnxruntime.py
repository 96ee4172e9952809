"""Open an ONNX file in ONNX Runtime, on the provider that was asked for and on no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headkit.adapters.errors import DependencyMissing, ExportError, first_line
from headkit.adapters.file_kinds import MODEL, mistaken

try:
    import onnxruntime as ort
except ImportError as missing:
    raise DependencyMissing.for_feature("running an exported model", "onnxruntime") from missing


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's execution providers.

    Attributes:
        execution: ONNX Runtime's name of it.
        package: what installs it.
        device: where its tensors lie, as ``OrtValue`` calls it.
    """

    execution: str
    package: str
    device: str = "cpu"


PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", "onnxruntime"),
    "cuda": Provider("CUDAExecutionProvider", "onnxruntime-gpu", "cuda"),
    "tensorrt": Provider("TensorrtExecutionProvider", "onnxruntime-gpu tensorrt", "cuda"),
    "openvino": Provider("OpenVINOExecutionProvider", "onnxruntime-openvino"),
}


def open_session(
    path: str | Path,
    threads: int | None = None,
    provider: str = "cpu",
    provider_options: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """Open an ONNX file.

    Args:
        path: of the file; its external data have to lie beside it.
        threads: of the CPU; one per core without it.
        provider: a key of ``PROVIDERS``.
        provider_options: see ONNX Runtime's documentation of that provider.

    Raises:
        ExportError: there is no such file, its external data are missing, or ONNX Runtime cannot
            read it or start the provider.
        DependencyMissing: the provider is not installed.
    """
    if provider not in PROVIDERS:
        raise ExportError(f"provider is {provider!r}, expected one of {', '.join(PROVIDERS)}")
    asked = PROVIDERS[provider]
    if asked.execution not in ort.get_available_providers():
        raise DependencyMissing.for_feature(f"the provider {provider!r}", asked.package)
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"cannot read model {path}: no such file")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        chosen = [(asked.execution, dict(provider_options or {}))]
        session = ort.InferenceSession(path, options, providers=chosen)
    except Exception as error:  # onnxruntime's own classes share no root below Exception
        raise ExportError(f"cannot read model {path}: {_reason(path, error)}") from error
    if session.get_providers()[0] != asked.execution:
        raise ExportError(
            f"ONNX Runtime has the provider {provider!r}, but could not start it on this machine: "
            "look at its driver and libraries, or ask for provider 'cpu'"
        )
    return session


def _reason(path: Path, error: BaseException) -> str:
    """Say that it is no model, or which external data are missing: ONNX Runtime does not."""
    mistake = mistaken(path, MODEL)
    if mistake is not None:
        return f"{mistake}; `headkit export` makes a model from a head"
    try:
        from headkit.export.graph.onnx_file import missing_data
    except ImportError:  # a deployment without the package onnx
        return first_line(error)
    missing = missing_data(path)
    if missing:
        return f"its external data {', '.join(missing)} is not beside it"
    return first_line(error)
