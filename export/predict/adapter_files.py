"""Heads for a swappable model: arrays that a call passes, and adapter files that hold them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from headkit.adapters.errors import BackboneMismatch, ExportError, OutputError, first_line
from headkit.adapters.files import atomic_path, check_readable
from headkit.adapters.heads.tasks import TASKS, get_task
from headkit.adapters.images.pixel_rule import VERSION_1_RULE, PixelRule
from headkit.export.graph.description.head_info import HeadInfo
from headkit.export.graph.description.names import TEMPERATURE
from headkit.export.graph.level_row import lay_out, reads_row
from headkit.export.graph.metadata import ModelInfo

if TYPE_CHECKING:
    from headkit.adapters.heads.head import Head

Array = np.ndarray[Any, Any]
_UNKNOWN = ("label_names", "thresholds", "levels", "requires")
"""Parts of a head's description that an adapter file does not hold."""
Inputs = Mapping[str, Sequence[int | str]]
"""Shapes of overridable initializers, by name. The dimension of the classes is a string."""


def head_arrays(info: ModelInfo, inputs: Inputs, head: Head) -> dict[str, Array]:
    """Return the arrays, by input name, with which a swappable model computes a head's logits.

    Raises:
        ExportError: The model does not take such a head.
    """
    own = info.heads[0]
    over_levels = reads_row(info, head)
    compared = [] if over_levels else ["kind"]
    for key in (*compared, *(["task"] if info.probabilities else [])):
        if head.to_json()[key] != own.description[key]:
            raise ExportError(
                f"this swappable model takes heads whose {key} is {own.description[key]!r}, "
                f"but the {key} of this head is {head.to_json()[key]!r}: export a model with this "
                f"head"
            )
    if over_levels:
        arrays = lay_out(info, head)
    else:
        _check_no_tensor_is_lost(info, inputs, head)
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
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    if shapes != expected:
        raise ExportError(
            f"the head's tensors have the shapes {shapes}, but the swappable model takes "
            f"{expected}: export a model with that head"
        )
    return arrays


def write_adapter(info: ModelInfo, inputs: Inputs, head: Head, path: str | Path) -> None:
    """Write a ``.onnx_adapter`` file for ONNX Runtime's ``RunOptions.add_active_adapter``.

    The file holds arrays and two integers. The last digit of the adapter version is the head's
    task: 1 multiclass, 2 multilabel, 3 regression. The number before it is the rule for pixels, the
    sum of 1 for the orientation ``exif``, 2 for alpha ``white`` and 4 for the depth ``high_byte``.
    The model version is the first 31 bits of the fingerprint of the head's backbone; for a model
    with levels, those of a hash of the fingerprint and the levels, see docs/onnx.md. Label names
    stay in the head file. The temperature is one of the arrays if the model computes
    probabilities.

    Raises:
        ExportError: The model does not take such a head, or the file cannot hold its temperature.
        OutputError: ``path`` cannot be written.
    """
    arrays = head_arrays(info, inputs, head)
    _check_task(info, head.task, "the head")
    task = get_task(head.task)
    if head.temperature != 1.0 and task.has_classes and TEMPERATURE not in inputs:
        raise ExportError(
            f"the head's temperature is {head.temperature}, but an adapter file for this model "
            "cannot hold it: export the model with probabilities=True (--probabilities)"
        )
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(10 * _encode_rule(head.pixels) + task.adapter_version)
    adapter.set_model_version(_model_version(info, head.backbone.fingerprint))
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    adapter.set_parameters(values)
    with atomic_path(path) as beside:
        try:
            adapter.export_adapter(str(beside))
        except Exception as error:  # onnxruntime's own classes share no root below Exception
            # ONNX Runtime does not say why. The system does when it refuses the same bytes again.
            beside.write_bytes(bytes(sum(array.nbytes for array in arrays.values())))
            raise OutputError(f"cannot write {path}: {first_line(error)}") from error


@dataclass(frozen=True)
class Adapter:
    """A loaded ``.onnx_adapter`` file.

    Attributes:
        info: Description of the head, without label names.
        options: The ``RunOptions`` that activate the adapter.
        weights: ONNX Runtime's adapter. ``options`` points to it but does not keep it alive.
        path: Absolute path of the file, from which another process loads the adapter again.
    """

    info: HeadInfo
    options: ort.RunOptions
    weights: ort.LoraAdapter
    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_again, (self.info, self.path)


def read_adapter(
    info: ModelInfo, inputs: Inputs, name: str, path: Path, *, force: bool = False
) -> Adapter:
    """Read an ``.onnx_adapter`` file that ``write_adapter`` wrote.

    Args:
        info: Description of the model.
        inputs: Overridable initializers of the model.
        name: Name for the head.
        path: Path of the file.
        force: Also accept an adapter that was made from a head of another backbone.

    Raises:
        ExportError: The file is missing, damaged, or not for this model.
        BackboneMismatch: The adapter was made from a head of another backbone.
    """
    check_readable(path, "adapter", ExportError)
    try:
        adapter, options = _load(path)
        content = ort.AdapterFormat.read_adapter(str(path))
        arrays = content.get_parameters()
    except Exception as error:  # onnxruntime's own classes share no root below Exception
        raise ExportError(f"cannot read adapter {path}: {first_line(error)}") from error
    if not force:
        _check_model_version(info, content.get_model_version(), path)
    tasks = {task.adapter_version: name for name, task in TASKS.items()}
    rule, task = divmod(content.get_adapter_version(), 10)
    _check_task(info, tasks.get(task, "unknown"), f"the adapter {path}")
    num_classes = _count_classes(inputs, {key: one.shape() for key, one in arrays.items()}, path)
    own = info.heads[0]
    description = {key: value for key, value in own.description.items() if key not in _UNKNOWN}
    description["num_classes"] = num_classes
    description["pixels"] = _decode_rule(rule, path).to_json()
    temperature = arrays.get(TEMPERATURE)
    description["temperature"] = 1.0 if temperature is None else float(temperature.numpy()[0])
    described = HeadInfo(name, "", description, {} if info.levels else own.tensors)
    return Adapter(described, options, adapter, path.absolute())


