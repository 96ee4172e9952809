"""Check the arguments with which timm builds an architecture, and which somebody else wrote down.

Head files and the ``config.json`` of saved models have such arguments. This module imports no timm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headkit.adapters.bounds import describe, text

NOT_ARGUMENTS = frozenset(
    {
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args"),
        *("pretrained_strict", "pretrained_filter_fn", "pretrained_custom_load", "cfg"),
        *("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "pruned"),
        *("features_only", "feature_cls", "feature_cfg", "model_cfg", "model_cls", "variant"),
        *("kwargs_filter", "device", "dtype", "self", "args", "kwargs"),
    }
)
"""Arguments that timm does not pass to the class of an architecture: some read or write files."""
MAX_EDGE = 16_384
"""Maximum height and width of a model's input in pixels."""
MAX_REPEATS = 512
MAX_ARGUMENT = 65_536
_SIZES = ("depth", "layer", "block", "stage", "repeat", "num_heads")
"""Parts of the names of arguments that multiply the modules of an architecture."""


def check_arguments(arguments: Mapping[str, Any], where: str) -> None:
    """Check the arguments of an architecture: plain values, none of which makes it huge.

    Only timm knows which names an architecture takes.

    Raises:
        ValueError: An argument is not one that builds an architecture, or is out of bounds.
    """
    for name, value in arguments.items():
        if name in NOT_ARGUMENTS or not _NAME.accepts(name):
            raise ValueError(
                f"{where} has {describe(name)}, expected arguments that build the architecture"
            )
        repeats = any(part in name for part in _SIZES)
        total = [0.0]
        if not _is_argument(value, MAX_REPEATS if repeats else MAX_ARGUMENT, 4, total):
            limit = MAX_REPEATS if repeats else MAX_ARGUMENT
            raise ValueError(
                f"{where}.{name} is {describe(value)}, expected a word, a truth value, numbers up "
                f"to {limit:,}, or a list of them"
            )
        if repeats and total[0] > MAX_REPEATS:
            raise ValueError(
                f"{where}.{name} is {describe(value)}, which adds up to {total[0]:,.0f}, expected "
                f"at most {MAX_REPEATS}"
            )


def _is_argument(value: object, limit: int, depth: int, total: list[float]) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        total[0] += abs(value)
        return abs(value) <= limit
    if isinstance(value, str):
        return _WORD.accepts(value)
    return (
        isinstance(value, list | tuple)
        and depth > 0
        and len(value) <= 128
        and all(_is_argument(one, limit, depth - 1, total) for one in value)
    )


_NAME = text(64, r"[A-Za-z][A-Za-z0-9_]*")
_WORD = text(64, r"[A-Za-z0-9_.+\-]*")
