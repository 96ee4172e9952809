"""The one table of runtimes. Reading it imports no runtime: a row names its module as text."""

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
"""Key of ``RuntimeRow.extraction`` for a runtime that takes a backbone where it lies."""


class RuntimeModule(Protocol):
    """The functions that the module of a runtime has."""

    def extraction_runtime(self, precision: Precision, threads: int | None) -> Runtime:
        """Return the runtime for the extraction of features.

        Args:
            precision: one that the row has for the backbone's device.
            threads: number of threads on the CPU; one per core without it.
        """
        ...

    def load(self, model: InferenceModel, config: RunConfig, batch_size: int) -> LoadedModel:
        """Load a model for inference at one batch size.

        Args:
            model: gives the form of the model that the runtime takes.
            config: precision, device and threads; the row has this precision on this device.
            batch_size: number of images per call.

        Raises:
            ExportError: the model has no such form, or the runtime cannot run it.
        """
        ...


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's execution providers.

    Attributes:
        execution: ONNX Runtime's name of the provider.
        package: what pip installs for it.
        device: where its tensors lie, as ``OrtValue`` calls it.
    """

    execution: str
    package: str
    device: str = "cpu"


@dataclass(frozen=True)
class RuntimeRow:
    """One runtime.

    Attributes:
        implementation: name of the module of headkit that has the functions of ``RuntimeModule``.
        module: name of the library that has to be importable.
        package: what pip installs for it.
        takes: form of a model that the runtime loads: a torch ``module``, an ``onnx`` file, or a
            ``plain_onnx`` file without ONNX Runtime's own operators.
        inference: precisions of inference, by device.
        extraction: precisions of the extraction of features, by the device on which the backbone
            lies; empty for a runtime that extracts no features.
        providers: ONNX Runtime's execution providers that this runtime stands for, by the name
            that ``Predictor(provider=…)`` takes.
    """

    implementation: str
    module: str
    package: str
    takes: Literal["module", "onnx", "plain_onnx"]
    inference: Mapping[str, tuple[str, ...]]
    extraction: Mapping[str, tuple[Precision, ...]] = field(default_factory=dict)
    providers: Mapping[str, Provider] = field(default_factory=dict)

    def implement(self) -> RuntimeModule:
        """Import the module of the runtime.

        Raises:
            DependencyMissing: the library is not installed.
        """
        return cast("RuntimeModule", import_module(self.implementation))

    def provider_on(self, device: str) -> str:
        """Return the name of the provider whose tensors lie on ``device``; empty if none does."""
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
"""All runtimes by name, as ``--runtimes`` of ``bench`` takes it.

``--runtime`` of ``fit`` takes those that extract features.
"""


def providers() -> dict[str, Provider]:
    """Return ONNX Runtime's execution providers, by the name that ``Predictor`` takes."""
    return {name: one for row in RUNTIMES.values() for name, one in row.providers.items()}
