"""From the start of a process to its first prediction, and what memory that takes.

``python -m headkit.benchmarks.bench.cold_start JSON`` is the process that is measured;
``cold_start`` starts it
from a subject. It loads what a deployment of that runtime would: torch the backbone's weights and a
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

from .model_under_test import Subject
from .process import in_process, report
from .runtimes import RUNTIMES, Contender


@dataclass(frozen=True)
class Cold:
    """Medians of several starts.

    Attributes:
        first_prediction_s: from the start of the process until logits of one image are there.
        load_s: of these, for loading the model when its runtime is imported.
        peak_bytes: the most memory that the process had resident.
        device_bytes: taken on the GPU; none without one.
        file_bytes: of the files that are loaded.
    """

    first_prediction_s: float
    load_s: float
    peak_bytes: int
    device_bytes: int | None
    file_bytes: int


def cold_start(subject: Subject, contenders: list[Contender], runs: int) -> dict[Contender, Cold]:
    """Start a process for each contender, in turns.

    Args:
        subject: what to load.
        contenders: the ways to run it; each has been run before, so that its files are there.
        runs: processes per contender.

    Raises:
        ExportError: a process fails.
    """
    asked = {contender: _asked(subject, contender) for contender in contenders}
    taken: dict[Contender, list[dict[str, Any]]] = {contender: [] for contender in contenders}
    for _ in range(runs):
        for contender in contenders:
            taken[contender].append(in_process(__spec__.name, json.dumps(asked[contender])))
    return {contender: _summary(asked[contender], rows) for contender, rows in taken.items()}


def _summary(asked: Mapping[str, Any], rows: list[dict[str, Any]]) -> Cold:
    devices = [row["device_bytes"] for row in rows if row["device_bytes"] is not None]
    paths = [asked[key] for key in ("onnx", "head", "weights") if asked[key]]
    return Cold(
        round(statistics.median(row["seconds"] for row in rows), 3),
        round(statistics.median(row["load_s"] for row in rows), 3),
        int(statistics.median(row["peak_bytes"] for row in rows)),
        int(statistics.median(devices)) if devices else None,
        sum(_bytes(Path(path)) for path in paths),
    )


def _asked(subject: Subject, contender: Contender) -> dict[str, Any]:
    asked = {
        **asdict(contender),
        **asdict(subject.parts()),
        "input_size": subject.input_size,
        "dtype": str(subject.images(1).dtype),
    }
    if RUNTIMES[contender.runtime].module != "torch":
        plain = contender.runtime == "openvino"
        path = subject.onnx("fp32" if plain else contender.precision, optimized=not plain)
        asked |= {"onnx": str(path), "head": "", "weights": ""}
    return asked


def _bytes(path: Path) -> int:
    beside = path.parent.glob(f"{path.name}.*.data") if path.suffix == ".onnx" else ()
    return path.stat().st_size + sum(other.stat().st_size for other in beside)


class _Loaded(Subject):
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
    contender = Contender(**{name: asked[name] for name in fields})
    runtime = RUNTIMES[contender.runtime]
    __import__(runtime.module)
    on_gpu = contender.device == "cuda"
    free = _free() if on_gpu else 0
    start = time.perf_counter()
    running = runtime.load(_Loaded(asked), contender, 1)
    load_s = time.perf_counter() - start
    shape = (1, *asked["input_size"])
    x = np.random.default_rng(0).integers(0, 256, shape).astype(asked["dtype"])
    running.run(x)
    report({"load_s": load_s, "device_bytes": free - _free() if on_gpu else None})


def _free() -> int:
    """Return the free bytes of the GPU: what any runtime allocates there is missing from them."""
    import torch

    return int(torch.cuda.mem_get_info()[0])


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
