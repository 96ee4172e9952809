"""Check what a model that timm saved says of itself, before timm builds a model from it.

``local-dir:FOLDER`` and ``hf-hub:USER/REPO`` name such models. timm passes ``model_args`` of their
``config.json`` on to the class of the architecture, and some arguments open or fetch other files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm.models

from headkit.adapters.backbone.weights.read import read_config
from headkit.adapters.bounds import (
    Bound,
    check_object,
    integer,
    list_of,
    number,
    one_of,
    optional,
    text,
)
from headkit.adapters.errors import WeightsError

from .arguments import MAX_EDGE, check_arguments

LOCAL, HUB = "local-dir:", ("hf-hub:", "hf_hub:")
"""Prefixes of timm for a folder and for a repository on the Hugging Face Hub."""
MAX_CLASSES = 10_000_000
"""Maximum number of classes in a ``config.json``; timm makes a classifier of this size."""


def is_saved_model(architecture: str) -> bool:
    """Return True if a name is the place of a model that timm saved."""
    return architecture.startswith((LOCAL, *HUB))


def check_saved_model(architecture: str, cache_dir: str | Path | None = None) -> None:
    """Check the ``config.json`` of a model that timm saved.

    Raises:
        WeightsError: It is not a JSON object, or a value is out of bounds.
    """
    if architecture.startswith(LOCAL):
        config: Mapping[str, Any] = read_config(Path(architecture.removeprefix(LOCAL)))
    else:
        place = architecture.partition(":")[2]
        cfg, name, arguments = timm.models.load_model_config_from_hf(place, cache_dir=cache_dir)
        config = {"architecture": name, "model_args": arguments, "pretrained_cfg": cfg}
    where = "config.json"
    try:
        values = check_object(config, _CONFIG, {"architecture"}, where)
        # timm's first files have the keys of pretrained_cfg at the top.
        cfg = values.get("pretrained_cfg", config)
        check_object(cfg, _PRETRAINED_CFG, (), f"{where}.pretrained_cfg")
        check_arguments(values.get("model_args", {}), f"{where}.model_args")
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"cannot load {architecture}: {error}") from error


_OBJECT = Bound("an object", lambda value: isinstance(value, Mapping))
_CLASSES = integer(0, MAX_CLASSES)
_CONFIG = {
    "architecture": text(100, r"[A-Za-z0-9_]+", "the name of a timm architecture"),
    "num_classes": _CLASSES,
    "model_args": _OBJECT,
    "pretrained_cfg": _OBJECT,
}
_SHAPE = optional(list_of(integer(1, MAX_EDGE), 3, 3))
_PRETRAINED_CFG = {
    "num_classes": _CLASSES,
    **dict.fromkeys(("input_size", "test_input_size", "min_input_size"), _SHAPE),
    "mean": list_of(number(-1000, 1000), 1, 1024),
    "std": list_of(number(1e-6, 1000), 1, 1024),
    "interpolation": one_of(
        "bicubic", "bilinear", "nearest", "box", "hamming", "lanczos", "random"
    ),
    "crop_pct": number(0.01, 10),
    "test_crop_pct": optional(number(0.01, 10)),
    "crop_mode": one_of("center", "squash", "border"),
    "hf_hub_filename": optional(text(100, r"[\w.\-]+", "the name of a file")),
}
