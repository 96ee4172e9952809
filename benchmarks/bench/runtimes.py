"""What runs a model: torch, ONNX Runtime and OpenVINO, on CPU and GPU, in several precisions."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from headkit.adapters.errors import DependencyMissing, ExportError, first_line

from .display_names import label
from .model_under_test import Array, Subject
from .timing import Call, Milliseconds


@dataclass(frozen=True)
class Contender:
    """One way to run a model.

    Attributes:
        runtime: a key of ``RUNTIMES``.
        precision: of the arithmetic.
        device: ``cpu`` or ``cuda``.
        threads: of the CPU.
    """

    runtime: str
    precision: str
    device: str
    threads: int

    def __str__(self) -> str:
        return label(asdict(self))


@dataclass(frozen=True)
class Running:
    """A model that is loaded for a batch size.

    Attributes:
        run: images, as the subject's ``images`` gives them, to logits in float32.
        bind: images to what is timed: on a GPU they lie there already, and nothing is copied back.
        copy_ms: on a GPU, milliseconds that images take there and logits back; measured once.
    """

    run: Callable[[Array], Array]
    bind: Callable[[Array], Call]
    copy_ms: Callable[[Array], float] | None = None


Load = Callable[[Subject, Contender, int], Running]


@dataclass(frozen=True)
class Runtime:
    """One row of the table of runtimes.

    Attributes:
        module: what has to be importable.
        package: what installs that.
        precisions: by device.
        load: from a subject, a contender and a batch size.
        provider: of ONNX Runtime.
    """

    module: str
    package: str
    precisions: dict[str, tuple[str, ...]]
    load: Load
    provider: str = ""


def _torch(subject: Subject, contender: Contender, _batch: int) -> Running:
    import torch

    torch.set_num_threads(contender.threads)
    model = subject.module().to(contender.device, memory_format=torch.channels_last)
    if contender.precision != "fp32":
        model = model.to(_dtype(contender))
    if contender.runtime == "torch.compile":
        model = _compiled(model)
    return _running(model, contender)


def _running(model: Any, contender: Contender) -> Running:
    import torch

    dtype = _dtype(contender)
    last = torch.channels_last

    @torch.inference_mode()
    def run(x: Array) -> Array:
        given = torch.from_numpy(x).to(contender.device, dtype, memory_format=last)
        return np.asarray(model(given).float().cpu().numpy())

    def bind(x: Array) -> Call:
        given = torch.from_numpy(x).to(contender.device, dtype, memory_format=last)

        @torch.inference_mode()
        def call() -> object:
            return model(given)

        return call if contender.device == "cpu" else _by_events(call)

    if contender.device == "cpu":
        return Running(run, bind)
    return Running(run, bind, lambda x: _copies(x, run(x)))


def _dtype(contender: Contender) -> Any:
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[
        contender.precision
    ]


def _compiled(model: Any) -> Any:
    """Compile for each batch size by itself, as it is fastest."""
    import torch

    torch.compiler.reset()
    return torch.compile(model, dynamic=False)


def _onnxruntime(subject: Subject, contender: Contender, _batch: int) -> Running:
    from headkit.export.runtimes.onnxruntime import open_session

    path = subject.onnx(contender.precision)
    runtime = RUNTIMES[contender.runtime]
    if contender.device != "cpu":
        return _on_gpu(path, contender, runtime.provider)
    session = open_session(path, contender.threads)
    name = session.get_inputs()[0].name

    def run(x: Array) -> Array:
        return np.asarray(session.run(None, {name: x})[0], np.float32)

    return Running(run, lambda x: lambda: session.run(None, {name: x}))


def _on_gpu(path: Path, contender: Contender, provider: str) -> Running:
    """Inputs and outputs are bound to the device; kernels run on a stream that events mark."""
    import onnxruntime as ort
    import torch

    from headkit.export.runtimes.onnxruntime import open_session

    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    session = open_session(
        path, contender.threads, provider, {"user_compute_stream": str(stream.cuda_stream)}
    )
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def bound(x: Array) -> Any:
        binding = session.io_binding()
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0))
        binding.bind_output(output, "cuda")
        return binding

    def run(x: Array) -> Array:
        binding = bound(x)
        session.run_with_iobinding(binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0], np.float32)

    def bind(x: Array) -> Call:
        binding = bound(x)
        return _by_events(lambda: session.run_with_iobinding(binding), stream)

    return Running(run, bind, lambda x: _copies(x, run(x)))


def _by_events(call: Call, stream: Any = None) -> Call:
    """Time a call by events on its stream, so that launching from Python does not count twice."""
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


def _events() -> tuple[Any, Any]:
    import torch

    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    return start, end


def _copies(x: Array, logits: Array) -> float:
    """Return the milliseconds that images take to the GPU, and logits back."""
    import torch

    host, back = torch.from_numpy(x).pin_memory(), torch.from_numpy(logits).to("cuda")
    taken = []
    for _ in range(10):
        start, end = _events()
        start.record()
        host.to("cuda", non_blocking=True)
        back.to("cpu")
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end))
    return float(np.median(taken))


def _openvino(subject: Subject, contender: Contender, batch: int) -> Running:
    from headkit.export.runtimes.openvino import openvino_core

    # Without ONNX Runtime's own operators, which OpenVINO does not know.
    path = subject.onnx(optimized=False)
    hint = {"fp32": "f32", "bf16": "bf16"}[contender.precision]
    try:
        core = openvino_core()
        if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ExportError("OpenVINO has no kernels of bfloat16 for this processor")
        graph = core.read_model(path)
        graph.reshape([batch, *subject.input_size])
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": contender.threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = core.compile_model(graph, "CPU", options)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot run {path.name}: {first_line(error)}") from error
    request = compiled.create_infer_request()

    def run(x: Array) -> Array:
        return np.array(next(iter(request.infer([x]).values())), np.float32)

    return Running(run, lambda x: lambda: request.infer([x], share_inputs=True))


_TORCH = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16", "bf16")}
RUNTIMES = {
    "torch": Runtime("torch", "torch", _TORCH, _torch),
    "torch.compile": Runtime("torch", "torch", _TORCH, _torch),
    "onnxruntime": Runtime(
        "onnxruntime",
        "onnxruntime",
        {"cpu": ("fp32", "int8"), "cuda": ("fp32", "fp16")},
        _onnxruntime,
        "cuda",
    ),
    "tensorrt": Runtime(
        "onnxruntime",
        "onnxruntime-gpu tensorrt",
        {"cuda": ("fp32", "fp16")},
        _onnxruntime,
        "tensorrt",
    ),
    "openvino": Runtime("openvino", "openvino", {"cpu": ("fp32", "bf16")}, _openvino),
}
"""What runs a model, by the name that ``--runtimes`` takes."""
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
DEVICES = ("cpu", "cuda")


def absent(contender: Contender) -> str:
    """Say why a contender cannot run on this machine; empty if it can."""
    runtime = RUNTIMES[contender.runtime]
    if find_spec(runtime.module) is None:
        return str(DependencyMissing.for_feature(contender.runtime, runtime.package))
    if runtime.module == "torch" and (contender.precision, contender.device) == ("bf16", "cpu"):
        return (
            "" if _multiplies_bfloat16() else "torch has no kernels of bfloat16 for this processor"
        )
    if contender.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "there is no GPU that torch can use"
        if runtime.provider:
            import onnxruntime as ort

            from headkit.export.runtimes.onnxruntime import PROVIDERS

            if PROVIDERS[runtime.provider].execution not in ort.get_available_providers():
                package = PROVIDERS[runtime.provider].package
                return str(
                    DependencyMissing.for_feature(f"the provider {runtime.provider!r}", package)
                )
    return ""


def _multiplies_bfloat16() -> bool:
    """Tell whether torch has kernels for it here: its loops take a hundred times as long."""
    import torch

    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def contenders(
    runtimes: Sequence[str], precisions: Sequence[str], devices: Sequence[str], threads: int
) -> list[Contender]:
    """Return the combinations of these that exist."""
    return [
        Contender(name, precision, device, threads)
        for name in runtimes
        for device in devices
        for precision in RUNTIMES[name].precisions.get(device, ())
        if precision in precisions
    ]


def lacking(
    runtimes: Sequence[str],
    precisions: Sequence[str] | None,
    devices: Sequence[str] | None,
    threads: int,
) -> list[Contender]:
    """Return the combinations of what was asked for by name that do not exist."""
    return [
        Contender(name, precision, device, threads)
        for name in runtimes
        for device in devices or DEVICES
        for precision in precisions or _precisions_of(name)
        if precision not in RUNTIMES[name].precisions.get(device, ())
        and (precisions or (devices and device not in RUNTIMES[name].precisions))
    ]


def _precisions_of(name: str) -> list[str]:
    own = RUNTIMES[name].precisions.values()
    return [precision for precision in PRECISIONS if any(precision in some for some in own)]


def cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