def _load(path: Path) -> tuple[ort.LoraAdapter, ort.RunOptions]:
    adapter, options = ort.LoraAdapter(), ort.RunOptions()
    adapter.Load(str(path))
    options.add_active_adapter(adapter)
    return adapter, options


def _load_again(info: HeadInfo, path: Path) -> Adapter:
    """Load an adapter that ``read_adapter`` accepted before.

    Raises:
        ExportError: The file is no longer there.
    """
    try:
        adapter, options = _load(path)
    except Exception as error:  # onnxruntime's own classes share no root below Exception
        raise ExportError(f"cannot read adapter {path}: {first_line(error)}") from error
    return Adapter(info, options, adapter, path)


_RULE_BITS = (("orientation", "exif"), ("alpha", "white"), ("depth", "high_byte"))


def _encode_rule(rule: PixelRule) -> int:
    return sum(2**bit for bit, (name, on) in enumerate(_RULE_BITS) if getattr(rule, name) == on)


def _decode_rule(number: int, path: Path) -> PixelRule:
    """Return the rule of an adapter file; those of headkit 0.1 have the number 0."""
    if not 0 <= number < 2 ** len(_RULE_BITS):
        raise ExportError(
            f"the adapter {path} has a rule for pixels that this headkit does not know: install a "
            "newer headkit"
        )
    changes: dict[str, Any] = {
        name: on for bit, (name, on) in enumerate(_RULE_BITS) if number >> bit & 1
    }
    return replace(VERSION_1_RULE, **changes)


def _check_no_tensor_is_lost(info: ModelInfo, inputs: Inputs, head: Head) -> None:
    """Raise if the model would ignore a tensor of the head that affects the logits.

    Two kinds of tensors do not: those that the model ignores in its own head too, and counters
    such as BatchNorm's ``num_batches_tracked``.
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
            f"{', '.join(lost)}: export a model with that head"
        )


def _check_task(info: ModelInfo, task: str, whose: str) -> None:
    own = info.heads[0].task.name
    if task != own:
        raise ExportError(
            f"this swappable model takes adapters for the task {own!r}, but {whose} is for the "
            f"task {task!r}: export a model with a head for that task"
        )


def _check_model_version(info: ModelInfo, model_version: int, path: Path) -> None:
    fingerprint = info.backbone["backbone"]["fingerprint"]
    if model_version == _model_version(info, fingerprint):
        return
    if info.levels:
        raise BackboneMismatch(
            f"the adapter {path} was made for a model with another backbone or other levels, "
            "expected one for this model: make an adapter from a head of this backbone (headkit "
            "graft), or pass force=True (--force)"
        )
    raise BackboneMismatch(
        f"the adapter {path} was made for a backbone with the fingerprint "
        f"{f'{model_version << 1:08x}'[:7]}, but the model's backbone has {fingerprint[:7]}: "
        "make an adapter from a head of this backbone (headkit graft), or pass force=True "
        "(--force)"
    )


def _model_version(info: ModelInfo, fingerprint: str) -> int:
    """Return the first 31 bits, as an adapter file holds signed integers of 32 bits.

    For a model with levels, they are those of a hash of the fingerprint and the levels.
    """
    if info.levels:
        row = json.dumps([fingerprint, *(level.to_json() for level in info.levels)], sort_keys=True)
        fingerprint = hashlib.sha256(row.encode()).hexdigest()
    try:
        return int(fingerprint[:8], 16) >> 1
    except ValueError as error:
        raise ExportError(
            f"the backbone's fingerprint is {fingerprint!r}, expected 64 hexadecimal digits"
        ) from error


def _count_classes(inputs: Inputs, shapes: Mapping[str, list[int]], path: Path) -> int:
    """Return an adapter's number of classes; raise if the model does not take its arrays."""
    classes = {
        size
        for key, shape in shapes.items()
        for size, dim in zip(shape, inputs.get(key, ()), strict=False)
        if isinstance(dim, str)
    }
    fits = len(classes) == 1 and all(
        [dim if isinstance(dim, int) else next(iter(classes)) for dim in dims] == shapes.get(key)
        for key, dims in inputs.items()
    )
    if not fits or set(shapes) != set(inputs):
        raise ExportError(
            f"the adapter {path} holds arrays of the shapes {shapes}, but the model takes "
            f"{ {key: list(dims) for key, dims in inputs.items()} }: make an adapter for this "
            "model (headkit graft)"
        )
    return classes.pop()
