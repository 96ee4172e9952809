"""Measure the time from the start of a process to its first prediction, and its memory.

``cold_start`` starts the process ``python -m headkit.benchmarks.bench.cold_start JSON``, which
loads the same files as a deployment with that runtime: the backbone's weights and a head file for
torch, an ONNX file for the other runtimes.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headkit.export.runtimes.inference import RunConfig
from headkit.export.runtimes.table import RUNTIMES

from .model_under_test import ModelUnderTest
from .process import report, run_in_process


@dataclass(frozen=True)
class Cold:
    """Medians of several starts.

    Attributes:
        first_prediction_s: Seconds from the start of the process to the logits of one image.
        load_s: Part of these seconds that loads the model, after the import of its runtime.
        peak_bytes: Peak resident memory of the process; None if the system does not report it.
        device_bytes: Memory used on the GPU; None on the CPU.
        file_bytes: Size of the loaded files.
    """

    first_prediction_s: float
    load_s: float
    peak_bytes: int | None
    device_bytes: int | None
    file_bytes: int


def cold_start(model: ModelUnderTest, configs: list[RunConfig], runs: int) -> dict[RunConfig, Cold]:
    """Start processes for each way to run a model, in turns.

    Args:
        model: The model to load.
        configs: The ways to run it. Each must have run before, so that its files exist.
        runs: Number of processes per way.

    Raises:
        ExportError: A process fails.
    """
    requests = {config: _request(model, config) for config in configs}
    reports: dict[RunConfig, list[dict[str, Any]]] = {config: [] for config in configs}
    for _ in range(runs):
        for config in configs:
            reports[config].append(run_in_process(__spec__.name, json.dumps(requests[config])))
    return {config: _summarize(requests[config], rows) for config, rows in reports.items()}


def _summarize(request: Mapping[str, Any], rows: list[dict[str, Any]]) -> Cold:
    devices, peaks = (
        [row[key] for row in rows if row[key] is not None] for key in ("device_bytes", "peak_bytes")
    )
    paths = [request[key] for key in ("onnx", "head", "weights") if request[key]]
    return Cold(
        round(statistics.median(row["seconds"] for row in rows), 3),
        round(statistics.median(row["load_s"] for row in rows), 3),
        int(statistics.median(peaks)) if peaks else None,
        int(statistics.median(devices)) if devices else None,
        sum(_bytes(Path(path)) for path in paths),
    )


def _request(model: ModelUnderTest, config: RunConfig) -> dict[str, Any]:
    """Return the argument of the measured process."""
    request = {
        **asdict(config),
        **asdict(model.parts()),
        "input_size": model.input_size,
        "dtype": str(model.images(1).dtype),
    }
    takes = RUNTIMES[config.runtime].takes
    if takes != "module":
        plain = takes == "plain_onnx"
        path = model.onnx("fp32" if plain else config.precision, optimized=not plain)
        request |= {"onnx": str(path), "head": "", "weights": ""}
    return request


def _bytes(path: Path) -> int:
    beside = path.parent.glob(f"{path.name}.*.data") if path.suffix == ".onnx" else ()
    return path.stat().st_size + sum(other.stat().st_size for other in beside)


class _Loaded(ModelUnderTest):
    """The model of a request, in the measured process."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.name, self._request = "cold", request

    @property
    def input_size(self) -> tuple[int, ...]:
        return tuple(self._request["input_size"])

    def module(self) -> Any:
        from headkit.adapters.heads.attach import attach
        from headkit.adapters.heads.backbone_of_head import load_backbone_of
        from headkit.adapters.heads.head import Head

        head = Head.load(self._request["head"])
        return attach(load_backbone_of(head, self._request["weights"]), head).eval()

    def onnx(self, precision: str = "fp32", *, optimized: bool = True) -> Path:  # noqa: ARG002
        return Path(self._request["onnx"])


def _main(request: Mapping[str, Any]) -> None:
    fields = ("runtime", "precision", "device", "threads")
    config = RunConfig(**{name: request[name] for name in fields})
    runtime = RUNTIMES[config.runtime]
    __import__(runtime.module)
    on_gpu = config.device == "cuda"
    free = _free() if on_gpu else 0
    start = time.perf_counter()
    loaded = runtime.load_module().load(_Loaded(request), config, 1)
    load_s = time.perf_counter() - start
    shape = (1, *request["input_size"])
    x = np.random.default_rng(0).integers(0, 256, shape).astype(request["dtype"])
    loaded.run(x)
    report({"load_s": load_s, "device_bytes": free - _free() if on_gpu else None})


def _free() -> int:
    """Return the free bytes of the GPU, which count the allocations of every runtime."""
    import torch

    return int(torch.cuda.mem_get_info()[0])


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
