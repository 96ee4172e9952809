"""The schema of a head: what its description may hold, and which tensors fit the description.

Head files, the metadata of exported models and the records of a store describe heads. All of them
may come from anybody, so every value has bounds, and everything else in them is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from headkit.adapters.backbone.config.arguments import MAX_EDGE, check_arguments
from headkit.adapters.backbone.delta.delta import Delta, check_delta, check_tensors
from headkit.adapters.backbone.level import Level
from headkit.adapters.bounds import (
    Bound,
    check_object,
    describe,
    integer,
    json_value,
    list_of,
    number,
    object_of,
    one_of,
    optional,
    text,
)
from headkit.adapters.errors import HeadFormatError
from headkit.adapters.images.pixel_rule import PixelRule

from .tasks import DEFAULT, TASKS, get_task

MAX_CLASSES = 2**31 - 1
LEVELS = "levels"
"""Name of the part of a head that reads several levels."""
DELTA = "delta"
"""Name of the part of a head that changes the backbone's weights; its tensors start with it."""
KNOWN_PARTS: frozenset[str] = frozenset({LEVELS, DELTA})
"""Optional parts of a head that change its logits, see ``requires`` in docs/head-file.md."""
KINDS = ("own", "linear", "mlp", "cosine")
TENSORS_OF_KIND: dict[str, dict[str, str]] = {
    "linear": {"weight": "nd", "bias": "n"},
    "mlp": {"fc1.weight": "hd", "fc1.bias": "h", "fc2.weight": "nh", "fc2.bias": "n"},
    "cosine": {"weight": "nd", "scale": ""},
}
"""Names and dimensions of the tensors in each module of a head, for the kinds that headkit defines.

n is the number of classes, d the width of the module's input, h that of a hidden layer.
"""
_OPTIONAL_TENSORS = ("bias",)
LEVEL_HEAD = "level_head"
"""Name of the module of a head over levels."""
MAX_LEVELS = 64


def check_description(description: object, where: str = "head") -> dict[str, Any]:
    """Return the known keys of the ``head`` entry of a head file. Unknown keys are left out.

    Raises:
        HeadFormatError: A key is missing, its value is out of bounds, or the head requires a part
            that this headkit does not know.
    """
    try:
        values = check_object(description, _HEAD, _REQUIRED, where)
        values["backbone"] = check_object(
            values["backbone"], _BACKBONE, _REQUIRED, f"{where}.backbone"
        )
        values["pretrained_cfg"] = check_object(
            values["pretrained_cfg"], _PREPROCESSING, _REQUIRED, f"{where}.pretrained_cfg"
        )
        _check_preprocessing(values["pretrained_cfg"], f"{where}.pretrained_cfg")
        check_arguments(values.get("model_args", {}), f"{where}.model_args")
    except (ValueError, RecursionError) as error:
        raise HeadFormatError(str(error)) from error
    if "pixels" in values:
        check_pixels(values["pixels"], where)
    check_requires(values.get("requires", []), where)
    _check_parts(values, where)
    return values


def check_levels(value: Sequence[object], where: str = "head") -> tuple[Level, ...]:
    """Return the levels that the entry ``levels`` describes.

    Raises:
        HeadFormatError: A level is not complete, one of its values is out of bounds, or two levels
            have the same name.
    """
    try:
        levels = tuple(
            Level.from_json(one, f"{where}.levels[{number}]") for number, one in enumerate(value)
        )
    except ValueError as error:
        raise HeadFormatError(str(error)) from error
    names = [level.name for level in levels]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise HeadFormatError(
            f"{where}.levels has {names.count(repeated)} levels called {describe(repeated)}, "
            "expected distinct names"
        )
    return levels


def check_pixels(value: object, where: str = "head") -> PixelRule:
    """Return the rule that the entry ``pixels`` describes.

    Raises:
        HeadFormatError: The entry is not complete, or this headkit does not know one of its values.
    """
    try:
        return PixelRule.from_json(value)
    except ValueError as error:
        raise HeadFormatError(
            f"{where}.{error}: if a newer headkit wrote the file, install it"
        ) from error


def check_requires(parts: object, where: str = "head", known: frozenset[str] = KNOWN_PARTS) -> None:
    """Raise ``HeadFormatError`` if this headkit does not know a part that a head requires."""
    names = parts if isinstance(parts, list) else [parts]
    unknown = [name for name in names if not isinstance(name, str) or name not in known]
    if unknown:
        raise HeadFormatError(
            f"{where} requires {', '.join(map(describe, unknown[:5]))}, which this headkit does "
            "not know: install a newer headkit"
        )


