"""From the start of a process to its first prediction, and what memory that takes.

``python -m headkit.benchmarks.bench.cold_start JSON`` is the process that is measured;
``cold_start`` starts it
from a model. It loads what a deployment of that runtime would: torch the backbone's weights and a
head file, the others an ONNX file.
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
        first_prediction_s: from the start of the process until logits of one image are there.
        load_s: of these, for loading the model when its runtime is imported.
        peak_bytes: Peak resident memory of the process; None if the system does not report it.
        device_bytes: taken on the GPU; none without one.
        file_bytes: of the files that are loaded.
    """

    first_prediction_s: float
    load_s: float
    peak_bytes: int | None
    device_bytes: int | None
    file_bytes: int


def cold_start(model: ModelUnderTest, configs: list[RunConfig], runs: int) -> dict[RunConfig, Cold]:
    """Start a process for each way to run a model, in turns.

    Args:
        model: what to load.
        configs: the ways to run it; each has been run before, so that its files are there.
        runs: number of processes per way.

    Raises:
        ExportError: a process fails.
    """
    asked = {config: _asked(model, config) for config in configs}
    taken: dict[RunConfig, list[dict[str, Any]]] = {config: [] for config in configs}
    for _ in range(runs):
        for config in configs:
            taken[config].append(run_in_process(__spec__.name, json.dumps(asked[config])))
    return {config: _summary(asked[config], rows) for config, rows in taken.items()}


def _summary(asked: Mapping[str, Any], rows: list[dict[str, Any]]) -> Cold:
    devices, peaks = (
        [row[key] for row in rows if row[key] is not None] for key in ("device_bytes", "peak_bytes")
    )
    paths = [asked[key] for key in ("onnx", "head", "weights") if asked[key]]
    return Cold(
        round(statistics.median(row["seconds"] for row in rows), 3),
        round(statistics.median(row["load_s"] for row in rows), 3),
        int(statistics.median(peaks)) if peaks else None,
        int(statistics.median(devices)) if devices else None,
        sum(_bytes(Path(path)) for path in paths),
    )


def _asked(model: ModelUnderTest, config: RunConfig) -> dict[str, Any]:
    asked = {
        **asdict(config),
        **asdict(model.parts()),
        "input_size": model.input_size,
        "dtype": str(model.images(1).dtype),
    }
    takes = RUNTIMES[config.runtime].takes
    if takes != "module":
        plain = takes == "plain_onnx"
        path = model.onnx("fp32" if plain else config.precision, optimized=not plain)
        asked |= {"onnx": str(path), "head": "", "weights": ""}
    return asked


def _bytes(path: Path) -> int:
    beside = path.parent.glob(f"{path.name}.*.data") if path.suffix == ".onnx" else ()
    return path.stat().st_size + sum(other.stat().st_size for other in beside)


class _Loaded(ModelUnderTest):
    """The files that were asked for, in the process that is measured."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self.name, self._asked = "cold", asked

    @property
    def input_size(self) -> tuple[int, ...]:
        return tuple(self._asked["input_size"])

    def module(self) -> Any:
        from headkit.adapters.heads.attach import attach
        from headkit.adapters.heads.backbone_of_head import load_backbone_of
        from headkit.adapters.heads.head import Head

        head = Head.load(self._asked["head"])
        return attach(load_backbone_of(head, self._asked["weights"]), head).eval()

    def onnx(self, precision: str = "fp32", *, optimized: bool = True) -> Path:  # noqa: ARG002
        return Path(self._asked["onnx"])


def _main(asked: Mapping[str, Any]) -> None:
    fields = ("runtime", "precision", "device", "threads")
    config = RunConfig(**{name: asked[name] for name in fields})
    runtime = RUNTIMES[config.runtime]
    __import__(runtime.module)
    on_gpu = config.device == "cuda"
    free = _free() if on_gpu else 0
    start = time.perf_counter()
    loaded = runtime.implement().load(_Loaded(asked), config, 1)
    load_s = time.perf_counter() - start
    shape = (1, *asked["input_size"])
    x = np.random.default_rng(0).integers(0, 256, shape).astype(asked["dtype"])
    loaded.run(x)
    report({"load_s": load_s, "device_bytes": free - _free() if on_gpu else None})


def _free() -> int:
    """Return the free bytes of the GPU: what any runtime allocates there is missing from them."""
    import torch

    return int(torch.cuda.mem_get_info()[0])


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
