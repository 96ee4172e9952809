"""The description of an exported model, in the ``metadata_props`` of the ONNX file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from headkit.adapters.backbone.level import ALL, LAST, Level, LevelNames, level_names
from headkit.adapters.bounds import (
    Bound,
    check_object,
    integer,
    json_value,
    list_of,
    object_of,
    one_of,
    text,
)
from headkit.adapters.errors import BackboneMismatch, ExportError, HeadFormatError, first_line
from headkit.adapters.heads.schema import (
    LEVELS,
    MAX_LEVELS,
    check_description,
    check_levels,
    check_requires,
    check_shapes,
)

from .bounded.check import check_graph
from .bounded.decode import decode_graph
from .checksums import CHECKSUMS
from .description.head_info import HeadInfo
from .description.names import LEVEL_BIAS, LEVEL_WEIGHT, PREFIX, TEMPERATURE, level_output

if TYPE_CHECKING:  # running a model needs no safetensors
    from headkit.adapters.heads.head import Head

FORMAT = "headkit"
VERSIONS = ("1", "2")
PARTS_OF_MODEL = frozenset({LEVELS})  # a delta is in the weights
FORMS = ("merged", "swappable", "multi", "backbone")
_TEXT = ("form", "classifier", "precision", "probabilities", "preprocess")
_JSON = ("backbone", "features", "heads", "cost", "versions", LEVELS)
_OBJECT = Bound("an object", lambda value: isinstance(value, Mapping))
_DIMENSION = Bound(
    "a size, or the name of a dimension",
    lambda value: isinstance(value, str | int) and (not isinstance(value, int) or value >= 0),
)
_ENTRIES: dict[str, Bound] = {
    "form": one_of(*FORMS),
    "backbone": _OBJECT,
    "features": object_of(list_of(_DIMENSION, 1, 8), 64),
    "heads": list_of(_OBJECT, 0, 1_000_000),
    "classifier": text(2**27),
    "versions": object_of(text(200), 100),
    "precision": one_of("fp32", "fp16", "int8"),
    "cost": object_of(json_value(4), 1_000_000, 200),
    "probabilities": one_of("0", "1"),
    "preprocess": one_of("0", "1"),
}
_OPTIONAL_ENTRIES: dict[str, Bound] = {LEVELS: list_of(_OBJECT, 1, MAX_LEVELS)}
_HEAD_ENTRY: dict[str, Bound] = {
    "name": text(200, r"[^\x00-\x1f\x7f]*"),
    "id": text(64, r"[0-9a-f]{64}|", "64 hexadecimal digits, or nothing"),
    "head": _OBJECT,
    "tensors": object_of(list_of(integer(0, 2**40), 0, 8), 1000, 1000),
}
_SHA256 = text(64, r"[0-9a-f]{64}", "64 hexadecimal digits")
_CHECKSUM_ENTRIES: dict[str, Bound] = {
    "backbone": _SHA256,
    "heads": list_of(_SHA256, 0, 1_000_000),
}
_COMPARED = ("global_pool", "pretrained_cfg")
_SHARED = ("architecture", "num_features", "global_pool", "pretrained_cfg", "model_args")
_ANY = Bound("a value", lambda _: True)
_SHARED_ENTRIES = dict.fromkeys((*_SHARED, "backbone"), _ANY)


@dataclass(frozen=True)
class ModelInfo:
    """The description of an exported model.

    Attributes:
        form: ``merged``, ``swappable``, ``multi`` or ``backbone``.
        backbone: Entries that all heads share: ``architecture``, ``num_features``, ``global_pool``,
            ``pretrained_cfg``, ``model_args`` and the head file's ``backbone`` entry.
        features: Shapes of the backbone's outputs, by name.
        heads: The heads, in the order of the outputs.
        classifier: ``encode_model`` of the classifier that torch converted; empty if it is linear.
        versions: Versions of the libraries that exported the model.
        precision: Precision of the backbone: ``fp32``, ``fp16`` or ``int8``.
        cost: Cost of that precision on held-out images (``precision.reduce.Cost``), by head.
        probabilities: The model has an output with probabilities for each head.
        preprocess: The model takes raw images.
        checksum: ``checksum_of_backbone`` of the model; empty for a model without checksums, as
            those of headkit 0.1.
        levels: The levels that the model computes for heads, in the order of the backbone, without
            the last features.
    """

    form: str
    backbone: Mapping[str, Any]
    features: Mapping[str, list[int | str]]
    heads: tuple[HeadInfo, ...]
    classifier: str
    versions: Mapping[str, str]
    precision: str = "fp32"
    cost: Mapping[str, Any] = field(default_factory=dict)
    probabilities: bool = False
    preprocess: bool = False
    checksum: str = ""
    levels: tuple[Level, ...] = ()

    @property
    def values(self) -> dict[str, list[int | str]]:
        """Shapes of what heads read, by name: the features and the levels."""
        levels: dict[str, list[int | str]] = {
            level_output(level): ["batch", level.width] for level in self.levels
        }
        return {**self.features, **levels}

    def is_of_head(self, name: str) -> bool:
        """Return True if a node, an input or an initializer of this name belongs to a head."""
        return name.startswith(PREFIX) or name in self._names_of_head

    @cached_property
    def _names_of_head(self) -> frozenset[str]:
        """Names that the tensors of the only head have in the graph."""
        if self.form == "multi":
            return frozenset()
        names = {name for head in self.heads for name in head.tensors} | {TEMPERATURE}
        return frozenset(names | ({LEVEL_WEIGHT, LEVEL_BIAS} if self.levels else set()))

    def head(self, name: str | None = None) -> HeadInfo:
        """Return the head named ``name``; if None, the only head.

        Raises:
            ExportError: There is no such head, or ``name`` is None and the model has not one head.
        """
        names = [head.name for head in self.heads]
        if name is None and len(names) == 1:
            return self.heads[0]
        if name is None or name not in names:
            problem = "no head was requested" if name is None else f"there is no head {name!r}"
            raise ExportError(
                f"{problem}: this {self.form} model has "
                f"{'the heads ' + ', '.join(names) if names else 'no heads'}"
            )
        return self.heads[names.index(name)]

    def check_backbone(self, head: Head, *, force: bool | None = False) -> None:
        """Raise if a head was trained on another backbone, pooling or preprocessing.

        Args:
            head: The head.
            force: Accept a head of another backbone of the same architecture. None is False, for
                callers without such an argument: the message then does not suggest it.

        Raises:
            BackboneMismatch: The architecture differs; or, unless ``force``, the weights, the
                pooling or the preprocessing differ. Or the model does not compute a level that
                the head reads.
        """
        if head.architecture != self.backbone["architecture"]:
            raise BackboneMismatch(
                f"this head was trained on {head.architecture}, but the model's backbone is "
                f"{self.backbone['architecture']}: export the head with its own backbone"
            )
        or_force = "" if force is None else ", or pass force=True (--force)"
        expected, actual = head.backbone.fingerprint, self.backbone["backbone"]["fingerprint"]
        if actual != expected and head.delta is not None:
            raise BackboneMismatch(
                f"this head has changes to the backbone's weights ({head.delta.method}), which the "
                "model does not have: export the head to a model of its own"
            )
        if actual != expected and not force:
            raise BackboneMismatch(
                f"this head was trained on {head.architecture} weights with the fingerprint "
                f"{expected[:12]}, but the model's weights have {actual[:12]}: export the head "
                f"with its own backbone{or_force}"
            )
        description = json.loads(_json(head.to_json()))
        for key in _COMPARED if not force else ():
            own = json.loads(_json(self.backbone[key]))
            if description[key] != own:
                raise BackboneMismatch(
                    f"this head was trained with {key} {description[key]}, but the model has "
                    f"{own}: export the head to a model of its own{or_force}"
                )
        self._check_levels(head)

    def _check_levels(self, head: Head) -> None:
        """Raise unless the model computes what the head reads.

        Raises:
            BackboneMismatch: It does not compute a level, or computes it in another way.
        """
        own = {level.name: level for level in self.levels}
        read = [level for level in head.levels if level.name != LAST]
        missing = [level.name for level in read if level.name not in own]
        if missing:
            raise BackboneMismatch(
                f"this head reads the levels {', '.join(missing)}, but the model computes "
                f"{'only ' + ', '.join(own) if own else 'the last features alone'}: export it "
                "again with levels='all' (--levels all), or with the names of the levels"
            )
        for level in read:
            if own[level.name] != level:
                raise BackboneMismatch(
                    f"this head reads the level {level.to_json()}, but the model computes "
                    f"{own[level.name].to_json()}: export the head with its own backbone"
                )

    def choose_levels(self, names: LevelNames) -> tuple[Level, ...]:
        """Return levels of the model by name, in its order; ``last`` adds nothing.

        Args:
            names: Names of levels, see ``level_names``, or ``all``.

        Raises:
            ExportError: The model does not compute such a level.
            ValueError: There is no name.
        """
        wanted = level_names(names)
        own = [level.name for level in self.levels]
        unknown = [name for name in wanted if name not in (ALL, LAST, *own)]
        if unknown:
            raise ExportError(
                f"the model does not compute the level {', '.join(map(repr, unknown))}; it "
                f"computes {', '.join((LAST, *own))}: export it again with levels='all' "
                "(--levels all), or with the names of the levels"
            )
        return tuple(level for level in self.levels if ALL in wanted or level.name in wanted)

    def with_heads(self, *heads: HeadInfo) -> ModelInfo:
        """Return a copy with other heads."""
        return replace(self, heads=heads)

    def to_props(self) -> dict[str, str]:
        """Return the entries of ``metadata_props``."""
        heads = [
            {
                "name": head.name,
                "id": head.head_id,
                # Entries that equal the backbone's are omitted: there can be thousands of heads.
                "head": {
                    key: value
                    for key, value in head.description.items()
                    if key not in self.backbone or self.backbone[key] != value
                },
                "tensors": head.tensors,
            }
            for head in self.heads
        ]
        # Version 1 is enough, and older versions of headkit read it, if no head records a rule.
        has_levels = bool(self.levels) or any(head.levels for head in self.heads)
        new = has_levels or any("pixels" in head.description for head in self.heads)
        added = {"requires": _json([LEVELS] if has_levels else [])} if new else {}
        if self.levels:
            added[LEVELS] = _json([level.to_json() for level in self.levels])
        props = {
            "format": FORMAT,
            "version": "2" if new else "1",
            "form": self.form,
            "backbone": _json(self.backbone),
            "features": _json(self.features),
            "heads": _json(heads),
            "classifier": self.classifier,
            "precision": self.precision,
            "cost": _json(self.cost),
            "probabilities": str(int(self.probabilities)),
            "preprocess": str(int(self.preprocess)),
            "versions": _json(self.versions),
            **added,
        }
        if self.checksum:
            heads_of = [head.checksum for head in self.heads]
            props[CHECKSUMS] = _json({"backbone": self.checksum, "heads": heads_of})
        return props

    @classmethod
    def from_props(cls, props: Mapping[str, str], name: str) -> ModelInfo:
        """Return the description that ``to_props`` stored.

        Args:
            props: Entries of ``metadata_props``.
            name: Name of the file, for the message.

        Raises:
            ExportError: headkit did not export the model, a newer version did, or the metadata is
                damaged.
        """
        if props.get("format") != FORMAT:
            raise ExportError(f"{name} is an ONNX model that headkit did not export")
        if props.get("version") not in VERSIONS:
            raise ExportError(
                f"{name} has metadata version {props.get('version')!r}, but this headkit reads "
                f"{' and '.join(VERSIONS)}: export the model again, or install a matching "
                "headkit"
            )
        try:
            return _read(props, name)
        except (HeadFormatError, KeyError, ValueError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
            raise ExportError(f"{name} has damaged headkit metadata: {reason}") from error


def _read_checksums(props: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the checksums of the backbone and of each head; empty if there are none."""
    if CHECKSUMS not in props:
        return "", []
    values = json.loads(props[CHECKSUMS])
    checked = check_object(values, _CHECKSUM_ENTRIES, _CHECKSUM_ENTRIES, CHECKSUMS)
    return checked["backbone"], checked["heads"]


