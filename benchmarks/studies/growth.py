"""How cost grows: with the batch, heads per session, classes per head, and images per fit.

``python -m headkit.benchmarks.studies.growth`` writes ``benchmarks/results/growth.json``; names of
sections
behind it (``batch``, ``heads``, ``classes``, ``images``, ``store``) measure only those and keep the
rest.
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
from headkit.benchmarks.bench.process import in_process, report, resident_bytes
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
    """Latency of one call against its batch size."""
    model = load_backbone(BACKBONE, pretrained=False)
    path = export(model, folder / "model.onnx").path
    contenders = {str(size): partial(_ready, path, _pixels(size)) for size in BATCHES}
    timings = race(contenders).timings
    rows = [{"batch": size, "call_ms": timings[str(size)].median_ms} for size in BATCHES]
    return {"architecture": BACKBONE, **_grown(rows, "batch", ["call_ms"])}


def heads(folder: Path) -> dict[str, Any]:
    """Loading time, memory and latency of one swappable session against the heads that it has.

    Each call asks for another head, at batch 1. Loading and memory are those of processes of their
    own, as an allocator keeps what an earlier session has freed.
    """
    first = _first()
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
        calls[str(count)] = partial(_turns, predictor, files[:count])
    timings = race(calls).timings
    rows = list[dict[str, Any]]()
    costs = ("load_seconds", "memory_bytes")
    for count in HEADS:
        taken = [in_process(__spec__.name, "one", str(path), str(count)) for _ in range(PROCESSES)]
        medians = {cost: statistics.median(one[cost] for one in taken) for cost in costs}
        rows.append({"heads": count, **medians, "call_ms": timings[str(count)].median_ms})
    return {"architecture": BACKBONE, **_grown(rows, "heads", [*costs, "call_ms"])}


def load(path: Path, count: int) -> dict[str, Any]:
    """Load a swappable model with the first head files beside it, and classify one image.

    Returns:
        ``load_seconds``, and ``memory_bytes`` that are resident after all of it.
    """
    files = sorted(path.parent.glob("*.safetensors"))[:count]
    before, start = resident_bytes() or 0, time.perf_counter()
    predictor = _predictor(path, files)
    seconds = time.perf_counter() - start
    _turns(predictor, files)()
    grown = (resident_bytes() or 0) - before
    return {"load_seconds": round(seconds, 4), "memory_bytes": grown}


def classes(folder: Path) -> dict[str, Any]:
    """Bytes of the head file and latency of the exported model against the classes of the head."""
    rows = list[dict[str, Any]]()
    contenders: dict[str, Callable[[], Call]] = {}
    for count in CLASSES:
        torch.manual_seed(0)
        model = adapt(_backbone(), count)
        head = head_of(model).save(folder / f"{count}.safetensors")
        path = export(model, folder / f"{count}.onnx").path
        contenders[str(count)] = partial(_ready, path, _pixels(1))
        rows.append({"classes": count, "head_file_bytes": head.stat().st_size})
    timings = race(contenders).timings
    for row in rows:
        row["call_ms"] = timings[str(row["classes"])].median_ms
    return {"architecture": BACKBONE, **_grown(rows, "classes", ["head_file_bytes", "call_ms"])}


def images(folder: Path) -> dict[str, Any]:
    """Seconds to solve a head, path of strengths included, against the number of images.

    Features are synthetic: classes around random centres, on the disk as those of ``fit`` are.
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
        taken = []
        for _ in range(REPEATS):
            start_s = time.perf_counter()
            solution = solve(
                _Stored(path, count),
                torch.from_numpy(y[:count]),
                FIT_CLASSES,
                x_val=x_val,
                y_val=torch.from_numpy(y_val),
            )
            taken.append(time.perf_counter() - start_s)
        logits = x_val.double() @ solution.linear.weight.T + solution.linear.bias
        right = (logits.argmax(1).numpy() == y_val).mean()
        row = {"images": count, "solve_seconds": round(statistics.median(taken), 3)}
        rows.append({**row, "accuracy": round(float(right), 4)})
    return {
        "features": FEATURES,
        "classes": FIT_CLASSES,
        **_grown(rows, "images", ["solve_seconds"]),
    }


def store(folder: Path) -> dict[str, Any]:
    """Time to list a store in a directory, and to publish into it, against the heads it has."""
    published, head = HeadStore(folder / "store"), _first()
    rows = list[dict[str, Any]]()
    for count in HEADS:
        for number in range(rows[-1]["published heads"] if rows else 0, count):
            published.publish(head, f"head-{number:05}")
        listed = alternate({"list": lambda: len(HeadStore(published.url).list())}, calls=9)
        added = alternate({"publish": lambda: published.publish(head, "head-00000")}, calls=9)
        list_ms = listed.timings["list"].median_ms
        publish_ms = added.timings["publish"].median_ms
        rows.append({"published heads": count, "list_ms": list_ms, "publish_ms": publish_ms})
    return _grown(rows, "published heads", ["list_ms", "publish_ms"])


class _Stored:
    """Features on the disk, read in blocks."""

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


def _grown(rows: list[dict[str, Any]], by: str, costs: Sequence[str]) -> dict[str, Any]:
    """Add the slopes: cost grows as ``by`` to that power, over the last tenfold."""
    last = [row for row in rows if 10 * row[by] >= rows[-1][by]]
    slopes = {cost: slope([r[by] for r in last], [r[cost] for r in last]) for cost in costs}
    return {"by": by, "threads": cores(), "rows": rows, "slopes": slopes}


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Return the power by which cost grows: least squares on logarithms; none if one is not > 0."""
    if min(costs) <= 0:
        return None
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return round(statistics.linear_regression(xs, ys).slope, 3)


def _backbone() -> Any:
    torch.manual_seed(0)
    return load_backbone(BACKBONE, pretrained=False)


def _first() -> Head:
    return head_of(adapt(_backbone(), FIT_CLASSES))


def _pixels(number: int, input_size: Sequence[int] = (3, 224, 224)) -> Any:
    return np.random.default_rng(0).normal(size=(number, *input_size)).astype(np.float32)


def _ready(path: Path, x: Any) -> Call:
    session = open_session(path, cores())
    return lambda: session.run(None, {"pixel_values": x})


def _predictor(path: Path, files: Sequence[Path]) -> Predictor:
    return Predictor(path, {file.stem: file for file in files}, threads=cores())


def _turns(predictor: Predictor, files: Sequence[Path]) -> Call:
    names = [file.stem for file in files]
    x = _pixels(1, predictor.info.backbone["pretrained_cfg"]["input_size"])
    place = iter(range(10**9))
    return lambda: predictor.logits(x, names[next(place) * 997 % len(names)])


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        report(load(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        run_sections(__doc__, RESULT, SECTIONS)
