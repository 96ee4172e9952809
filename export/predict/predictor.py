"""Classify images with an exported model, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.display import format_count, format_line, format_table
from headkit.adapters.errors import ExportError
from headkit.adapters.file_kinds import ADAPTER
from headkit.adapters.images import ImageLike, ImageReader, list_images
from headkit.adapters.pixel_rule import CURRENT_RULE, PixelRule
from headkit.export.graph.metadata import HeadInfo, ModelInfo
from headkit.export.preprocess.pillow import Preprocess
from headkit.export.runtimes.model_source import ModelLike, ModelSource
from headkit.export.runtimes.providers import (
    ProviderName,
    ProviderOptions,
    choose_providers,
)

from .adapter_files import Adapter, head_arrays, read_adapter
from .scores import Prediction, compute_scores, select_top
from .session import Session

if TYPE_CHECKING:  # running a model needs no safetensors
    from headkit.adapters.heads.head import Head

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _LoadedHead:
    """A head that is ready to run: its description, and the arrays or the adapter to pass."""

    info: HeadInfo
    arrays: Mapping[str, Array] = field(default_factory=dict)
    adapter: Adapter | None = None

    @property
    def options(self) -> Any:
        return None if self.adapter is None else self.adapter.options


class Predictor:
    """An exported model, ready to classify images.

    A predictor can be pickled, for example for a pool of processes: each process opens the model
    again, from its path or from the bytes, with the same heads and options.

    Args:
        onnx_path: A model that ``headkit export`` or ``headkit graft`` wrote: its path, its content
            as bytes, or an open binary file, which is read to its end. A model with external data
            needs the path.
        heads: More heads for a swappable model, by name: heads, head files, references to a store,
            or ONNX Runtime's ``.onnx_adapter`` files, which have no label names. A head takes only
            its own bytes of memory, and switching between heads is free.
        provider: ONNX Runtime's execution provider: ``cpu``, ``cuda``, ``tensorrt``, ``openvino``,
            or any of ONNX Runtime's own names, such as ``CUDAExecutionProvider``, in any case. If
            you pass a list, the first provider must start; the others take the operators that it
            does not support.
        provider_options: Options of the provider, such as ``{"device_id": 1}``; for a list of
            providers, also one mapping for each.
        threads: Number of CPU threads. Default: one per core.
        force: Also accept heads that were trained on another backbone of the same architecture.

    Attributes:
        info: Backbone, heads, preprocessing and versions of the model.

    Raises:
        ExportError: The file is missing, damaged, or was not exported by headkit.
        DependencyMissing: A provider is not installed. headkit never falls back to another one.
        BackboneMismatch: One of ``heads`` was trained on another backbone.

    Example:
        >>> predictor = Predictor("digits.onnx")  # doctest: +SKIP
        >>> predictor(["seven.png"], top_k=1)  # doctest: +SKIP
        [[{'label': '7', 'score': 0.99}]]
    """

    def __init__(
        self,
        onnx_path: ModelLike,
        heads: Mapping[str, Head | str | Path] | None = None,
        provider: ProviderName | Sequence[ProviderName] = "cpu",
        *,
        provider_options: ProviderOptions | None = None,
        threads: int | None = None,
        force: bool = False,
    ) -> None:
        source = ModelSource.of(onnx_path)
        self._session = Session(source, threads, choose_providers(provider, provider_options))
        self.info = ModelInfo.from_props(self._session.props, source.name)
        self._heads = {head.name: _LoadedHead(head) for head in self.info.heads}
        if heads and self.info.form != "swappable":
            raise ExportError(
                f"a {self.info.form} model takes no other heads: graft the head into the file "
                "(headkit graft), or export the model with form='swappable'"
            )
        for name, head in (heads or {}).items():
            self._heads[name] = self._add(name, head, force=force)

    def __repr__(self) -> str:
        return format_line("Predictor", self._facts())

    def _repr_html_(self) -> str:
        return format_table("Predictor", self._facts())

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "architecture": self.info.backbone["architecture"],
            "form": self.info.form,
            "precision": self.info.precision,
            "provider": ", ".join(self._session.providers.names),
        }
        if len(self._heads) == 1:
            (one,) = self._heads.values()
            return {**facts, "classes": format_count(one.info.num_classes, one.info.label_names)}
        names = [name or "the model's own" for name in self._heads]
        return {**facts, "heads": format_count(len(names), names)}

    @property
    def session(self) -> Any:
        """ONNX Runtime's session."""
        return self._session.onnxruntime

    @cached_property
    def preprocess(self) -> Preprocess:
        """Preprocessing of each image, in Pillow or in the graph.

        Raises:
            ValueError: The number of the model's input channels is neither 1 nor 3.
        """
        return Preprocess.from_cfg(self.info.backbone["pretrained_cfg"])

    @property
    def heads(self) -> list[str]:
        """Names of all heads. The own head of a merged or swappable model is called ``""``."""
        return list(self._heads)

    def __call__(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        head: str | None = None,
        top_k: int = 5,
        batch_size: int = 16,
    ) -> list[list[Prediction]]:
        """Classify images.

        Args:
            images: One or many paths, Pillow images or uint8 arrays ``[height, width, 3]``; or a
                folder, whose images are read in the order of their names.
            head: Name of the head, for a model with several. Default: the head in the file.
            top_k: Maximum number of predictions per image, at most one per class.
            batch_size: Number of images per run of the model.

        Returns:
            For each image, up to ``top_k`` predictions, the best first.

        Raises:
            DataError: An image cannot be read, or a folder has no images.
            ExportError: The model has no such head, or ONNX Runtime cannot run it.
        """
        return self.predict(images, [self._name(head)], top_k=top_k, batch_size=batch_size)[
            self._name(head)
        ]

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        heads: Sequence[str] | None = None,
        *,
        top_k: int = 5,
        batch_size: int = 16,
    ) -> dict[str, list[list[Prediction]]]:
        """Classify images by several heads. A multi model runs its backbone once for all of them.

        Args:
            images: See ``__call__``.
            heads: Names of heads. Default: all.
            top_k: See ``__call__``.
            batch_size: See ``__call__``.

        Returns:
            For each head, by name, the result of ``__call__``.

        Raises:
            DataError, ExportError: See ``__call__``.
        """
        check_at_least_1(top_k=top_k, batch_size=batch_size)
        requested: list[str | None] = list(heads or self.heads) or [None]
        names = dict.fromkeys(self._name(name) for name in requested)
        results: dict[str, list[list[Prediction]]] = {name: [] for name in names}
        listed = list_images(images)
        # Heads that were trained on pixels of different rules need batches of their own.
        by_rule: dict[PixelRule, list[_LoadedHead]] = {}
        for name in names:
            by_rule.setdefault(self._heads[name].info.pixels, []).append(self._heads[name])
        for rule, heads_of_rule in by_rule.items():
            for batch in self._batches(listed, batch_size, rule):
                outputs = self._run(batch, heads_of_rule)
                for head, logits in zip(heads_of_rule, outputs, strict=True):
                    rows = compute_scores(head.info.description, logits)
                    results[head.info.name] += [select_top(head.info, row, top_k) for row in rows]
        return results

    def logits(self, pixel_values: Array, head: str | None = None) -> Array:
        """Run the model on one batch.

        Args:
            pixel_values: Normalized images, float32 ``[batch, 3, height, width]``. For a model with
                preprocessing, raw images, uint8 ``[batch, height, width, 3]``.
            head: See ``__call__``.

        Returns:
            Logits, float32 ``[batch, num_classes]``.

        Raises:
            ExportError: See ``__call__``.
        """
        return self._run(pixel_values, [self._heads[self._name(head)]])[0]

    def features(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 16
    ) -> Array | tuple[Array, ...]:
        """Return the features of images: what enters the classifier, see ``headkit.features``.

        Images become pixels by the rule of the first head.

        A model of the form ``backbone`` outputs them. For the other forms, the first call opens the
        model a second time with this output, which takes the memory of the weights again.

        Args:
            images: See ``__call__``.
            batch_size: See ``__call__``.

        Returns:
            float32 ``[N, num_features]`` for most architectures; a tuple of such arrays if the
            classifier has several branches with inputs of their own.

        Raises:
            DataError: See ``__call__``.
            ExportError: ONNX Runtime cannot run the model.
        """
        check_at_least_1(batch_size=batch_size)
        names = list(self.info.features)
        rule = next((head.info.pixels for head in self._heads.values()), CURRENT_RULE)
        batches = [
            self._features_session.run(names, self._feed(batch))
            for batch in self._batches(list_images(images), batch_size, rule)
        ]
        if batches:
            branches = tuple(map(np.concatenate, zip(*batches, strict=True)))
        else:
            shapes = self.info.features.values()
            branches = tuple(np.empty([0 if isinstance(n, str) else n for n in s]) for s in shapes)
        branches = tuple(branch.astype(np.float32) for branch in branches)
        return branches[0] if len(branches) == 1 else branches

    @cached_property
    def _features_session(self) -> Session:
        if self.info.form == "backbone":
            return self._session
        return self._session.with_outputs(self.info.features)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what another process makes itself when it needs it."""
        return {key: value for key, value in vars(self).items() if key != "_features_session"}

    def _add(self, name: str, head: Head | str | Path, *, force: bool) -> _LoadedHead:
        inputs = {value.name: value.shape for value in self.session.get_overridable_initializers()}
        if isinstance(head, str | Path):
            if Path(head).suffix == ADAPTER.suffix:
                adapter = read_adapter(self.info, inputs, name, Path(head), force=force)
                return _LoadedHead(adapter.info, adapter=adapter)
            from headkit.registry.resolve import load_head

            head = load_head(head)
        self.info.check_backbone(head, force=force)
        return _LoadedHead(HeadInfo.from_head(head, name), head_arrays(self.info, inputs, head))

    def _name(self, head: str | None) -> str:
        if not self._heads:
            raise ExportError(
                f"a {self.info.form} model has no heads and computes no logits: graft a head into "
                "the file (headkit graft)"
            )
        if head is None and (len(self._heads) == 1 or "" in self._heads):
            return next(iter(self._heads))
        if head is None or head not in self._heads:
            names = ", ".join(filter(None, self._heads))
            if head is None:
                raise ExportError(f"the model has several heads: choose one of {names}")
            advice = f"choose one of {names}" if names else "omit the name to use its own head"
            raise ExportError(f"the model has no head {head!r}: {advice}")
        return head

    def _batches(
        self, images: list[ImageLike], batch_size: int, rule: PixelRule
    ) -> Iterator[Array]:
        read = ImageReader.for_model(self.info.backbone["pretrained_cfg"], rule)
        if not self.info.preprocess:
            for some in batched(images, batch_size):
                yield np.stack([self.preprocess(read(image)) for image in some])
            return
        # A tensor holds images of one size, so neighbours of the same size form a batch.
        arrays = (np.atleast_3d(np.asarray(read(image))) for image in images)
        for _, same in groupby(arrays, key=np.shape):
            for some_arrays in batched(same, batch_size):
                yield np.stack(some_arrays)

    def _feed(self, batch: Array) -> dict[str, Array]:
        return {"image" if self.info.preprocess else "pixel_values": batch}

    def _run(self, batch: Array, heads: Sequence[_LoadedHead]) -> list[Array]:
        feed = self._feed(batch)
        if self.info.form != "swappable":
            return self._session.run([one.info.output for one in heads], feed)
        return [
            self._session.run(["logits"], {**feed, **one.arrays}, one.options)[0] for one in heads
        ]


def check_at_least_1(**numbers: int) -> None:
    """Raise a ``ValueError`` that names the first number below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}, expected at least 1")


def batched(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield ``values`` in lists of ``size``; the last list may be shorter."""
    values = iter(values)
    while some := list(islice(values, size)):
        yield some
