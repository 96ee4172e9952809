"""Heads for a swappable model: the arrays that a call brings along, and the adapter files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from headkit.adapters.errors import BackboneMismatch, ExportError, OutputError, first_line
from headkit.adapters.files import atomic_path
from headkit.adapters.heads.tasks import TASKS, get_task
from headkit.export.graph.metadata import TEMPERATURE, HeadInfo, ModelInfo

if TYPE_CHECKING:
    from headkit.adapters.heads.head import Head

Array = np.ndarray[Any, Any]
Inputs = Mapping[str, Sequence[int | str]]
"""Overridable initializers of a session or graph: shapes by name, the count of classes a string."""


def swapped(info: ModelInfo, inputs: Inputs, head: Head) -> dict[str, Array]:
    """Return what a swappable model takes to give the logits of ``head``: arrays by input name.

    Raises:
        ExportError: the model has no place for such a head.
    """
    own = info.heads[0]
    for key in ("kind", *(["task"] if info.probabilities else [])):
        if head.to_json()[key] != own.description[key]:
            raise ExportError(
                f"this swappable model takes heads of the {key} {own.description[key]!r}, "
                f"the head is of {head.to_json()[key]!r}: export one with a head of that {key}"
            )
    _check_read(info, inputs, head)
    arrays = {
        name: np.atleast_1d(np.asarray(tensor).astype(np.float32))
        for name, tensor in head.tensors.items()
        if name in inputs
    }
    if TEMPERATURE in inputs:
        arrays[TEMPERATURE] = np.array([head.temperature], np.float32)
    expected = {
        name: [head.num_classes if isinstance(dim, str) else dim for dim in dims]
        for name, dims in inputs.items()
    }
    found = {name: list(array.shape) for name, array in arrays.items()}
    if found != expected:
        raise ExportError(f"the head's tensors are {found}, the swappable model takes {expected}")
    return arrays


def write_adapter(info: ModelInfo, inputs: Inputs, head: Head, path: str | Path) -> None:
    """Write ONNX Runtime's ``.onnx_adapter`` file: what ``RunOptions.add_active_adapter`` takes.

    It holds arrays and two integers. The adapter version is the head's task: 1 multiclass,
    2 multilabel, 3 regression. The model version is the first 31 bits of the fingerprint of the
    head's backbone. Label names stay in the head file; the temperature is one of the arrays if the
    model gives probabilities.

    Raises:
        ExportError: the model has no place for such a head, or the file none for its temperature.
        OutputError: ``path`` cannot be written.
    """
    arrays = swapped(info, inputs, head)
    _check_task(info, head.task, "the head")
    task = get_task(head.task)
    if head.temperature != 1.0 and task.has_classes and TEMPERATURE not in inputs:
        raise ExportError(
            f"the head's temperature is {head.temperature}, and an adapter of this model cannot "
            "carry it: export the model with probabilities=True (--probabilities)"
        )
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(task.adapter_version)
    adapter.set_model_version(_model_version(head.backbone.fingerprint))
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    adapter.set_parameters(values)
    with atomic_path(path) as beside:
        try:
            adapter.export_adapter(str(beside))
        except Exception as error:  # onnxruntime's own classes share no root below Exception
            raise OutputError(f"cannot write {path}: {first_line(error)}") from error


@dataclass(frozen=True)
class Adapter:
    """A loaded ``.onnx_adapter`` file.

    Attributes:
        info: what is known of the head, which is without label names.
        options: the ``RunOptions`` that activate it.
        loaded: ONNX Runtime's adapter; ``options`` points to it and does not keep it alive.
    """

    info: HeadInfo
    options: ort.RunOptions
    loaded: ort.LoraAdapter


def read_adapter(
    info: ModelInfo, inputs: Inputs, name: str, path: Path, *, force: bool = False
) -> Adapter:
    """Read an ``.onnx_adapter`` file that ``write_adapter`` wrote.

    Args:
        info: of the model.
        inputs: of the model.
        name: that the head gets.
        path: of the file.
        force: take an adapter of another backbone too.

    Raises:
        ExportError: the file is missing, damaged, or not for this model.
        BackboneMismatch: it was made from a head of another backbone.
    """
    if not path.is_file():
        raise ExportError(f"cannot read adapter {path}: no such file")
    adapter, options = ort.LoraAdapter(), ort.RunOptions()
    try:
        adapter.Load(str(path))
        held = ort.AdapterFormat.read_adapter(str(path))
        arrays = held.get_parameters()
        options.add_active_adapter(adapter)
    except Exception as error:  # onnxruntime's own classes share no root below Exception
        raise ExportError(f"cannot read adapter {path}: {first_line(error)}") from error
    if not force:
        _check_model_version(info, held.get_model_version(), path)
    tasks = {task.adapter_version: name for name, task in TASKS.items()}
    _check_task(info, tasks.get(held.get_adapter_version(), "unknown"), f"the adapter {path}")
    num_classes = _classes_of(inputs, {key: one.shape() for key, one in arrays.items()}, path)
    own = info.heads[0]
    described = {key: value for key, value in own.description.items() if key != "label_names"}
    described["num_classes"] = num_classes
    given = arrays.get(TEMPERATURE)
    described["temperature"] = 1.0 if given is None else float(given.numpy()[0])
    return Adapter(HeadInfo(name, "", described, own.tensors), options, adapter)


def _check_read(info: ModelInfo, inputs: Inputs, head: Head) -> None:
    """Refuse tensors that would be left out, but those that no computation reads.

    These are what the model does not read of its own head, and counters such as BatchNorm's
    ``num_batches_tracked``.
    """
    lost = [
        name
        for name, tensor in head.tensors.items()
        if name not in inputs
        and name not in info.heads[0].tensors
        and np.asarray(tensor).dtype.kind not in "iu"
    ]
    if lost:
        raise ExportError(
            f"the swappable model takes {', '.join(inputs)} and has no input for the head's "
            f"{', '.join(lost)}: export one with a head that has the same tensors"
        )


def _check_task(info: ModelInfo, task: str, whose: str) -> None:
    own = info.heads[0].task.name
    if task != own:
        raise ExportError(
            f"this swappable model takes adapters of the task {own!r}, {whose} is of {task!r}: "
            "export one with a head of that task"
        )


def _check_model_version(info: ModelInfo, found: int, path: Path) -> None:
    fingerprint = info.backbone["backbone"]["fingerprint"]
    if found != _model_version(fingerprint):
        raise BackboneMismatch(
            f"the adapter {path} was made for a backbone with fingerprint "
            f"{f'{found << 1:08x}'[:7]}, the model's is {fingerprint[:7]}: make it from a head of "
            "this backbone (headkit graft), or pass force=True (--force)"
        )


def _model_version(fingerprint: str) -> int:
    """Return the first 31 bits: an adapter file holds signed integers of 32."""
    try:
        return int(fingerprint[:8], 16) >> 1
    except ValueError as error:
        raise ExportError(
            f"the backbone's fingerprint is {fingerprint!r}, expected 64 hexadecimal digits"
        ) from error


def _classes_of(inputs: Inputs, found: Mapping[str, list[int]], path: Path) -> int:
    """Return for how many classes an adapter is, if its arrays are what the model takes."""
    classes = {
        size
        for key, shape in found.items()
        for size, dim in zip(shape, inputs.get(key, ()), strict=False)
        if isinstance(dim, str)
    }
    fits = len(classes) == 1 and all(
        [dim if isinstance(dim, int) else next(iter(classes)) for dim in dims] == found.get(key)
        for key, dims in inputs.items()
    )
    if not fits or set(found) != set(inputs):
        raise ExportError(
            f"the adapter {path} holds {found}, the model takes "
            f"{ {key: list(dims) for key, dims in inputs.items()} }"
        )
    return classes.pop()
