"""Everything that writes files, each as a function of the folder that it writes to."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import onnx
import torch

import headkit
from headkit.adapters.features.disk_space import limit_cache
from headkit.adapters.fitting.report import write_report
from headkit.benchmarks.samples import write_digits
from headkit.evaluation import Evaluation
from headkit.export.graph import onnx_file
from headkit.export.predict.result_files import write_results
from headkit.export.predict.scores import Prediction, Result
from headkit.registry.store.layout import blob_key
from headkit.registry.store.store import HeadStore
from tests.backbones import random_backbone
from tests.fixtures import HEADS, IMAGES, MODELS
from tests.heads import random_head, scored_head

MODEL = MODELS / "resnet_merged.onnx"
HEAD = HEADS / "resnet_other.safetensors"
OUTPUTS = (
    "head.safetensors",
    "model.onnx",
    "head.onnx_adapter",
    "results.csv",
    "evaluation.json",
    "report.json",
)
"""Files that the writers replace; ``prepare`` writes old ones."""
METRICS = {"accuracy": 0.5, "ece": 0.1, "recall": [0.5, 0.5]}


def prepare(folder: Path) -> None:
    """Write what is there before: a store with a head file that is not used, and old outputs."""
    store = HeadStore(folder / "store")
    for seed in (1, 2):
        store.publish(scored_head(seed), "flowers", tags=["prod"])
    head = scored_head(9)
    store.storage.create(blob_key(head.digest), head.serialize())
    for name in OUTPUTS:
        (folder / name).write_bytes(b"old")
    (folder / "cache").mkdir()
    time.sleep(0.02)  # longer than a tick of the file system's clock, for gc


def _store(folder: Path) -> HeadStore:
    return HeadStore(folder / "store")


def _write_results(folder: Path) -> None:
    best = [Prediction(label="a" * 50, score=0.5)]
    rows = (Result(f"{number}.png", "", best) for number in range(10_000))
    for _ in write_results(rows, folder / "results.csv", 1, named_heads=False):
        pass


def _evaluate(folder: Path) -> None:
    rows = tuple({"label": f"class {number}", "recall": 0.5} for number in range(2000))
    result = Evaluation("m", "d", "multiclass", 3, {"accuracy": 0.5}, rows)
    result.save(folder / "evaluation.json")


def _report(folder: Path) -> None:
    head = scored_head(1, metrics=METRICS)
    write_report(folder, head, torch.randn(40, 2), torch.arange(40) % 2)


def _fit(folder: Path) -> None:
    headkit.fit(
        random_backbone(), IMAGES, cache=folder / "cache", workers=0, runtime="torch", l2=1e-3
    )


WRITERS: dict[str, Callable[[Path], object]] = {
    "save": lambda folder: random_head(20).save(folder / "head.safetensors"),
    "pull": lambda folder: _store(folder).pull("flowers@1", folder / "head.safetensors"),
    "publish": lambda folder: _store(folder).publish(scored_head(3), "flowers", tags=["prod"]),
    "first_publish": lambda folder: HeadStore(folder / "new").publish(scored_head(3), "flowers"),
    "tag": lambda folder: _store(folder).tag("flowers@2", "next"),
    "yank": lambda folder: _store(folder).yank("flowers@2"),
    "upgrade": lambda folder: _store(folder).upgrade(),
    "gc": lambda folder: _store(folder).gc(grace_seconds=0, force=True),
    "export": lambda folder: onnx_file.write(onnx.load(MODEL), folder / "model.onnx"),
    "graft": lambda folder: headkit.graft(MODEL, HEAD, folder / "model.onnx", force=True),
    "adapter": lambda folder: headkit.graft(
        MODELS / "resnet_swappable.onnx", HEAD, folder / "head.onnx_adapter", force=True
    ),
    "results": _write_results,
    "evaluate": _evaluate,
    "report": _report,
    "demo": lambda folder: write_digits(folder / "digits", 1),
    "limit": lambda folder: limit_cache(10**9, folder / "cache"),
    "fit": _fit,
}
"""Writers by name. Each needs more than some bytes, and leaves something that ``prepare`` wrote."""