def _read(props: Mapping[str, str], name: str) -> ModelInfo:
    """Read the entries of ``metadata_props``; all of them may come from anybody.

    Raises:
        HeadFormatError, KeyError, ValueError, RecursionError: An entry is missing or out of bounds.
    """
    check_requires(json.loads(props.get("requires", "[]")), name, PARTS_OF_MODEL)
    checksum, checksums = _read_checksums(props)
    values = {key: json.loads(props[key]) for key in _JSON if key in props}
    values |= {key: props[key] for key in _TEXT if key in props}
    entries = check_object(values, {**_ENTRIES, **_OPTIONAL_ENTRIES}, _ENTRIES, name)
    shared = check_object(entries["backbone"], _SHARED_ENTRIES, _SHARED_ENTRIES, "backbone")
    check_description({**shared, "num_classes": 1}, "backbone")
    classifier = base64.b64decode(entries["classifier"], validate=True)
    if classifier:
        check_graph(decode_graph(classifier))
    heads = []
    checksums = checksums or [""] * len(entries["heads"])
    for number, (entry, own) in enumerate(zip(entries["heads"], checksums, strict=True)):
        where = f"heads[{number}]"
        one = check_object(entry, _HEAD_ENTRY, _HEAD_ENTRY, where)
        description = check_description({**shared, **one["head"]}, where)
        check_shapes(description, one["tensors"], where)
        labels = description.get("label_names")
        if labels is not None and len(labels) != description["num_classes"]:
            raise ValueError(
                f"{where} has {len(labels)} label names, expected {description['num_classes']}"
            )
        heads.append(HeadInfo(one["name"], one["id"], description, one["tensors"], own))
    info = ModelInfo(
        form=entries["form"],
        backbone=shared,
        features=entries["features"],
        heads=tuple(heads),
        classifier=entries["classifier"],
        versions=entries["versions"],
        precision=entries["precision"],
        cost=entries["cost"],
        probabilities=entries["probabilities"] == "1",
        preprocess=entries["preprocess"] == "1",
        checksum=checksum,
        levels=_read_levels(entries.get(LEVELS, []), props, heads),
    )
    if not _count_fits(info) or len({head.name for head in heads}) < len(heads):
        raise ValueError(f"the form {info.form!r} has {len(heads)} heads: its entries disagree")
    return info


def _read_levels(
    entries: Sequence[object], props: Mapping[str, str], heads: Sequence[HeadInfo]
) -> tuple[Level, ...]:
    """Return the levels that a model computes, after a check that they suffice for its heads."""
    levels = check_levels(entries, "the model")
    if levels and LEVELS not in json.loads(props.get("requires", "[]")):
        raise ValueError(f"it has {LEVELS}, but its entry 'requires' lacks {LEVELS!r}")
    if any(level.name == LAST for level in levels):
        raise ValueError(f"{LEVELS} has {LAST!r}, expected levels other than the last features")
    for head in heads:
        for level in head.levels:
            if level.name != LAST and level not in levels:
                raise ValueError(
                    f"the head {head.name!r} reads the level {level.name}, which is not among the "
                    "levels of the model"
                )
    return levels


def _count_fits(info: ModelInfo) -> bool:
    count = len(info.heads)
    return {"backbone": count == 0, "multi": count > 0}.get(info.form, count == 1)


def shared_description(head: Head) -> dict[str, Any]:
    """Return the entries of a head's description that all heads of its backbone share."""
    description = head.to_json()
    return {key: description[key] for key in (*_SHARED, "backbone")}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
