"""Describe an architecture, a head or an exported model, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def info(name: str | Path) -> dict[str, Any]:
    """Describe an architecture, a head or an exported model.

    Args:
        name: Name of an architecture, path of a head file (``.safetensors``), reference to a head
            in a store, or path of an exported model (``.onnx``).

    Returns:
        JSON values. ``what`` is ``architecture``, ``head`` or ``model``.

    Raises:
        UnknownArchitecture: timm has no architecture of that name.
        HeadFormatError: The head file cannot be read.
        RegistryError: The store has no such head.
        ExportError: The model cannot be read, or was changed after its export.
    """
    suffix = Path(name).suffix
    if suffix == ".onnx":
        return _describe_model(Path(name))
    from headkit.registry.catalogue import architecture, sources, timm_version
    from headkit.registry.resolve import head_file_or_architecture

    path = head_file_or_architecture(name)
    if path is not None:
        return _describe_head(path)

    row = architecture(str(name)).to_json()
    row["tags"] = {tag.pop("name"): tag for tag in row["tags"]}
    return {"what": "architecture", **row, "sources": sources(), "timm": timm_version()}


def _describe_head(path: Path) -> dict[str, Any]:
    from headkit.adapters.heads.head import Head

    head = Head.load(path)
    return {
        "what": "head",
        "bytes": path.stat().st_size,
        "tensors": {name: list(tensor.shape) for name, tensor in head.all_tensors.items()},
        **head.to_json(),
    }


def _describe_model(path: Path) -> dict[str, Any]:
    from headkit.export.graph.checksums import check_file
    from headkit.export.runtimes.exported_model import open_exported
    from headkit.export.runtimes.model_source import ModelSource

    session, model = open_exported(ModelSource.of(path), None, "cpu")
    if model.checksum:
        check_file(path, model.checksum, model.is_of_head, str(path))
    description = {
        "what": "model",
        "bytes": path.stat().st_size,
        "form": model.form,
        "precision": model.precision,
        "inputs": {value.name: [value.type, value.shape] for value in session.get_inputs()},
        "outputs": {value.name: [value.type, value.shape] for value in session.get_outputs()},
        "exported_with": dict(model.versions),
        **model.backbone,
    }
    if model.cost:
        description["precision_cost"] = dict(model.cost)
    if len(model.heads) == 1 and not model.heads[0].name:
        return {**description, "head_id": model.heads[0].head_id, **model.heads[0].description}
    shown = ("kind", "num_classes", "label_names", "task", "temperature")
    description["heads"] = {
        head.name: {"head_id": head.head_id, **{k: head.description.get(k) for k in shown}}
        for head in model.heads
    }
    return description
