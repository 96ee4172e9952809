"""Bring the output of a module to a map, whatever its layout is."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from headkit.adapters.backbone.level import Level
from headkit.adapters.backbone.timm_exceptions import SCALED_SIZE, find_row
from headkit.adapters.errors import ContractError

from .pooling import pool


def level_vector(
    model: nn.Module, level: Level, output: Any, image_size: tuple[int, int] | None
) -> Tensor:
    """Return the vector ``[batch, level.width]`` of what the module of a level returned.

    Args:
        model: The model in which the module is.
        level: The level.
        output: The output of its module.
        image_size: Height and width of the images that the model got; None if it got something
            else.

    Raises:
        ContractError: The output is not what the level describes.
    """
    vector = pool(*to_map(model, level, output, image_size))
    if vector.shape[1] != level.width:
        raise ContractError(
            f"the level {level.name} has {vector.shape[1]} values, expected {level.width}: pass a "
            "level that find_levels returned for this architecture"
        )
    return vector


def to_map(
    model: nn.Module, level: Level, output: Any, image_size: tuple[int, int] | None
) -> tuple[Tensor, Tensor | None]:
    """Return a map ``[batch, channels, height, width]``, and the prefix tokens if there are some.

    The arguments are those of ``level_vector``.

    Raises:
        ContractError: The output is not what the level describes.
    """
    try:
        tensor: Tensor = output if level.item is None else output[level.item]
    except (IndexError, TypeError) as error:
        raise ContractError(
            f"the module {level.path} returns a {type(output).__name__} without the item "
            f"{level.item}, where the level {level.name} is expected"
        ) from error
    expected = 3 if level.layout in ("NLC", "reroll") else 4
    if not isinstance(tensor, Tensor) or tensor.ndim != expected:
        found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ContractError(
            f"the output of {level.path} is {found}, expected a tensor of {expected} dimensions "
            f"for the layout {level.layout}"
        )
    if level.layout == "NCHW":
        return tensor, None
    if level.layout == "NHWC":
        return tensor.permute(0, 3, 1, 2), None
    if level.layout == "reroll":
        block = int(level.path.rpartition(".")[2])
        return cast(Any, model).reroll(tensor, block).permute(0, 3, 1, 2), None
    patches = tensor[:, level.prefix :] if level.prefix else tensor
    rows, columns = token_grid(model, int(patches.shape[1]), image_size)
    level_map = patches.transpose(1, 2).reshape(-1, patches.shape[2], rows, columns)
    return level_map, tensor[:, : level.prefix] if level.prefix else None


def token_grid(
    model: nn.Module, tokens: int, image_size: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the height and width of the grid on which patch tokens lie, row by row.

    Of all grids with that number of tokens, it is the one whose patches are the most nearly square.

    Raises:
        ContractError: No grid with that number of tokens has nearly square patches, or the input
            was no image.
    """
    scaled_size = find_row(SCALED_SIZE, model)
    size = scaled_size(model) if scaled_size else image_size
    if size is None:
        raise ContractError(
            "the input is not a tensor [batch, channels, height, width], so the grid of its "
            f"{tokens} tokens is not known: levels need images"
        )
    height, width = size

    def elongation(rows: int) -> float:
        ratio = height * (tokens // rows) / (width * rows)
        return max(ratio, 1 / ratio)

    rows = min((n for n in range(1, tokens + 1) if tokens % n == 0), key=elongation)
    if elongation(rows) > 2:
        raise ContractError(
            f"the {tokens} tokens of images of {height}x{width} pixels do not lie on a grid: the "
            f"best one would be {rows}x{tokens // rows}, expected nearly square patches"
        )
    return rows, tokens // rows
