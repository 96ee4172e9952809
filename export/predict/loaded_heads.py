"""The heads of a predictor: those in the model, and those that a swappable model gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.errors import ExportError
from headkit.adapters.file_kinds import ADAPTER
from headkit.adapters.images.pixel_rule import PixelRule
from headkit.export.graph.description.head_info import HeadInfo
from headkit.export.graph.metadata import ModelInfo

from .adapter_files import Adapter, Inputs, head_arrays, read_adapter

if TYPE_CHECKING:  # running a model needs no safetensors
    from headkit.adapters.heads.head import Head

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LoadedHead:
    """A head that is ready to run: its description, and the arrays or the adapter to pass."""

    info: HeadInfo
    arrays: Mapping[str, Array] = field(default_factory=dict)
    adapter: Adapter | None = None

    @property
    def pixels(self) -> PixelRule:
        """The rule by which images become the pixels that the head was trained on."""
        return self.info.pixels

    @property
    def options(self) -> Any:
        """ONNX Runtime's options of a run with this head."""
        return None if self.adapter is None else self.adapter.options


class LoadedHeads:
    """Heads by name. The own head of a merged or swappable model is called ``""``.

    Args:
        info: Description of the model.
        inputs: Overridable initializers of the model.
        heads: More heads for a swappable model, see ``Predictor``.
        force: See ``Predictor``.

    Raises:
        ExportError, BackboneMismatch: See ``Predictor``.
    """

    def __init__(
        self,
        info: ModelInfo,
        inputs: Inputs,
        heads: Mapping[str, Head | str | Path],
        *,
        force: bool,
    ) -> None:
        if not isinstance(heads, Mapping):
            raise ExportError(
                f"heads is a {type(heads).__name__}, expected a dictionary from name to head file, "
                "such as {'flowers': 'flowers.safetensors'}"
            )
        self._form = info.form
        self._by_name = {head.name: LoadedHead(head) for head in info.heads}
        if heads and info.form != "swappable":
            raise ExportError(
                f"a {info.form} model takes no other heads: graft the head into the file "
                "(headkit graft), or export the model with form='swappable'"
            )
        for name, head in heads.items():
            self._by_name[name] = _load(info, inputs, name, head, force=force)

    @property
    def names(self) -> list[str]:
        """Names of all heads."""
        return list(self._by_name)

    def all(self) -> list[LoadedHead]:
        """Return all heads."""
        return list(self._by_name.values())

    def several(self, names: Sequence[str] | None) -> list[LoadedHead]:
        """Return the heads of these names, each once; None stands for all.

        Raises:
            ExportError: See ``one``.
        """
        requested: list[str | None] = list(names or self.names) or [None]
        return list({head.info.name: head for head in map(self.one, requested)}.values())

    def one(self, name: str | None) -> LoadedHead:
        """Return the head named ``name``; for None, the only head or the model's own.

        Raises:
            ExportError: There is no such head.
        """
        by_name = self._by_name
        if not by_name:
            raise ExportError(
                f"a {self._form} model has no heads and computes no logits: graft a head into the "
                "file (headkit graft)"
            )
        if name is None and (len(by_name) == 1 or "" in by_name):
            return next(iter(by_name.values()))
        if name is None or name not in by_name:
            names = ", ".join(filter(None, by_name))
            if name is None:
                raise ExportError(f"the model has several heads: choose one of {names}")
            advice = f"choose one of {names}" if names else "omit the name to use its own head"
            raise ExportError(f"the model has no head {name!r}: {advice}")
        return by_name[name]


def _load(
    info: ModelInfo, inputs: Inputs, name: str, head: Head | str | Path, *, force: bool
) -> LoadedHead:
    if isinstance(head, str | Path):
        if Path(head).suffix == ADAPTER.suffix:
            adapter = read_adapter(info, inputs, name, Path(head), force=force)
            return LoadedHead(adapter.info, adapter=adapter)
        from headkit.registry.resolve import load_head

        head = load_head(head)
    info.check_backbone(head, force=force)
    return LoadedHead(HeadInfo.from_head(head, name), head_arrays(info, inputs, head))
