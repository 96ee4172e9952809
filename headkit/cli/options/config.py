"""Take the options of a command from a file, ``--config FILE.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values in a TOML file the defaults of a command's options.

    Each key is the name of an option without its dashes. A list stands for values separated by
    commas, and a table for pairs ``NAME=VALUE``. Options on the command line take precedence.

    Raises:
        ValueError: The file is not TOML, or has a key or a value that the command does not take.
    """
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    known = {
        option.removeprefix("--"): parameter
        for parameter in context.command.params
        for option in parameter.opts
        if option.startswith("--") and parameter.name != "config"
    }
    defaults = {}
    for key, value in values.items():
        parameter = known.get(key.replace("_", "-"))
        if parameter is None:
            raise ValueError(
                f"{path} has the key {key!r}, but `headkit {context.info_name}` has no option "
                f"--{key.replace('_', '-')}"
            )
        is_flag = getattr(parameter, "is_flag", False)
        if is_flag != isinstance(value, bool):
            expected = "true or false" if is_flag else "a number, a text, a list or a table"
            raise ValueError(f"{path} has {key} = {value!r}, expected {expected}")
        defaults[parameter.name] = value if is_flag else _as_text(value)
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={one}" for name, one in value.items())
    return str(value)


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=read_config,
        help="TOML file with options by name, such as img-size = 256. Options on the command line "
        "take precedence.",
    ),
]
