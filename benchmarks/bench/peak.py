"""Measure the peak speed of a machine: the rate of a large matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from headkit.export.runtimes.inference import RunConfig

from .run_configs import explain_absence

SIDES = {"cpu": (1024, 2048), "cuda": (8192,)}
REPEATS = 8


def peak_gmacs(config: RunConfig) -> float | None:
    """Measure the multiply-adds per second, in billions, of a large product of matrices.

    On a CPU in float32, torch and ONNX Runtime both compute it, as the processor decides which of
    their libraries is faster.

    Args:
        config: Gives the precision, the device and the number of threads; the runtime is ignored.

    Returns:
        The best of all repetitions; None if torch does not support such a product.
    """
    import torch

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if config.precision not in types or explain_absence(replace(config, runtime="torch")):
        return None
    torch.set_num_threads(config.threads)
    best = 0.0
    for side in SIDES[config.device]:
        for multiply in _products(side, types[config.precision], config):
            multiply()
            for _ in range(REPEATS):
                start = time.perf_counter()
                multiply()
                if config.device == "cuda":
                    torch.cuda.synchronize()
                best = max(best, side**3 / (time.perf_counter() - start) / 1e9)
    return best


def _products(side: int, dtype: Any, config: RunConfig) -> Iterator[Callable[[], object]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, side, side, generator=generator)
    a, b = pair.to(config.device, dtype)
    yield lambda: a @ b
    if config.device == "cpu" and config.precision == "fp32":
        yield _by_onnxruntime(pair.numpy(), config.threads)


def _by_onnxruntime(pair: Any, threads: int) -> Callable[[], object]:
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    shape = list(pair[0].shape)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "ac"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        values[:1],
        values[1:],
        [numpy_helper.from_array(pair[1], "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options)
    return lambda: session.run(None, {"a": pair[0]})
