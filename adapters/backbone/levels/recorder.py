"""Record the levels in a forward pass of the whole model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import name_of
from headkit.adapters.backbone.level import LAST, Level
from headkit.adapters.errors import ContractError

from .joined import Cells, find_cells, join_vectors
from .layout import level_vector


class LevelRecorder:
    """Context in which each forward pass of a model records the vectors of some levels.

    ``torch.export`` and ``torch.compile`` see operators that are fast in a graph, see ``joined``.
    ``last`` is not recorded: ``features`` returns it.
    """

    def __init__(self, model: nn.Module, levels: Sequence[Level]) -> None:
        """Prepare to record ``levels`` of ``model``.

        Raises:
            ContractError: The model has no such module.
        """
        self._model = model
        self._levels = [level for level in levels if level.name != LAST]
        self._vectors: dict[str, Tensor] = {}
        self._cells: dict[str, Cells] = {}
        self._image_size: tuple[int, int] | None = None
        self._stack = ExitStack()
        modules = dict(model.named_modules())
        self._hooked: dict[str, nn.Module] = {}
        for level in self._levels:
            if level.path not in modules:
                raise ContractError(
                    f"{name_of(model)} has no module {level.path} for the level {level.name}: call "
                    "headkit.levels(model) to see its levels"
                )
            self._hooked[level.path] = modules[level.path]

    def __enter__(self) -> LevelRecorder:
        """Register the hooks."""
        self._stack.callback(
            self._model.register_forward_pre_hook(self._before, with_kwargs=True).remove
        )
        of_path: dict[str, list[Level]] = defaultdict(list)
        for level in self._levels:
            of_path[level.path].append(level)
        for path, levels in of_path.items():

            def after(
                _module: nn.Module, _args: Any, out: Any, levels: list[Level] = levels
            ) -> None:
                self._record(levels, out)

            self._stack.callback(self._hooked[path].register_forward_hook(after).remove)
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the hooks."""
        self._stack.close()

    def vectors(self) -> dict[str, Tensor]:
        """Return the vector ``[batch, width]`` of each level in the last forward pass, by name.

        Raises:
            ContractError: The forward pass did not run the module of a level.
        """
        joined = join_vectors(list(self._cells.values()))
        self._vectors.update(zip(self._cells, joined, strict=True))
        missing = [level.name for level in self._levels if level.name not in self._vectors]
        if missing:
            raise ContractError(
                f"the forward pass of {name_of(self._model)} does not run {', '.join(missing)}"
            )
        return {level.name: self._vectors[level.name] for level in self._levels}

    def _before(self, _module: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        self._vectors.clear()
        self._cells.clear()
        images = args[0] if args else None
        self._image_size = None
        if isinstance(images, Tensor) and images.ndim == 4:
            self._image_size = int(images.shape[2]), int(images.shape[3])

    def _record(self, levels: Sequence[Level], out: Any) -> None:
        # The vector is made at once, because the next module may write into the output.
        for level in levels:
            if level.name in self._vectors or level.name in self._cells:
                raise ContractError(
                    f"{name_of(self._model)} must run {level.path} exactly once per forward pass"
                )
            if torch.compiler.is_compiling():
                self._cells[level.name] = find_cells(self._model, level, out, self._image_size)
            else:
                self._vectors[level.name] = level_vector(self._model, level, out, self._image_size)
