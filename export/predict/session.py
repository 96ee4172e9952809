"""An open model that can be pickled: the other process opens it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headkit.adapters.errors import ExportError, first_line
from headkit.export.graph.metadata import ModelInfo
from headkit.export.runtimes.exported_model import open_exported
from headkit.export.runtimes.model_source import ModelSource
from headkit.export.runtimes.providers import Providers

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Sequence[int | str]]
"""Shapes of outputs, by name."""


class Session:
    """A session of ONNX Runtime, and what it takes to open it again.

    Args:
        source: The model.
        threads: Number of CPU threads. Default: one per core.
        providers: Execution providers.
        outputs: Values inside the graph that are outputs too, see ``open_exported``.

    Attributes:
        onnxruntime: ONNX Runtime's session.
        info: The model's description.

    Raises:
        ExportError: See ``open_exported``.
    """

    def __init__(
        self,
        source: ModelSource,
        threads: int | None,
        providers: Providers,
        outputs: Outputs | None = None,
    ) -> None:
        self._opened = (source, threads, providers, outputs)
        self.source, self.providers = source, providers
        self.onnxruntime, self.info = open_exported(source, threads, providers, outputs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.info, *self._opened)

    def with_outputs(self, outputs: Outputs) -> Session:
        """Return a second session of the model that also outputs values inside its graph.

        Raises:
            ExportError: The file of the model changed in the meantime, or is no longer there.
        """
        return _open_again(self.info, *self._opened[:3], outputs)

    def run(
        self, names: Sequence[str], feed: Mapping[str, Array], options: Any = None
    ) -> list[Array]:
        """Return the outputs ``names``.

        Args:
            names: Names of outputs.
            feed: Inputs by name.
            options: ``RunOptions`` of ONNX Runtime.

        Raises:
            ExportError: ONNX Runtime cannot run the model.
        """
        try:
            if self.providers.device == "cpu":
                outputs = self.onnxruntime.run(names, feed, options)
                return [np.asarray(output) for output in outputs]
            return self.run_bound(names, feed, options)
        except Exception as error:  # onnxruntime's own classes share no root below Exception
            raise ExportError(f"ONNX Runtime cannot run the model: {first_line(error)}") from error

    def run_bound(
        self, names: Sequence[str], feed: Mapping[str, Array], options: Any = None
    ) -> list[Array]:
        """Run with inputs and outputs on the device, with one copy in each direction."""
        from onnxruntime import OrtValue

        binding = self.onnxruntime.io_binding()
        device = (self.providers.device, self.providers.device_id)
        for name, array in feed.items():
            value = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *device)
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, *device)
        self.onnxruntime.run_with_iobinding(binding, options)
        return [np.asarray(output) for output in binding.copy_outputs_to_cpu()]


def _open_again(
    info: ModelInfo,
    source: ModelSource,
    threads: int | None,
    providers: Providers,
    outputs: Outputs | None = None,
) -> Session:
    session = Session(source, threads, providers, outputs)
    if session.info != info:
        raise ExportError(
            f"{source.name} is not the model that the predictor opened: create a new predictor"
        )
    return session
