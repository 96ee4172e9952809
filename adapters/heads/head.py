"""The head: the trained tensors of a classifier and everything needed to put them back.

This module reads and writes head files (docs/head-file.md) without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from headkit.adapters.backbone.delta.delta import Delta
from headkit.adapters.backbone.info import BackboneInfo
from headkit.adapters.backbone.level import Level
from headkit.adapters.display import cut_name, format_count, format_line, format_table
from headkit.adapters.errors import HeadFormatError
from headkit.adapters.file_kinds import HEAD, check_output, explain_wrong_kind
from headkit.adapters.files import check_readable, write_atomically
from headkit.adapters.images.pixel_rule import CURRENT_RULE, VERSION_1_RULE, PixelRule

from . import classes
from .checksum import check_checksum
from .dtypes import check_dtype, dtype_name
from .encoding import decode_description, encode
from .schema import (
    DELTA,
    LEVELS,
    check_description,
    check_levels,
    check_pixels,
    check_shapes,
    join_delta,
    read_delta,
    split_delta,
)
from .summary import find_weak_classes, format_interval
from .tasks import DEFAULT, TaskName

MAX_OVERHEAD = 4096
"""Maximum bytes of a head file in addition to its tensors and its values per class."""
PER_CLASS = "recall"
"""The metric that has a value per class."""


def _now() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch.isdecimal() else datetime.now(UTC)


@dataclass(frozen=True, eq=False, repr=False)
class Head:
    """The trained tensors of a classifier, its labels and everything needed to put them back.

    Two heads are equal if their descriptions are equal and their tensors have the same bits.

    Attributes:
        tensors: Arrays under the model's own ``state_dict`` names.
        architecture: timm entry point.
        num_classes: Length of the logits.
        num_features: Width of the features that enter the classifier.
        backbone: The backbone that the head was trained on.
        pretrained_cfg: Preprocessing in timm's words: ``input_size`` (channels, height, width),
            ``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``.
        global_pool: timm's name of the pooling before the classifier; empty without pooling.
        kind: ``own`` for the architecture's own classifier, ``linear``, ``mlp`` or ``cosine``.
        label_names: One name per class, or None.
        model_args: timm's arguments that build the architecture, without the number of classes.
        task: What the logits mean.
        temperature: Divisor of the logits before softmax or sigmoid.
        metrics: Measurements on validation data.
        created: UTC time, ISO 8601; the time in ``SOURCE_DATE_EPOCH`` if that is set, so that
            builds are reproducible (reproducible-builds.org).
        versions: Versions of the libraries that made the head.
        notes: Free text.
        pixels: The rule by which images become the pixels that the head was trained on.
        levels: Levels whose vectors, one after the other, are the row that the head reads, see
            docs/head-file.md. Empty for a head that reads the last features alone.
        thresholds: Least score of each label for which the label counts as found, 0 to 1, for a
            multilabel head; None for 0.5 everywhere. A score is the sigmoid of the logit that was
            divided by the temperature.
        delta: Changes to the backbone's weights that the head needs, or None. ``backbone`` is then
            the backbone with these changes.
    """

    tensors: Mapping[str, np.ndarray[Any, Any]]
    architecture: str
    num_classes: int
    num_features: int
    backbone: BackboneInfo
    pretrained_cfg: Mapping[str, Any]
    global_pool: str = ""
    kind: str = "own"
    label_names: tuple[str, ...] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    task: TaskName = DEFAULT
    temperature: float = 1.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=lambda: _now().isoformat(timespec="seconds"))
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""
    pixels: PixelRule = CURRENT_RULE
    levels: tuple[Level, ...] = ()
    thresholds: tuple[float, ...] | None = None
    delta: Delta | None = None

    def __post_init__(self) -> None:
        """Check that the values of the head agree with each other.

        Raises:
            HeadFormatError: They do not; the message says what is wrong and what was expected.
        """
        if not self.tensors:
            raise HeadFormatError("a head needs at least one tensor, found none")
        if self.label_names is not None and len(self.label_names) != self.num_classes:
            raise HeadFormatError(
                f"the head has {len(self.label_names)} label names, expected {self.num_classes}, "
                "one per class"
            )
        values = check_description(self.to_json())
        tensors = self.all_tensors
        shapes = {name: np.shape(tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            check_dtype(name, dtype_name(tensor), shapes[name])
        check_shapes(values, shapes)
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                raise HeadFormatError(f"tensor {name} holds values that are not finite")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Head):
            return NotImplemented
        return self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def __repr__(self) -> str:
        return format_line("Head", self._facts())

    def _repr_html_(self) -> str:
        return format_table("Head", self._facts())

    def _content(self) -> tuple[str, tuple[tuple[str, str, tuple[int, ...], bytes], ...]]:
        """Return everything that equality compares; a list equals a tuple, as in a head file."""
        description = json.dumps(self.to_json(), sort_keys=True, default=repr)
        arrays = {name: np.asarray(tensor) for name, tensor in sorted(self.all_tensors.items())}
        return description, tuple(
            (name, str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()
        )

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "architecture": self.architecture,
            "kind": self.kind,
            "task": self.task,
            "classes": format_count(self.num_classes, self.label_names),
            "bytes": f"{self.num_bytes:,}",
        }
        if self.levels:
            facts["levels"] = ", ".join(cut_name(level.name) for level in self.levels)
        if self.delta is not None:
            facts["delta"] = f"{self.delta.method}, {self.delta.num_values:,} values"
        accuracy = self.metrics.get("accuracy")
        if accuracy is not None:
            interval = format_interval(self.metrics.get("accuracy_interval"))
            facts["accuracy"] = f"{accuracy}{interval}"
        weak = find_weak_classes(self.metrics.get("recall"), self.label_names or ())
        if weak:
            facts["weak classes"] = format_count(len(weak), [name for name, _ in weak])
        return facts

    @property
    def all_tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """The tensors of the classifier and of the delta, by their names in the head file."""
        return {**self.tensors, **join_delta(self.delta)}

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors alone."""
        return sum(tensor.nbytes for tensor in self.all_tensors.values())

    @property
    def format_version(self) -> str:
        """Version of the head file: the lowest that can hold the head."""
        new = (self.thresholds, self.delta, self.levels or None)
        has_new_part = self.pixels != VERSION_1_RULE or any(part is not None for part in new)
        return "2" if has_new_part else "1"

    @property
    def digest(self) -> str:
        """SHA-256 of the head file, 64 hexadecimal digits; it identifies the head."""
        return hashlib.sha256(self.serialize()).hexdigest()

    def with_changes(self, **changes: Any) -> Head:
        """Return a copy with other values, for example of ``label_names`` or ``notes``."""
        return replace(self, **changes)

    def select(self, labels: Sequence[str]) -> Head:
        """Return a head with only these classes, in this order. Nothing is trained again.

        The logits of the classes stay as they were, and so do the temperature and the thresholds.
        The metrics go, because they were measured with the other classes; the recall of each label
        of a multilabel head stays. If only the order changes, all metrics stay.

        Args:
            labels: Names of classes of the head. For a regression head, names of its targets.

        Raises:
            ValueError: The head has no label names, a label is unknown or named twice, or a single
                class of a multiclass head would be left.
            HeadFormatError: The head is an architecture's own classifier with hidden layers.
        """
        return classes.select(self, labels)

    def drop(self, labels: Sequence[str]) -> Head:
        """Return a head without these classes. The others are as ``select`` leaves them.

        Raises:
            ValueError, HeadFormatError: See ``select``.
        """
        return classes.drop(self, labels)

    def rename(self, names: Mapping[str, str]) -> Head:
        """Return a head whose classes have other names. Nothing else changes.

        Args:
            names: New names by old name. Classes that are not mentioned keep theirs.

        Raises:
            ValueError: The head has no label names or no such label, a new name is empty, or two
                classes would have the same name.
        """
        return classes.rename(self, names)

    def merged(self) -> Head:
        """Return the head for a backbone that has the changes of ``delta`` in its weights."""
        return self if self.delta is None else replace(self, delta=None)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the tensors as JSON values: the ``head`` entry of a head file."""
        description = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tensors"}
        description["backbone"] = asdict(self.backbone)
        description["pixels"] = self.pixels.to_json()
        description["levels"] = [level.to_json() for level in self.levels]
        description["delta"] = None if self.delta is None else self.delta.to_json()
        description["requires"] = [part for part in (LEVELS, DELTA) if description[part]]
        optional = ("label_names", "thresholds", "delta")
        absent = [name for name in optional if description[name] is None]
        absent += [name for name in ("levels", "requires") if not description[name]]
        if self.format_version == "1":
            absent.append("pixels")
        return {name: value for name, value in description.items() if name not in absent}

    @classmethod
    def from_json(cls, tensors: Mapping[str, np.ndarray[Any, Any]], description: object) -> Head:
        """Build a head from its tensors and its ``head`` entry. Unknown keys are ignored.

        An entry without ``pixels`` has the rule of version 1.

        Raises:
            HeadFormatError: A key is missing or its value is of another type, or the head requires
                a part that this headkit does not know.
        """
        values = check_description(description)
        values.pop("requires", None)
        rule = values.get("pixels")
        values["pixels"] = VERSION_1_RULE if rule is None else check_pixels(rule)
        backbone = {key: value for key, value in values["backbone"].items() if key != "checksums"}
        values["backbone"] = BackboneInfo(**backbone)
        values["levels"] = check_levels(values.get("levels", ()))
        tensors, changes = split_delta(tensors)
        if "delta" in values:
            values["delta"] = read_delta(values["delta"], changes)
        for name in ("label_names", "thresholds"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        return cls(tensors=tensors, **values)

    def serialize(self) -> bytes:
        """Return the content of the head file; equal heads give equal bytes.

        Raises:
            HeadFormatError: Values other than tensors, label names, recall and thresholds take more
                than 4 KiB.
        """
        description = self.to_json()
        without_classes = {
            **{k: v for k, v in description.items() if k not in ("label_names", "thresholds")},
            "metrics": {k: v for k, v in self.metrics.items() if k != PER_CLASS},
        }
        version = self.format_version
        classifier = sum(tensor.nbytes for tensor in self.tensors.values())
        overhead = len(encode(without_classes, self.tensors, version)) - classifier
        if overhead > MAX_OVERHEAD:
            raise HeadFormatError(
                f"the head's description takes {overhead} bytes without tensors, label names, "
                f"recall and thresholds, but at most {MAX_OVERHEAD} are allowed: shorten its notes "
                "or metrics"
            )
        return encode(description, self.all_tensors, version)

    def save(self, path: str | Path) -> Path:
        """Write the complete head file or nothing. Return the path.

        Args:
            path: A path that ends in ``.safetensors``; a missing folder is made.

        Raises:
            OutputError: The path cannot be written; a file at the path stays as it was.
            HeadFormatError: See ``serialize``.
        """
        return write_atomically(check_output(path, HEAD), self.serialize())

    @classmethod
    def load(cls, path: str | Path) -> Head:
        """Read a head file and check everything in it.

        Args:
            path: Path of the file. For a reference to a store, see ``HeadStore.load``.

        Raises:
            HeadFormatError: The file is missing, truncated or damaged, was changed after it was
                written, or is not a head file of version 1 or 2.
        """
        check_readable(path, "head", HeadFormatError)
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                description = decode_description(metadata)
                names = sorted(file.keys())
                slices = {name: file.get_slice(name) for name in names}
                shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
                # Check everything before reading it: a sparse file has more bytes than the disk.
                for name, one in slices.items():
                    check_dtype(name, one.get_dtype(), shapes[name])
                check_shapes(check_description(description), shapes)
                tensors = {name: file.get_tensor(name) for name in names}
            check_checksum(metadata, tensors)
            return cls.from_json(tensors, description)
        except (HeadFormatError, SafetensorError, OSError, ValueError, RecursionError) as error:
            reason = str(error)
            if isinstance(error, SafetensorError):
                reason = explain_wrong_kind(path, HEAD) or reason
            raise HeadFormatError(f"cannot read head {path}: {reason}") from error