def _check_parts(values: dict[str, Any], where: str) -> None:
    """Raise ``HeadFormatError`` if the optional parts of a head contradict its other values."""
    has_levels, kind = LEVELS in values, values.get("kind", "own")
    if has_levels:
        check_levels(values[LEVELS], where)
    if DELTA in values:
        try:
            values[DELTA] = check_delta(values[DELTA], f"{where}.{DELTA}")
        except ValueError as error:
            raise HeadFormatError(str(error)) from error
    for part in sorted(KNOWN_PARTS):
        has = part in values
        if has != (part in values.get("requires", [])):
            raise HeadFormatError(
                f"{where} has {part if has else f'no {part}'}, but its requires "
                f"{'lacks' if has else 'has'} {part!r}: the file is damaged, or another program "
                "wrote it"
            )
    if has_levels and kind != "linear":
        raise HeadFormatError(
            f"{where} has levels and the kind {kind!r}, expected the kind 'linear'"
        )
    thresholds = values.get("thresholds")
    if thresholds is None:
        return
    task, classes = values.get("task", DEFAULT), values["num_classes"]
    if not get_task(task).independent:
        raise HeadFormatError(f"{where} has thresholds and the task {task!r}, expected multilabel")
    if len(thresholds) != classes:
        raise HeadFormatError(
            f"{where} has {len(thresholds)} thresholds, expected {classes}, one per class"
        )


def check_shapes(
    description: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], where: str = "the head"
) -> None:
    """Check that the shapes of a head's tensors fit its description.

    For the architecture's own classifier, the names of its tensors are not known here. Then some
    matrix must have a row per class, and every bias as many values as its matrix has rows. If there
    is only one matrix, its rows have ``num_features`` values.

    Args:
        description: Checked values, see ``check_description``.
        shapes: Shapes of the tensors, by name.
        where: What messages call the head.

    Raises:
        HeadFormatError: They do not fit.
    """
    shapes, changes = split_delta(shapes)
    if changes or DELTA in description:
        _check_delta_shapes(changes, where, described=DELTA in description)
    classes, features = description["num_classes"], description["num_features"]
    kind = description.get("kind", "own")
    if "levels" in description:
        _check_level_shapes(check_levels(description["levels"]), classes, shapes, where)
        return
    widths: list[int] = []
    if kind in TENSORS_OF_KIND:
        for module, tensors in _group(shapes, TENSORS_OF_KIND[kind], kind, where).items():
            sizes = {"n": classes}
            for name, letters in TENSORS_OF_KIND[kind].items():
                shape = tensors.get(name)
                if shape is None:
                    continue
                expected = [sizes.setdefault(x, n) for x, n in zip(letters, shape, strict=False)]
                if len(letters) != len(shape) or expected != list(shape):
                    shown = [sizes.get(letter, letter) for letter in letters]
                    raise HeadFormatError(
                        f"{where} has the tensor {module}{name} with the shape {list(shape)}, "
                        f"expected {shown} for the kind {kind!r} and {classes} classes"
                    )
            widths.append(sizes["d"])
    else:
        matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
        if not any(shape[0] == classes for shape in matrices.values()):
            raise HeadFormatError(
                f"{where} has {classes} classes, but no tensor with that many rows: its tensors "
                f"have the shapes {describe({name: list(s) for name, s in shapes.items()})}"
            )
        for name, shape in matrices.items():
            bias = shapes.get(f"{name.removesuffix('weight')}bias")
            if name.endswith("weight") and bias is not None and list(bias) != [shape[0]]:
                raise HeadFormatError(
                    f"{where} has the bias of {name} with the shape {list(bias)}, expected "
                    f"[{shape[0]}]"
                )
        if len(matrices) == 1 and len(shapes) <= 2:
            (shape,) = matrices.values()
            widths.append(math.prod(shape[1:]))
    if widths and features not in (sum(widths), *(widths if len(set(widths)) == 1 else ())):
        raise HeadFormatError(
            f"{where} takes {features} features, but its tensors take {describe(widths)}"
        )


_Value = TypeVar("_Value")


def split_delta(tensors: Mapping[str, _Value]) -> tuple[dict[str, _Value], dict[str, _Value]]:
    """Return the tensors of a head file's classifier, and those of its delta."""
    prefix = f"{DELTA}."
    own = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    changes = {
        name.removeprefix(prefix): value for name, value in tensors.items() if name not in own
    }
    return own, changes


def read_delta(description: Mapping[str, Any], tensors: Mapping[str, Any]) -> Delta:
    """Return the delta that the entry ``delta`` of a checked description describes.

    Raises:
        HeadFormatError: The tensors do not fit each other.
    """
    try:
        return Delta(tensors=dict(tensors), **description)
    except ValueError as error:
        raise HeadFormatError(str(error)) from error


def join_delta(delta: Delta | None) -> dict[str, Any]:
    """Return the tensors of a delta under their names in a head file."""
    return {} if delta is None else {f"{DELTA}.{k}": v for k, v in delta.tensors.items()}


def _check_delta_shapes(
    changes: Mapping[str, Sequence[int]], where: str, *, described: bool
) -> None:
    if not described:
        raise HeadFormatError(
            f"{where} has the tensor {DELTA}.{describe(next(iter(changes)))}, but no {DELTA!r} in "
            "its description: the file is damaged, or another program wrote it"
        )
    try:
        check_tensors(changes, f"the delta of {where}")
    except ValueError as error:
        raise HeadFormatError(str(error)) from error


