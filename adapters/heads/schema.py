"""Check the JSON that describes a head: its keys and the types of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headkit.adapters.errors import HeadFormatError
from headkit.adapters.pixel_rule import PixelRule

from .tasks import get_task


def check_description(description: object, where: str = "head") -> dict[str, Any]:
    """Return the known keys of the ``head`` entry of a head file. Unknown keys are ignored.

    Raises:
        HeadFormatError: A key is missing or its value is of another type.
    """
    values = _check_types(description, _HEAD_TYPES, where)
    values["backbone"] = _check_types(values["backbone"], _BACKBONE_TYPES, f"{where}.backbone")
    cfg = _check_types(values["pretrained_cfg"], _PREPROCESSING_TYPES, f"{where}.pretrained_cfg")
    for key in ("input_size", "mean", "std"):
        if not cfg[key] or not all(isinstance(number, int | float) for number in cfg[key]):
            raise HeadFormatError(f"{where}.pretrained_cfg.{key} is {cfg[key]}, expected numbers")
    if len(cfg["input_size"]) != 3:
        raise HeadFormatError(
            f"{where}.pretrained_cfg.input_size is {cfg['input_size']}, expected three numbers"
        )
    names = values.get("label_names")
    if names is not None and not all(isinstance(name, str) for name in names):
        raise HeadFormatError(f"{where}.label_names has a value that is not a string")
    if "task" in values:
        check_task(values["task"])
    if "pixels" in values:
        check_pixels(values["pixels"], where)
    check_requires(values.get("requires", []), where)
    return values


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


def check_requires(parts: object, where: str = "head") -> None:
    """Raise ``HeadFormatError`` if this headkit does not know a part that a head requires."""
    names = parts if isinstance(parts, list) else [parts]
    unknown = [name for name in names if name not in KNOWN_PARTS]
    if unknown:
        raise HeadFormatError(
            f"{where} requires {', '.join(map(repr, unknown))}, which this headkit does not know: "
            "install a newer headkit"
        )


def check_task(name: str) -> None:
    """Raise ``HeadFormatError`` if there is no task called ``name``."""
    try:
        get_task(name)
    except ValueError as error:
        raise HeadFormatError(str(error)) from error


KNOWN_PARTS: frozenset[str] = frozenset()
"""Optional parts of a head that change its logits, see ``requires`` in docs/head-file.md."""
_HEAD_TYPES: dict[str, tuple[type, ...]] = {
    "architecture": (str,),
    "num_classes": (int,),
    "num_features": (int,),
    "backbone": (dict,),
    "pretrained_cfg": (dict,),
    "global_pool": (str,),
    "kind": (str,),
    "label_names": (list, type(None)),
    "model_args": (dict,),
    "task": (str,),
    "temperature": (float, int),
    "metrics": (dict,),
    "created": (str,),
    "versions": (dict,),
    "notes": (str,),
    "pixels": (dict,),
    "requires": (list,),
}
_BACKBONE_TYPES: dict[str, tuple[type, ...]] = {
    "tag": (str,),
    "source": (str,),
    "parameters": (int,),
    "fingerprint": (str,),
}
_PREPROCESSING_TYPES: dict[str, tuple[type, ...]] = {
    "input_size": (list, tuple),
    "mean": (list, tuple),
    "std": (list, tuple),
    "interpolation": (str,),
    "crop_pct": (float, int),
    "crop_mode": (str,),
}
_REQUIRED = {
    "architecture",
    "num_classes",
    "num_features",
    "backbone",
    "pretrained_cfg",
    *_BACKBONE_TYPES,
    *_PREPROCESSING_TYPES,
}


def _check_types(
    description: object, types: Mapping[str, tuple[type, ...]], where: str
) -> dict[str, Any]:
    if not isinstance(description, dict):
        raise HeadFormatError(f"{where} is {type(description).__name__}, expected an object")
    values: dict[str, Any] = {}
    for key, expected in types.items():
        if key not in description:
            if key in _REQUIRED:
                raise HeadFormatError(f"{where}.{key} is missing")
            continue
        value = description[key]
        if not isinstance(value, expected) or isinstance(value, bool):
            names = " or ".join(t.__name__ for t in expected)
            raise HeadFormatError(f"{where}.{key} is {type(value).__name__}, expected {names}")
        values[key] = value
    return values
