"""Levels that are pooled together, as in an exported model, against the definition."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from headkit.adapters.backbone.level import Level
from headkit.adapters.backbone.levels.joined import find_cells, join_vectors
from headkit.adapters.errors import ContractError


def defined(level_map: Tensor, prefix: Tensor | None = None) -> Tensor:
    """The vector of a level, as docs/head-file.md defines it."""
    grid = adaptive_avg_pool2d(level_map, 4)
    cells = grid.flatten(2)
    parts = [avg_pool2d(grid, 2).flatten(1), cells.amax(2), cells.std(2, correction=0)]
    return torch.cat(parts if prefix is None else [*parts, prefix[:, 0]], 1)


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (8, 8), (13, 22), (3, 2), (56, 28)])
def test_levels_pooled_together_are_those_of_the_definition(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = size
    odd, even = (torch.randn(2, n, rows, columns, generator=generator) for n in (24, 32))
    tokens = torch.randn(2, 2 + rows * columns, 10, generator=generator)
    image_size = (rows * 8, columns * 8)
    level_map = tokens[:, 2:].transpose(1, 2).reshape(2, 10, rows, columns)
    cases = [
        (Level("odd", 144, "NCHW"), odd, defined(odd)),
        (Level("item", 192, "NCHW", item=1), [None, even], defined(even)),
        (Level("last_channels", 192, "NHWC"), even.permute(0, 2, 3, 1), defined(even)),
        (Level("tokens", 70, "NLC", 2), tokens, defined(level_map, tokens[:, :2])),
    ]
    model = nn.Identity()
    cells = [find_cells(model, level, output, image_size) for level, output, _ in cases]
    for (level, _, expected), vector in zip(cases, join_vectors(cells), strict=True):
        assert vector.shape == (2, level.width)
        torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-6)


def test_level_of_another_width_is_an_error() -> None:
    cells = find_cells(nn.Identity(), Level("a", 99, "NCHW"), torch.zeros(1, 8, 4, 4), None)
    with pytest.raises(ContractError, match="the level a has 48 values, expected 99"):
        join_vectors([cells])