def _check_level_shapes(
    levels: Sequence[Level], classes: int, shapes: Mapping[str, Sequence[int]], where: str
) -> None:
    width = sum(level.width for level in levels)
    expected = {f"{LEVEL_HEAD}.weight": [classes, width], f"{LEVEL_HEAD}.bias": [classes]}
    found = {name: list(shape) for name, shape in shapes.items()}
    if found != expected:
        raise HeadFormatError(
            f"{where} has tensors of the shapes {describe(found)}, expected {expected} for "
            f"{classes} classes and levels of the widths "
            f"{describe([level.width for level in levels])}"
        )


def _group(
    shapes: Mapping[str, Sequence[int]], names: Mapping[str, str], kind: str, where: str
) -> dict[str, dict[str, Sequence[int]]]:
    """Return the tensors of each module, by the name of the module with a dot at its end."""
    modules: dict[str, dict[str, Sequence[int]]] = {}
    for full, shape in shapes.items():
        for name in sorted(names, key=len, reverse=True):
            if full == name or full.endswith(f".{name}"):
                modules.setdefault(full.removesuffix(name), {})[name] = shape
                break
        else:
            raise HeadFormatError(
                f"{where} has the tensor {describe(full)}, but a head of the kind {kind!r} has "
                f"only {', '.join(names)}"
            )
    for module, tensors in modules.items():
        missing = [n for n in names if n not in tensors and n not in _OPTIONAL_TENSORS]
        if missing:
            raise HeadFormatError(f"{where} lacks the tensor {module}{missing[0]}")
    return modules


def _check_preprocessing(cfg: Mapping[str, Any], where: str) -> None:
    channels = cfg["input_size"][0]
    for key in ("mean", "std"):
        if len(cfg[key]) != channels:
            raise ValueError(
                f"{where}.{key} has {len(cfg[key])} values, expected {channels} as in input_size"
            )


_HEAD: dict[str, Bound] = {
    "architecture": text(100, r"[A-Za-z0-9_]+", "the name of a timm architecture"),
    "num_classes": integer(1, MAX_CLASSES),
    "num_features": integer(1, MAX_CLASSES),
    "backbone": Bound("an object", lambda value: isinstance(value, Mapping)),
    "pretrained_cfg": Bound("an object", lambda value: isinstance(value, Mapping)),
    "global_pool": text(64, r"[A-Za-z0-9_]*", "a word"),
    "kind": one_of(*KINDS),
    "label_names": optional(list_of(text(4096), 1, MAX_CLASSES)),
    "model_args": object_of(Bound("a plain value", lambda _: True), 100, 64),
    "task": one_of(*TASKS),
    "temperature": number(1e-9, 1e9),
    "metrics": object_of(json_value(4), 1000, 200),
    "created": text(64, r"[0-9T:.+\-Z]*", "a UTC time, ISO 8601"),
    "versions": object_of(text(200), 100),
    "notes": text(1_000_000),
    "pixels": Bound("an object", lambda value: isinstance(value, Mapping)),
    "requires": Bound("a list of names", lambda value: isinstance(value, list)),
    "levels": Bound(
        f"a list of 1 to {MAX_LEVELS} objects",
        lambda value: isinstance(value, list | tuple) and 1 <= len(value) <= MAX_LEVELS,
    ),
    "thresholds": optional(list_of(number(0, 1), 1, MAX_CLASSES)),
    DELTA: Bound("an object", lambda value: isinstance(value, Mapping)),
}
_BACKBONE: dict[str, Bound] = {
    "tag": text(100, r"[A-Za-z0-9_.\-]*", "a tag of letters, digits, '_', '.' and '-'"),
    "source": Bound(
        "text of at most 1,000 printable characters",
        lambda value: isinstance(value, str) and len(value) <= 1000 and value.isprintable(),
    ),
    "parameters": integer(0, 2**50),
    "fingerprint": text(64, r"[0-9a-f]{64}", "64 hexadecimal digits"),
    "checksums": object_of(text(64, r"[0-9a-f]{64}", "64 hexadecimal digits"), 100, 255),
}
_PREPROCESSING: dict[str, Bound] = {
    "input_size": list_of(integer(1, MAX_EDGE), 3, 3),
    "mean": list_of(number(-1000, 1000), 1, 1024),
    "std": list_of(number(1e-6, 1000), 1, 1024),
    "interpolation": one_of(
        "bicubic", "bilinear", "nearest", "box", "hamming", "lanczos", "random"
    ),
    "crop_pct": number(0.01, 10),
    "crop_mode": one_of("center", "squash", "border"),
}
_REQUIRED = frozenset(
    {
        *("architecture", "num_classes", "num_features", "backbone", "pretrained_cfg"),
        *("tag", "source", "parameters", "fingerprint"),
        *_PREPROCESSING,
    }
)
