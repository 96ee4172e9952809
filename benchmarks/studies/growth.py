"""Measure how costs grow with the batch, the heads, the classes, the images and the store.

Run ``python -m headkit.benchmarks.studies.growth [SECTION …]`` with any of the sections ``batch``,
``heads``, ``classes``, ``images`` and ``store``; the default is all. It writes
``benchmarks/results/growth.json`` after each section and keeps the other sections, so that an
interrupted run can continue with the remaining sections.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.fitting.linear.solve import solve
from headkit.adapters.heads.attach import adapt, head_of
from headkit.adapters.heads.head import Head
from headkit.benchmarks.bench.process import report, resident_bytes, run_in_process
from headkit.benchmarks.bench.run_configs import cores
from headkit.benchmarks.bench.timing import Call, alternate, race
from headkit.export.exporter import export
from headkit.export.predict.predictor import Predictor
from headkit.export.runtimes.onnxruntime import open_session
from headkit.registry.store.store import HeadStore

from .sections import run_sections

RESULT = Path(__file__).parents[1] / "results" / "growth.json"
BACKBONE = "mobilenetv4_conv_small"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
HEADS = (1, 10, 100, 1000, 10_000)
CLASSES = (2, 10, 100, 1000, 10_000, 100_000)
IMAGES = (1000, 10_000, 100_000, 1_000_000)
FEATURES, FIT_CLASSES = 384, 10
PROCESSES = REPEATS = 3
BLOCK = 16_384


def batch(folder: Path) -> dict[str, Any]:
    """Measure the latency of a call by batch size."""
    model = load_backbone(BACKBONE, pretrained=False)
    path = export(model, folder / "model.onnx").path
    candidates = {str(size): partial(_prepare, path, _pixels(size)) for size in BATCHES}
    timings = race(candidates).timings
    rows = [{"batch": size, "call_ms": timings[str(size)].median_ms} for size in BATCHES]
    return {"architecture": BACKBONE, **_add_slopes(rows, "batch", ["call_ms"])}


def heads(folder: Path) -> dict[str, Any]:
    """Measure loading time, memory and latency of a swappable session by its number of heads.

    Each call uses another head, at batch 1. Loading and memory are measured in new processes, as an
    allocator keeps memory that an earlier session has freed.
    """
    first = _create_head()
    path = export(first, folder / "model.onnx", "swappable", backbone=_backbone()).path
    generator = np.random.default_rng(0)
    files = []
    for number in range(max(HEADS)):
        tensors = {
            name: generator.normal(size=tensor.shape).astype(np.float32)
            for name, tensor in first.tensors.items()
        }
        file = folder / f"{number:05}.safetensors"
        files.append(first.with_changes(tensors=tensors).save(file))
    calls = {}
    for count in HEADS:
        predictor = _predictor(path, files[:count])
        calls[str(count)] = partial(_cycle_heads, predictor, files[:count])
    timings = race(calls).timings
    rows = list[dict[str, Any]]()
    costs = ("load_seconds", "memory_bytes")
    for count in HEADS:
        loads = [
            run_in_process(__spec__.name, "one", str(path), str(count)) for _ in range(PROCESSES)
        ]
        medians = {cost: statistics.median(one[cost] for one in loads) for cost in costs}
        rows.append({"heads": count, **medians, "call_ms": timings[str(count)].median_ms})
    return {"architecture": BACKBONE, **_add_slopes(rows, "heads", [*costs, "call_ms"])}


def load(path: Path, count: int) -> dict[str, Any]:
    """Load a swappable model with the first ``count`` head files of its folder; classify one image.

    Returns:
        ``load_seconds``, and the resident ``memory_bytes`` that both steps added.
    """
    files = sorted(path.parent.glob("*.safetensors"))[:count]
    before, start = resident_bytes() or 0, time.perf_counter()
    predictor = _predictor(path, files)
    seconds = time.perf_counter() - start
    _cycle_heads(predictor, files)()
    added = (resident_bytes() or 0) - before
    return {"load_seconds": round(seconds, 4), "memory_bytes": added}


def classes(folder: Path) -> dict[str, Any]:
    """Measure the size of the head file and the latency of the model by the number of classes."""
    rows = list[dict[str, Any]]()
    candidates: dict[str, Callable[[], Call]] = {}
    for count in CLASSES:
        torch.manual_seed(0)
        model = adapt(_backbone(), count)
        head = head_of(model).save(folder / f"{count}.safetensors")
        path = export(model, folder / f"{count}.onnx").path
        candidates[str(count)] = partial(_prepare, path, _pixels(1))
        rows.append({"classes": count, "head_file_bytes": head.stat().st_size})
    timings = race(candidates).timings
    for row in rows:
        row["call_ms"] = timings[str(row["classes"])].median_ms
    costs = ["head_file_bytes", "call_ms"]
    return {"architecture": BACKBONE, **_add_slopes(rows, "classes", costs)}


def images(folder: Path) -> dict[str, Any]:
    """Measure the time to solve a head for all strengths by the number of images.

    The features are synthetic, with classes around random centres. Like those of ``fit``, they are
    on the disk.
    """
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(FIT_CLASSES, FEATURES)) * 0.12
    path = folder / "features.npy"
    stored = np.lib.format.open_memmap(path, "w+", np.float32, (max(IMAGES), FEATURES))
    y = generator.integers(0, FIT_CLASSES, max(IMAGES))
    for start in range(0, len(y), BLOCK):
        some = y[start : start + BLOCK]
        noise = generator.normal(size=(len(some), FEATURES))
        stored[start : start + BLOCK] = centres[some] + noise
    stored.flush()
    held = 2000
    noise = generator.normal(size=(held, FEATURES))
    y_val = generator.integers(0, FIT_CLASSES, held)
    x_val = torch.from_numpy((centres[y_val] + noise).astype(np.float32))
    torch.set_num_threads(cores())
    rows = []
    for count in IMAGES:
        times = []
        for _ in range(REPEATS):
            start_s = time.perf_counter()
            solution = solve(
                _FeaturesOnDisk(path, count),
                torch.from_numpy(y[:count]),
                FIT_CLASSES,
                x_val=x_val,
                y_val=torch.from_numpy(y_val),
            )
            times.append(time.perf_counter() - start_s)
        logits = x_val.double() @ solution.linear.weight.T + solution.linear.bias
        accuracy = (logits.argmax(1).numpy() == y_val).mean()
        row = {"images": count, "solve_seconds": round(statistics.median(times), 3)}
        rows.append({**row, "accuracy": round(float(accuracy), 4)})
    return {
        "features": FEATURES,
        "classes": FIT_CLASSES,
        **_add_slopes(rows, "images", ["solve_seconds"]),
    }


def store(folder: Path) -> dict[str, Any]:
    """Measure the time to list a store in a directory, and to publish, by the number of heads."""
    heads_store, head = HeadStore(folder / "store"), _create_head()
    rows = list[dict[str, Any]]()
    for count in HEADS:
        for number in range(rows[-1]["published heads"] if rows else 0, count):
            heads_store.publish(head, f"head-{number:05}")
        listing = alternate({"list": lambda: len(HeadStore(heads_store.url).list())}, calls=9)
        publishing = alternate(
            {"publish": lambda: heads_store.publish(head, "head-00000")}, calls=9
        )
        list_ms = listing.timings["list"].median_ms
        publish_ms = publishing.timings["publish"].median_ms
        rows.append({"published heads": count, "list_ms": list_ms, "publish_ms": publish_ms})
    return _add_slopes(rows, "published heads", ["list_ms", "publish_ms"])


class _FeaturesOnDisk:
    """Features in a file, read in blocks."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.shape = path, (count, FEATURES)

    def blocks(self) -> Iterator[Tensor]:
        stored = np.load(self.path, mmap_mode="r")
        for start in range(0, self.shape[0], BLOCK):
            yield torch.from_numpy(np.array(stored[start : min(start + BLOCK, self.shape[0])]))


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "batch": batch,
    "heads": heads,
    "classes": classes,
    "images": images,
    "store": store,
}


