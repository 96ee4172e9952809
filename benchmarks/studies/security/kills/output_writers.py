"""Processes that write results to files, and the check that each is the old or the new file."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import headkit
from headkit.adapters.errors import HeadkitError
from headkit.adapters.heads.attach import head_of
from headkit.adapters.heads.head import Head
from headkit.export.graph import onnx_file
from headkit.export.predict.result_files import write_results

from .actors import Say
from .cache_writers import backbone, write_images

MODELS = ("exported.onnx", "grafted.onnx")
RESULTS = "results.csv"


def prepare(folder: Path) -> None:
    """Write images, two heads, a model, and what each process writes when it is not killed."""
    write_images(folder / "images")
    outputs = folder / "outputs"
    outputs.mkdir()
    model = headkit.adapt(backbone(), 3)
    one = head_of(model, ("a", "b", "c"))
    two = replace(one, tensors={name: -tensor for name, tensor in one.tensors.items()})
    for number, head in enumerate((one, two)):
        head.save(folder / f"{number}.safetensors")
    headkit.export(folder / "0.safetensors", folder / "base.onnx", backbone=backbone())
    reference: dict[str, Any] = {"logits": [], "results": []}
    for number in (0, 1):
        head_file = folder / f"{number}.safetensors"
        headkit.graft(folder / "base.onnx", head_file, outputs / "grafted.onnx", overwrite=True)
        reference["logits"].append(_logits(outputs / "grafted.onnx"))
        _predict(folder, number + 1)
        reference["results"].append(_hash(outputs / RESULTS))
    (folder / "reference.json").write_text(json.dumps(reference))


def save(folder: Path, generator: random.Random, say: Say) -> None:
    """Write a head file again and again."""
    for _ in range(10):
        head = Head.load(folder / f"{generator.randrange(2)}.safetensors")
        head.save(folder / "outputs" / "saved.safetensors")
    say("save")


def export(folder: Path, generator: random.Random, say: Say) -> None:
    """Export a backbone with one of two heads."""
    _use_external_data(generator)
    head = folder / f"{generator.randrange(2)}.safetensors"
    headkit.export(head, folder / "outputs" / "exported.onnx", backbone=backbone())
    say("export")


def graft(folder: Path, generator: random.Random, say: Say) -> None:
    """Put one of two heads into a model, and into the result itself."""
    _use_external_data(generator)
    for _ in range(5):
        head = folder / f"{generator.randrange(2)}.safetensors"
        path = folder / "outputs" / "grafted.onnx"
        source = path if generator.random() < 0.5 else folder / "base.onnx"
        headkit.graft(source, head, path, overwrite=True)
    say("graft")


def predict(folder: Path, generator: random.Random, say: Say) -> None:
    """Write predictions to a table."""
    for _ in range(3):
        _predict(folder, generator.randrange(1, 3))
    say("predict")


WRITERS = {"save": save, "export": export, "graft": graft, "predict": predict}


def check(folder: Path) -> dict[str, Any]:
    """Check each output.

    Returns:
        Files that are neither the old nor the new one (``torn``), and the number of ``temporary``
        files.
    """
    torn, outputs = list[str](), folder / "outputs"
    reference = json.loads((folder / "reference.json").read_text())
    saved = outputs / "saved.safetensors"
    digests = {Head.load(folder / f"{number}.safetensors").digest for number in (0, 1)}
    if saved.exists() and Head.load(saved).digest not in digests:
        torn.append(str(saved))
    for name in MODELS:
        path = outputs / name
        if not path.exists():
            continue
        try:
            onnx.checker.check_model(str(path))
            logits = np.array(_logits(path))
            if not any(np.allclose(logits, one, atol=1e-4) for one in reference["logits"]):
                torn.append(f"{path} gives other logits")
        except (HeadkitError, onnx.checker.ValidationError) as error:
            torn.append(f"{path}: {error}")
    if _hash(outputs / RESULTS) not in reference["results"]:
        torn.append(str(outputs / RESULTS))
    return {"torn": torn, "temporary": _count_temporary(outputs)}


def clean(folder: Path) -> int:
    """Write each output once more, and return the number of temporary files that stay."""
    outputs = folder / "outputs"
    Head.load(folder / "0.safetensors").save(outputs / "saved.safetensors")
    for name in MODELS:
        headkit.graft(
            folder / "base.onnx", folder / "0.safetensors", outputs / name, overwrite=True
        )
    _predict(folder, 1)
    return _count_temporary(outputs)


def _predict(folder: Path, top_k: int) -> None:
    predictor = headkit.Predictor(folder / "base.onnx", threads=1)
    images = sorted((folder / "images").glob("*/*"))
    results = predictor.stream(images, top_k=top_k)
    for _ in write_results(results, folder / "outputs" / RESULTS, top_k, named_heads=False):
        pass


def _use_external_data(generator: random.Random) -> None:
    """Write the weights to a file of their own, as for a model of more than 2 GiB."""
    if generator.random() < 0.5:
        setattr(onnx_file, "MAX_BYTES", 1000)  # noqa: B010


def _logits(path: Path) -> list[list[float]]:
    pixels = np.linspace(-1, 1, 3 * 160 * 160, dtype=np.float32).reshape(1, 3, 160, 160)
    logits: list[list[float]] = headkit.Predictor(path, threads=1).logits(pixels).tolist()
    return logits


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _count_temporary(outputs: Path) -> int:
    """Count hidden files, and external data that belong to no model."""
    used = {location for name in MODELS for location in _locations(outputs / name)}
    data = {path.name for path in outputs.glob("*.data")}
    return sum(1 for _ in outputs.rglob(".*")) + len(data - used)


def _locations(path: Path) -> set[str]:
    if not path.exists():
        return set()
    graph = onnx.load(path, load_external_data=False).graph
    return {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
