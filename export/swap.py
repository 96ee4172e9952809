"""Heads for a swappable model: the arrays that a call brings along, and the adapter files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from ..adapters.errors import ExportError, first_line
from ..adapters.files import atomic_path
from .metadata import TEMPERATURE, HeadInfo, ModelInfo

if TYPE_CHECKING:
    from ..adapters.head import Head

SUFFIX = ".onnx_adapter"
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
        if head.to_json()[key] != own.described[key]:
            raise ExportError(
                f"this swappable model takes heads of the {key} {own.described[key]!r}, "
                f"the head is of {head.to_json()[key]!r}: export one with a head of that {key}"
            )
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


def write_adapter(arrays: Mapping[str, Array], path: str | Path) -> None:
    """Write ONNX Runtime's ``.onnx_adapter`` file: what ``RunOptions.add_active_adapter`` takes.

    It holds arrays alone: label names stay in the head file.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    adapter.set_parameters(values)
    with atomic_path(path) as beside:
        adapter.export_adapter(str(beside))


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


def read_adapter(info: ModelInfo, inputs: Inputs, name: str, path: Path) -> Adapter:
    """Read an ``.onnx_adapter`` file.

    Raises:
        ExportError: the file is missing, damaged, or not for this model.
    """
    if not path.is_file():
        raise ExportError(f"cannot read adapter {path}: no such file")
    adapter, options = ort.LoraAdapter(), ort.RunOptions()
    try:
        adapter.Load(str(path))
        held = ort.AdapterFormat.read_adapter(str(path)).get_parameters()
        options.add_active_adapter(adapter)
    except Exception as error:  # onnxruntime's own classes share no root below Exception
        raise ExportError(f"cannot read adapter {path}: {first_line(error)}") from error
    found = {key: value.shape() for key, value in held.items()}
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
    own = info.heads[0]
    described = {key: value for key, value in own.described.items() if key != "label_names"}
    described["num_classes"] = classes.pop()
    if TEMPERATURE in held:
        described["temperature"] = float(held[TEMPERATURE].numpy()[0])
    return Adapter(HeadInfo(name, "", described, own.tensors), options, adapter)
