"""Measure what levels cost: in a model that runs, and while a head is fitted.

Run ``python -m headkit.benchmarks.studies.levels [SECTION …]`` with any of the sections
``outputs``, ``heads`` and ``fit``; the default is all. It writes
``benchmarks/results/levels.json`` after each section and keeps the other sections. All times are
those of one processor core, so that other work on the machine hardly changes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from headkit.adapters.backbone.level import LAST
from headkit.adapters.backbone.levels import Level
from headkit.adapters.backbone.levels import levels as list_levels
from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.fitting.fit_linear import LinearFit, fit_linear
from headkit.adapters.heads.attach import adapt, head_of
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.tasks import get_task
from headkit.benchmarks.bench.timing import Milliseconds, alternate
from headkit.export.exporter import export
from headkit.export.runtimes.onnxruntime import open_session

from .sections import run_sections

RESULT = Path(__file__).parents[1] / "results" / "levels.json"
ARCHITECTURES = (
    "tf_efficientnet_lite0",
    "resnet50",
    "convnext_tiny",
    "vit_small_patch16_224",
)
BATCHES = (1, 16)
CALLS = {1: 60, 16: 15}
"""Number of timed calls for each batch size."""
HEADS, CLASSES, IMAGES, FITS = 100, 10, 1000, 5


def outputs(folder: Path) -> dict[str, Any]:
    """Time a backbone with all levels as outputs, and the same backbone without."""
    rows = []
    for name in ARCHITECTURES:
        model = _backbone(name)
        sessions = {
            kind: open_session(
                export(model, folder / f"{name}-{kind}.onnx", "backbone", levels=levels).path, 1
            )
            for kind, levels in (("plain", None), ("levels", "all"))
        }
        rows += [_compare(name, sessions, ("levels", "plain"), batch) for batch in BATCHES]
    return {"rows": rows}


def heads(folder: Path) -> dict[str, Any]:
    """Time a model with a hundred heads over all levels, and the same model with one head."""
    rows = []
    for name in ARCHITECTURES:
        model = _backbone(name)
        made = {f"head{number}": _head(model, number) for number in range(HEADS)}
        one = export(made["head0"], folder / f"{name}-one.onnx", backbone=model).path
        many = export(made, folder / f"{name}-many.onnx", "multi", backbone=model).path
        sessions = {"one": open_session(one, 1), "many": open_session(many, 1)}
        rows += [_compare(name, sessions, ("many", "one"), batch) for batch in BATCHES]
    return {"heads": HEADS, "classes": CLASSES, "rows": rows}


def fit(_folder: Path) -> dict[str, Any]:
    """Time the fit of a head, from features to its metrics: all choices, nested validation."""
    torch.set_num_threads(1)
    last, *levels = list_levels(ARCHITECTURES[0])
    examples = _examples(last, levels)
    candidates = ((LAST,), (LAST, *(level.name for level in levels)))
    how = LinearFit(candidates, get_task("multiclass"), CLASSES)
    seconds = []
    for _ in range(FITS):
        start = time.process_time()
        fitted = fit_linear(examples, torch.arange(IMAGES), None, how)
        seconds.append(round(time.process_time() - start, 3))
    return {
        "architecture": ARCHITECTURES[0],
        "images": IMAGES,
        "classes": CLASSES,
        "measured": len(fitted.held.images),
        "features": examples.x.shape[1],
        "candidates": len(candidates),
        "cpu_seconds": seconds,
    }


def _examples(last: Level, levels: Sequence[Level]) -> LabeledFeatures:
    """Return features of random images around the means of their classes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(IMAGES) % CLASSES
    widths = [level.width for level in (last, *levels)]
    means = torch.randn(CLASSES, sum(widths), generator=generator)
    x = means[y] + 8 * torch.randn(IMAGES, sum(widths), generator=generator)
    return LabeledFeatures(
        x,
        y,
        [(width,) for width in widths],
        torch.arange(IMAGES),
        torch.ones(IMAGES, dtype=torch.bool),
        tuple(levels),
    )


def _compare(
    name: str,
    sessions: dict[str, onnxruntime.InferenceSession],
    pair: tuple[str, str],
    batch: int,
) -> dict[str, Any]:
    """Time two sessions in turns; the ratio is that of the first of the pair to the second."""
    shape = sessions[pair[0]].get_inputs()[0].shape[1:]
    x = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
    candidates: dict[str, Callable[[], object]] = {
        kind: partial(_timed, session, x) for kind, session in sessions.items()
    }
    measured = alternate(candidates, calls=CALLS[batch])
    return {
        "architecture": name,
        "batch": batch,
        "cpu_ms": {kind: timing.to_json() for kind, timing in measured.timings.items()},
        "ratio": round(measured.ratio(*pair).value, 4),
    }


def _timed(session: onnxruntime.InferenceSession, x: np.ndarray[Any, Any]) -> Milliseconds:
    start = time.process_time()
    session.run(None, {"pixel_values": x})
    return Milliseconds(1000 * (time.process_time() - start))


def _backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    return load_backbone(name, pretrained=False)


def _head(model: nn.Module, seed: int) -> Head:
    torch.manual_seed(seed)
    return head_of(adapt(model, CLASSES, levels="all"))


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "outputs": outputs,
    "heads": heads,
    "fit": fit,
}

if __name__ == "__main__":
    run_sections(__doc__, RESULT, SECTIONS)
