"""Measure the costs of deploying many heads, and the accuracy of preprocessing in the graph.

Run ``python -m headkit.benchmarks.studies.deployment [SECTION …]`` with any of the sections
``graft``, ``multi``, ``switch``, ``memory``, ``pixels`` and ``precision``; the default is all. It
writes ``benchmarks/results/deployment.json`` after each section and keeps the other sections, so
that an interrupted run can continue with the remaining sections.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.heads.attach import adapt, head_of
from headkit.adapters.heads.head import Head
from headkit.benchmarks.bench.timing import alternate
from headkit.benchmarks.samples import ARCHITECTURE, write_digits, write_weights
from headkit.export.exporter import export
from headkit.export.graph.graft import graft
from headkit.export.predict.predictor import Predictor
from headkit.export.preprocess.onnx_graph import preprocessing_model
from headkit.export.preprocess.pillow import Preprocess
from headkit.export.runtimes.onnxruntime import open_session
from headkit.fit import fit

from .samples import write_photographs
from .sections import run_sections

RESULT = Path(__file__).parents[1] / "results" / "deployment.json"
BACKBONE, CLASSES, BATCH = "resnet50", 10, 16
HEADS, STORED_HEADS, IMAGES = 100, 1000, 1000
EXPORTS, ROUNDS, CALLS = 5, 25, 60


def grafting(folder: Path) -> dict[str, Any]:
    """Time grafting a head into an exported model, and exporting the head with its backbone."""
    model = _backbone()
    weights = folder / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), weights)
    old, new = _head(model, 0), _head(model, 1)
    path = export(old, folder / "model.onnx", backbone=model).path
    head = new.save(folder / "new.safetensors")
    times: dict[str, list[float]] = {"export": [], "graft": []}
    for number in range(EXPORTS):  # both read files and write a new file
        exported, grafted = (folder / f"{name}{number}.onnx" for name in times)
        candidates: dict[str, Callable[[], object]] = {
            "export": partial(export, head, exported, weights=weights),
            "graft": partial(graft, path, head, grafted),
        }
        for name, work in candidates.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    x = _images(8)
    equal = np.array_equal(Predictor(exported).logits(x), Predictor(grafted).logits(x))
    seconds = {name: round(statistics.median(values), 4) for name, values in times.items()}
    return {
        "architecture": BACKBONE,
        "seconds": seconds,
        "ratio": round(seconds["export"] / seconds["graft"], 1),
        "worst_ratio": round(min(times["export"]) / max(times["graft"]), 1),
        "logits_bit_equal": equal,
    }


def multi(folder: Path) -> dict[str, Any]:
    """Time a call of a model with a hundred heads, and of the same model with one head."""
    model = _backbone()
    heads = {f"head{number}": _head(model, number) for number in range(HEADS)}
    one = export(heads["head0"], folder / "one.onnx", backbone=model).path
    many = export(heads, folder / "many.onnx", "multi", backbone=model).path
    sessions = {"one": open_session(one), "many": open_session(many)}
    x = {"pixel_values": _images(BATCH)}
    timings, ratio = _time_pair(
        {name: partial(session.run, None, x) for name, session in sessions.items()},
        "many",
        "one",
        ROUNDS,
    )
    return {
        "architecture": BACKBONE,
        "heads": HEADS,
        "batch": BATCH,
        "latency_ms": timings,
        "ratio": ratio,
    }


def switch(folder: Path) -> dict[str, Any]:
    """Time calls of a swappable session with another head each time, and with the same head."""
    model = _backbone()
    heads = {f"head{number}": _head(model, number) for number in range(HEADS)}
    path = export(heads["head0"], folder / "model.onnx", "swappable", backbone=model).path
    result: dict[str, Any] = {"architecture": BACKBONE, "heads": HEADS, "batch": 1}
    files = {name: folder / f"{name}.onnx_adapter" for name in heads}
    for name, file in files.items():
        graft(path, heads[name], file)
    x = _images(1)
    for kind, sources in (("arrays", heads), ("adapter_files", files)):
        predictor = Predictor(path, dict(sources))
        # In one session: a second session would fill the processor's caches with its own weights.
        candidates: dict[str, Callable[[], object]] = {
            "switched": partial(_next_head, predictor, x, cycle(heads)),
            "same": partial(predictor.logits, x, "head7"),
        }
        timings, ratio = _time_pair(candidates, "switched", "same", CALLS)
        result[kind] = {"latency_ms": timings, "ratio": ratio}
    return result


def memory(folder: Path) -> dict[str, Any]:
    """Measure the resident memory of a process with one head, and with a thousand heads."""
    model = _backbone()
    first = _head(model, 0)
    path = export(first, folder / "model.onnx", "swappable", backbone=model).path
    generator = np.random.default_rng(0)
    for number in range(STORED_HEADS):
        tensors = {
            name: generator.normal(size=tensor.shape).astype(np.float32)
            for name, tensor in first.tensors.items()
        }
        first.with_changes(tensors=tensors).save(folder / f"{number:04}.safetensors")
    one, many = (_measure_memory(path, folder, count) for count in (1, STORED_HEADS))
    return {
        "architecture": BACKBONE,
        "heads": STORED_HEADS,
        "bytes_with_one": one["bytes"],
        "bytes_with_all": many["bytes"],
        "load_seconds": many["load_seconds"],
        "head_files_bytes": many["head_files_bytes"],
    }


def _measure_memory(model: Path, heads: Path, count: int) -> dict[str, Any]:
    """Return the memory of a new process that has run ``count`` heads."""
    ended = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(model), str(heads), str(count)],
        check=True,
        capture_output=True,
        text=True,
    )
    memory: dict[str, Any] = json.loads(ended.stdout)
    return memory


_MEMORY = """
import ctypes, gc, json, sys, time
from pathlib import Path
import numpy as np
from headkit import Predictor
x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
paths = sorted(Path(sys.argv[2]).glob("*.safetensors"))[: int(sys.argv[3])]
start = time.perf_counter()
predictor = Predictor(sys.argv[1], {path.stem: path for path in paths})
seconds = time.perf_counter() - start
for path in paths[:: max(len(paths) // 100, 1)]:
    predictor.logits(x, path.stem)
gc.collect()
if sys.platform == "linux":  # memory freed after loading the model would hide that of the heads
    ctypes.CDLL(None).malloc_trim(0)
resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
print(json.dumps({"bytes": resident, "load_seconds": round(seconds, 3),
                  "head_files_bytes": sum(path.stat().st_size for path in paths)}))
"""


def pixels(folder: Path) -> dict[str, Any]:
    """Compare pixels and logits of the graph with preprocessing with those of timm and torch."""
    model = load_backbone(ARCHITECTURE, write_weights(folder / "weights.safetensors"))
    photographs = sorted(write_photographs(folder / "photographs", IMAGES).rglob("*.*"))
    head = head_of(model)
    done = export(model, folder / "model.onnx", preprocess=True)
    predictor = Predictor(done.path)
    preprocess = Preprocess.from_cfg(head.pretrained_cfg)
    alone = folder / "pixels.onnx"
    alone.write_bytes(preprocessing_model(preprocess, done.opset).SerializeToString())
    graph = open_session(alone)
    transform: Any = create_transform(**head.pretrained_cfg, is_training=False)
    spread = np.asarray(preprocess.std, np.float32)[:, None, None]
    same, means, largest, logit_differences = 0, [], 0.0, []
    for photograph in photographs:
        image = Image.open(photograph).convert("RGB")
        expected_pixels = transform(image)
        actual_pixels = graph.run(None, {"image": np.asarray(image)[None]})[0][0]
        difference = np.abs(actual_pixels - expected_pixels.numpy()) * spread
        means.append(float(difference.mean()))
        largest = max(largest, float(difference.max()))
        with torch.inference_mode():
            expected = model(expected_pixels[None]).numpy()
        logits = predictor.logits(np.asarray(image)[None])
        same += int(logits.argmax() == expected.argmax())
        logit_differences.append(float(np.abs(logits - expected).max() / np.abs(expected).max()))
    return {
        "architecture": ARCHITECTURE,
        "images": len(photographs),
        "same_class": same / len(photographs),
        "mean_pixel_difference": statistics.mean(means),
        "worst_mean_pixel_difference": max(means),
        "largest_pixel_difference": largest,
        "median_logit_difference": statistics.median(logit_differences),
    }


def precision(folder: Path) -> dict[str, Any]:
    """Measure size, latency and accuracy of float16 and int8 on digits with real weights."""
    weights = write_weights(folder / "weights.safetensors")
    train, data = _split_in_half(write_digits(folder / "digits"))
    head = fit(ARCHITECTURE, train, weights=weights, workers=0, cache=False)
    model = load_backbone(ARCHITECTURE, weights)
    rows: dict[str, Any] = {}
    predictors = {}
    for name in ("fp32", "fp16", "int8"):
        done = export(
            head,
            folder / f"{name}.onnx",
            backbone=model,
            precision=name,
            images=data if name != "fp32" else None,
            max_cost=0.05,
        )
        rows[name] = {"bytes": done.num_bytes, "cost": done.info.cost.get("")}
        predictors[name] = Predictor(done.path)
    for batch in (1, BATCH):
        x = _images(batch)
        timings = alternate(
            {name: partial(one.logits, x) for name, one in predictors.items()}, calls=CALLS
        ).timings
        for name, timing in timings.items():
            rows[name][f"latency_ms_batch_{batch}"] = timing.to_json()
    return {"architecture": ARCHITECTURE, "precisions": rows}


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "graft": grafting,
    "multi": multi,
    "switch": switch,
    "memory": memory,
    "pixels": pixels,
    "precision": precision,
}


def _split_in_half(folder: Path) -> tuple[Path, Path]:
    """Return a folder of images to fit the head, and another to calibrate and to measure."""
    other = folder.with_name(f"{folder.name}-other")
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        if number % 2:
            target = other / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    return folder, other


def _next_head(predictor: Predictor, x: np.ndarray[Any, Any], names: Iterator[str]) -> None:
    predictor.logits(x, next(names))


def _backbone() -> nn.Module:
    torch.manual_seed(0)
    return load_backbone(BACKBONE, pretrained=False)


def _head(model: nn.Module, seed: int) -> Head:
    torch.manual_seed(seed)
    return head_of(adapt(model, CLASSES, kind="own"))


def _images(batch: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(batch, 3, 224, 224)).astype(np.float32)


def _time_pair(
    candidates: dict[str, Callable[[], object]], slow: str, fast: str, rounds: int
) -> tuple[dict[str, Any], float]:
    """Return the timings of two candidates, and the median over rounds of their ratio."""
    measured = alternate(candidates, calls=rounds)
    timings = {name: timing.to_json() for name, timing in measured.timings.items()}
    return timings, round(measured.ratio(slow, fast).value, 4)


if __name__ == "__main__":
    run_sections(__doc__, RESULT, SECTIONS)
