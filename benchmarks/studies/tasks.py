"""Compare a full model for each task with one backbone and a head for each task.

The study measures the size of the files, the time until all tasks have answered, and the memory.

Run ``python -m headkit.benchmarks.studies.tasks [SECTION …]`` with the sections ``serving`` and
``checkpoints``; the default is both. It writes ``benchmarks/results/tasks.json`` after each section
and keeps the other section, so that an interrupted run can continue with the remaining one.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headkit.benchmarks.bench.process import report, run_in_process
from headkit.benchmarks.bench.run_configs import cores

from .sections import run_sections

RESULT = Path(__file__).parents[1] / "results" / "tasks.json"
BACKBONE, CLASSES = "resnet50", 10
TASKS = (1, 10, 100)
ROUNDS = 3


def serving(folder: Path) -> dict[str, Any]:
    """Measure new processes until an ONNX model of each task has classified an image.

    The candidates are a session for each task with its own model; one session of a model with all
    heads, which classifies one image for all tasks in one pass; and one session of a swappable
    model, which runs the backbone once per task, as if each task had its own image.
    """
    from headkit.export.exporter import export
    from headkit.export.graph.onnx_file import num_bytes

    model, heads = _write_heads(folder)
    full = export(heads[0], folder / "full.onnx", backbone=model).path
    swappable = export(heads[0], folder / "swappable.onnx", "swappable", backbone=model).path
    files = _link(folder / "full", full, max(TASKS), ".onnx")
    results = {}
    for tasks in TASKS:
        multi = folder / f"multi{tasks}.onnx"
        heads_by_name = dict(zip(_names(tasks), heads, strict=False))
        export(heads_by_name, multi, "multi", backbone=model)
        paths = {
            "sessions": [str(path) for path in files[:tasks]],
            "multi": [str(multi)],
            "swappable": [str(swappable), *(str(p) for p in _head_paths(folder, tasks))],
        }
        head_bytes = sum(path.stat().st_size for path in _head_paths(folder, tasks))
        size = {
            "sessions": tasks * num_bytes(full),
            "multi": num_bytes(multi),
            "swappable": num_bytes(swappable) + head_bytes,
        }
        results[str(tasks)] = _run_rounds(folder, paths, size, "sessions")
    return {"architecture": BACKBONE, "classes": CLASSES, "threads": cores(), "tasks": results}


def checkpoints(folder: Path) -> dict[str, Any]:
    """Measure the same in torch, with a full ``state_dict`` per task, or with head files."""
    import safetensors.torch

    model, _ = _write_heads(folder)
    whole = folder / "whole.safetensors"
    safetensors.torch.save_file(model.state_dict(), whole)
    files = _link(folder / "whole", whole, max(TASKS), ".safetensors")
    results = {}
    for tasks in TASKS:
        heads = _head_paths(folder, tasks)
        paths = {
            "state_dicts": [str(path) for path in files[:tasks]],
            "heads": [str(whole), *(str(path) for path in heads)],
        }
        size = {
            "state_dicts": tasks * whole.stat().st_size,
            "heads": whole.stat().st_size + sum(path.stat().st_size for path in heads),
        }
        results[str(tasks)] = _run_rounds(folder, paths, size, "state_dicts")
    return {"architecture": BACKBONE, "classes": CLASSES, "threads": cores(), "tasks": results}


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "serving": serving,
    "checkpoints": checkpoints,
}


def _run_rounds(
    folder: Path, paths: Mapping[str, list[str]], size: Mapping[str, int], full: str
) -> dict[str, Any]:
    """Run the candidates in turns; return medians, and the ratios of ``full`` to the others."""
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, own in paths.items():
            arguments = folder / "paths.json"
            arguments.write_text(json.dumps(own))
            reports[name].append(run_in_process(__spec__.name, "one", name, str(arguments)))
    rows = {
        name: {
            "bytes": size[name],
            "seconds": round(statistics.median(row["seconds"] for row in rows), 3),
            "resident_bytes": int(statistics.median(row["resident_bytes"] for row in rows)),
        }
        for name, rows in reports.items()
    }
    ratios = {
        name: {key: round(rows[full][key] / row[key], 1) for key in row}
        for name, row in rows.items()
        if name != full
    }
    return {"measured": rows, "ratios": ratios}


def _write_heads(folder: Path) -> tuple[Any, list[Any]]:
    """Write head files; return a model with random weights, and the heads."""
    import torch

    from headkit.adapters.backbone.load import load_backbone
    from headkit.adapters.heads.attach import adapt, head_of

    torch.manual_seed(0)
    model = load_backbone(BACKBONE, pretrained=False)
    first = head_of(adapt(model, CLASSES))
    generator = np.random.default_rng(0)
    heads = []
    for path in _head_paths(folder, max(TASKS)):
        tensors = {
            name: (0.02 * generator.normal(size=tensor.shape)).astype(np.float32)
            for name, tensor in first.tensors.items()
        }
        heads.append(first.with_changes(tensors=tensors))
        heads[-1].save(path)
    return adapt(model, CLASSES), heads


def _names(tasks: int) -> list[str]:
    return [f"task{number:03}" for number in range(tasks)]


def _head_paths(folder: Path, tasks: int) -> list[Path]:
    return [folder / f"{name}.safetensors" for name in _names(tasks)]


def _link(folder: Path, path: Path, count: int, suffix: str) -> list[Path]:
    """Return hard links to a file, which stand for the full models of the tasks.

    The system's cache then has the content of all full models, which favours them.
    """
    folder.mkdir()
    links = [folder / f"{name}{suffix}" for name in _names(count)]
    for link in links:
        link.hardlink_to(path)
    return links


def _sessions(paths: list[str]) -> Iterator[int]:
    from headkit.export.runtimes.onnxruntime import open_session

    x = _image()
    for path in paths:
        session = open_session(path, cores())
        yield int(session.run(None, {"pixel_values": x})[0].argmax())
        _KEPT.append(session)


def _multi(paths: list[str]) -> Iterator[int]:
    from headkit.export.predict.predictor import Predictor

    predictor = Predictor(paths[0], threads=cores())
    _KEPT.append(predictor)
    for logits in predictor.session.run(None, {"pixel_values": _image()}):
        yield int(logits.argmax())


def _swappable(paths: list[str]) -> Iterator[int]:
    from headkit.export.predict.predictor import Predictor

    heads = {Path(path).stem: path for path in paths[1:]}
    predictor = Predictor(paths[0], heads, threads=cores())
    _KEPT.append(predictor)
    x = _image()
    for name in heads:
        yield int(predictor.logits(x, name).argmax())


def _state_dicts(paths: list[str]) -> Iterator[int]:
    import timm
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(cores())
    x = torch.from_numpy(_image())
    for path in paths:
        with torch.device("meta"):  # skips random weights, which would be overwritten
            model = timm.create_model(BACKBONE, num_classes=CLASSES).eval()
        model.load_state_dict(load_file(path), assign=True)
        with torch.inference_mode():
            yield int(model(x).argmax())
        _KEPT.append(model)


def _heads(paths: list[str]) -> Iterator[int]:
    import torch

    from headkit.adapters.backbone.forward import classify, features
    from headkit.adapters.backbone.load import load_backbone
    from headkit.adapters.heads.attach import attach
    from headkit.adapters.heads.head import Head

    torch.set_num_threads(cores())
    model = load_backbone(BACKBONE, paths[0], num_classes=CLASSES)
    _KEPT.append(model)
    with torch.inference_mode():
        entered = features(model, torch.from_numpy(_image()))
        for path in paths[1:]:
            head = Head.load(path)
            _KEPT.append(head)
            yield int(classify(attach(model, head), entered).argmax())


_KEPT: list[object] = []
"""Objects that a server would keep. The memory is measured after all tasks have answered."""

_CANDIDATES: dict[str, Callable[[list[str]], Iterator[int]]] = {
    "sessions": _sessions,
    "multi": _multi,
    "swappable": _swappable,
    "state_dicts": _state_dicts,
    "heads": _heads,
}


def _image() -> Any:
    return np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        answers = list(_CANDIDATES[sys.argv[2]](json.loads(Path(sys.argv[3]).read_text())))
        report({"answers": answers})
    else:
        run_sections(__doc__, RESULT, SECTIONS)
