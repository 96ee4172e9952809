"""The table of all runtimes. Reading it imports no runtime, as a row has only a module's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Literal, Protocol, cast

if TYPE_CHECKING:
    from headkit.adapters.features.runtime import Precision, Runtime

    from .inference import InferenceModel, LoadedModel, RunConfig

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
DEVICES = ("cpu", "cuda")
ANY_DEVICE = "any device"
"""Key of ``RuntimeRow.extraction`` for a runtime that runs a backbone on its current device."""


class RuntimeModule(Protocol):
    """The functions of a runtime's module."""

    def extraction_runtime(self, precision: Precision, threads: int | None) -> Runtime:
        """Return the runtime for the extraction of features.

        Args:
            precision: A precision that the row lists for the backbone's device.
            threads: Number of CPU threads. Default: one per core.
        """
        ...

    def load(self, model: InferenceModel, config: RunConfig, batch_size: int) -> LoadedModel:
        """Load a model for inference at one batch size.

        Args:
            model: Provides the form of the model that the runtime loads.
            config: Precision, device and threads. The row lists this precision for this device.
            batch_size: Number of images per call.

        Raises:
            ExportError: The model does not have this form, or the runtime cannot run it.
        """
        ...


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's execution providers.

    Attributes:
        execution: ONNX Runtime's name of the provider.
        package: Packages that pip installs for it.
        device: Device of its tensors, as ``OrtValue`` calls it.
    """

    execution: str
    package: str
    device: str = "cpu"


@dataclass(frozen=True)
class RuntimeRow:
    """One runtime.

    Attributes:
        implementation: Name of headkit's module with the functions of ``RuntimeModule``.
        module: Name of the library that must be importable.
        package: Packages that pip installs for it.
        takes: Form of a model that the runtime loads: a torch ``module``, an ``onnx`` file, or a
            ``plain_onnx`` file without ONNX Runtime's own operators.
        inference: Precisions of inference, by device.
        extraction: Precisions of the extraction of features, by the device of the backbone; empty
            for a runtime that does not extract features.
        providers: ONNX Runtime's execution providers of this runtime, by their names in
            ``Predictor(provider=…)``.
    """

    implementation: str
    module: str
    package: str
    takes: Literal["module", "onnx", "plain_onnx"]
    inference: Mapping[str, tuple[str, ...]]
    extraction: Mapping[str, tuple[Precision, ...]] = field(default_factory=dict)
    providers: Mapping[str, Provider] = field(default_factory=dict)

    def load_module(self) -> RuntimeModule:
        """Import the module of the runtime and return it.

        Raises:
            DependencyMissing: The library is not installed.
        """
        return cast("RuntimeModule", import_module(self.implementation))

    def provider_on(self, device: str) -> str:
        """Return the name of the provider for tensors on ``device``, or an empty string."""
        return next((name for name, one in self.providers.items() if one.device == device), "")


_TORCH = "headkit.export.runtimes.torch"
_TORCH_PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16", "bf16")}
_ONNXRUNTIME = "headkit.export.runtimes.onnxruntime"

RUNTIMES: Mapping[str, RuntimeRow] = {
    "torch": RuntimeRow(
        _TORCH,
        module="torch",
        package="torch",
        takes="module",
        inference=_TORCH_PRECISIONS,
        extraction={ANY_DEVICE: ("fp32", "bf16")},
    ),
    "torch.compile": RuntimeRow(
        _TORCH,
        module="torch",
        package="torch",
        takes="module",
        inference=_TORCH_PRECISIONS,
    ),
    "onnxruntime": RuntimeRow(
        _ONNXRUNTIME,
        module="onnxruntime",
        package="onnxruntime",
        takes="onnx",
        inference={"cpu": ("fp32", "int8"), "cuda": ("fp32", "fp16")},
        extraction={"cpu": ("fp32",)},
        providers={
            "cpu": Provider("CPUExecutionProvider", "onnxruntime"),
            "cuda": Provider("CUDAExecutionProvider", "onnxruntime-gpu", "cuda"),
        },
    ),
    "tensorrt": RuntimeRow(
        _ONNXRUNTIME,
        module="onnxruntime",
        package="onnxruntime-gpu tensorrt",
        takes="onnx",
        inference={"cuda": ("fp32", "fp16")},
        providers={
            "tensorrt": Provider("TensorrtExecutionProvider", "onnxruntime-gpu tensorrt", "cuda")
        },
    ),
    "openvino": RuntimeRow(
        "headkit.export.runtimes.openvino",
        module="openvino",
        package="openvino",
        takes="plain_onnx",
        inference={"cpu": ("fp32", "bf16")},
        extraction={"cpu": ("fp32", "bf16")},
        providers={"openvino": Provider("OpenVINOExecutionProvider", "onnxruntime-openvino")},
    ),
}
"""All runtimes by their names in ``bench --runtimes``.

``fit --runtime`` accepts those that extract features.
"""


def providers() -> dict[str, Provider]:
    """Return ONNX Runtime's execution providers by their names in ``Predictor(provider=…)``."""
    return {name: one for row in RUNTIMES.values() for name, one in row.providers.items()}
