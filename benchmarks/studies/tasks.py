"""Many tasks on one backbone: a full model for each, against one backbone with a head for each.

``python -m headkit.benchmarks.studies.tasks`` writes ``benchmarks/results/tasks.json``; names of
sections
behind it (``serving``, ``checkpoints``) measure only those and keep the rest of the file.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headkit.benchmarks.bench.process import in_process, report
from headkit.benchmarks.bench.run_configs import cores

from .sections import run_sections

RESULT = Path(__file__).parents[1] / "results" / "tasks.json"
BACKBONE, CLASSES = "resnet50", 10
TASKS = (1, 10, 100)
ROUNDS = 3


def serving(folder: Path) -> dict[str, Any]:
    """From the start of a process until an ONNX model of each task has classified an image.

    Contenders: a session for each task's own model; one session of a model with all heads, which
    classifies one image for all tasks in one pass; one session of a swappable model, which runs the
    backbone once per task, as when each task has an image of its own.
    """
    from headkit.export.exporter import export
    from headkit.export.graph.onnx_file import num_bytes

    model, heads = _made(folder)
    full = export(heads[0], folder / "full.onnx", backbone=model).path
    swappable = export(heads[0], folder / "swappable.onnx", "swappable", backbone=model).path
    files = _named(folder / "full", full, max(TASKS), ".onnx")
    found = {}
    for tasks in TASKS:
        multi = folder / f"multi{tasks}.onnx"
        named = dict(zip(_names(tasks), heads, strict=False))
        export(named, multi, "multi", backbone=model)
        asked = {
            "sessions": [str(path) for path in files[:tasks]],
            "multi": [str(multi)],
            "swappable": [str(swappable), *(str(p) for p in _heads_of(folder, tasks))],
        }
        head_bytes = sum(path.stat().st_size for path in _heads_of(folder, tasks))
        size = {
            "sessions": tasks * num_bytes(full),
            "multi": num_bytes(multi),
            "swappable": num_bytes(swappable) + head_bytes,
        }
        found[str(tasks)] = _rounds(folder, asked, size, "sessions")
    return {"architecture": BACKBONE, "classes": CLASSES, "threads": cores(), "tasks": found}


def checkpoints(folder: Path) -> dict[str, Any]:
    """The same in torch: a ``state_dict`` of the whole model per task, against head files."""
    import safetensors.torch

    model, _ = _made(folder)
    whole = folder / "whole.safetensors"
    safetensors.torch.save_file(model.state_dict(), whole)
    files = _named(folder / "whole", whole, max(TASKS), ".safetensors")
    found = {}
    for tasks in TASKS:
        heads = _heads_of(folder, tasks)
        asked = {
            "state_dicts": [str(path) for path in files[:tasks]],
            "heads": [str(whole), *(str(path) for path in heads)],
        }
        size = {
            "state_dicts": tasks * whole.stat().st_size,
            "heads": whole.stat().st_size + sum(path.stat().st_size for path in heads),
        }
        found[str(tasks)] = _rounds(folder, asked, size, "state_dicts")
    return {"architecture": BACKBONE, "classes": CLASSES, "threads": cores(), "tasks": found}


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "serving": serving,
    "checkpoints": checkpoints,
}


def _rounds(
    folder: Path, asked: Mapping[str, list[str]], size: Mapping[str, int], full: str
) -> dict[str, Any]:
    """Start the contenders in turns; the medians, and how many times as much ``full`` takes."""
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}
    for _ in range(ROUNDS):
        for name, paths in asked.items():
            listed = folder / "asked.json"
            listed.write_text(json.dumps(paths))
            taken[name].append(in_process(__spec__.name, "one", name, str(listed)))
    rows = {
        name: {
            "bytes": size[name],
            "seconds": round(statistics.median(row["seconds"] for row in rows), 3),
            "resident_bytes": int(statistics.median(row["resident_bytes"] for row in rows)),
        }
        for name, rows in taken.items()
    }
    ratios = {
        name: {key: round(rows[full][key] / row[key], 1) for key in row}
        for name, row in rows.items()
        if name != full
    }
    return {"measured": rows, "ratios": ratios}


def _made(folder: Path) -> tuple[Any, list[Any]]:
    """Return a backbone of random weights, and heads whose files lie in the folder."""
    import torch

    from headkit.adapters.backbone.load import load_backbone
    from headkit.adapters.heads.attach import adapt, head_of

    torch.manual_seed(0)
    model = load_backbone(BACKBONE, pretrained=False)
    first = head_of(adapt(model, CLASSES))
    generator = np.random.default_rng(0)
    heads = []
    for path in _heads_of(folder, max(TASKS)):
        tensors = {
            name: (0.02 * generator.normal(size=tensor.shape)).astype(np.float32)
            for name, tensor in first.tensors.items()
        }
        heads.append(first.with_changes(tensors=tensors))
        heads[-1].save(path)
    return adapt(model, CLASSES), heads


def _names(tasks: int) -> list[str]:
    return [f"task{number:03}" for number in range(tasks)]


def _heads_of(folder: Path, tasks: int) -> list[Path]:
    return [folder / f"{name}.safetensors" for name in _names(tasks)]


def _named(folder: Path, path: Path, count: int, suffix: str) -> list[Path]:
    """Give one file many names.

    The models of the tasks differ in their heads alone: the full models are read from the system's
    cache, which favours them.
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
        with torch.device("meta"):  # no random weights, only to be overwritten
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
"""What a server would keep: its memory is measured when all tasks have answered."""

_CONTENDERS: dict[str, Callable[[list[str]], Iterator[int]]] = {
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
        answers = list(_CONTENDERS[sys.argv[2]](json.loads(Path(sys.argv[3]).read_text())))
        report({"answers": answers})
    else:
        run_sections(__doc__, RESULT, SECTIONS)