def _add_slopes(rows: list[dict[str, Any]], by: str, costs: Sequence[str]) -> dict[str, Any]:
    """Return rows and slopes: over the last factor of ten, cost grows as ``by`` to that power."""
    last = [row for row in rows if 10 * row[by] >= rows[-1][by]]
    slopes = {cost: slope([r[by] for r in last], [r[cost] for r in last]) for cost in costs}
    return {"by": by, "threads": cores(), "rows": rows, "slopes": slopes}


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Return the power by which cost grows: least squares on logarithms; None if a cost is <= 0."""
    if min(costs) <= 0:
        return None
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return round(statistics.linear_regression(xs, ys).slope, 3)


def _backbone() -> Any:
    torch.manual_seed(0)
    return load_backbone(BACKBONE, pretrained=False)


def _create_head() -> Head:
    return head_of(adapt(_backbone(), FIT_CLASSES))


def _pixels(number: int, input_size: Sequence[int] = (3, 224, 224)) -> Any:
    return np.random.default_rng(0).normal(size=(number, *input_size)).astype(np.float32)


def _prepare(path: Path, x: Any) -> Call:
    session = open_session(path, cores())
    return lambda: session.run(None, {"pixel_values": x})


def _predictor(path: Path, files: Sequence[Path]) -> Predictor:
    return Predictor(path, {file.stem: file for file in files}, threads=cores())


def _cycle_heads(predictor: Predictor, files: Sequence[Path]) -> Call:
    """Return a call that uses another head each time."""
    names = [file.stem for file in files]
    x = _pixels(1, predictor.info.backbone["pretrained_cfg"]["input_size"])
    number = iter(range(10**9))
    return lambda: predictor.logits(x, names[next(number) * 997 % len(names)])


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        report(load(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        run_sections(__doc__, RESULT, SECTIONS)
