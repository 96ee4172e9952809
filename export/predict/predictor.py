"""Classify images with an exported model, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, overload

import numpy as np

from headkit.adapters.backbone.level import LAST, LevelNames
from headkit.adapters.display import format_count, format_line, format_table
from headkit.adapters.images.open import ImageLike, ImageReader
from headkit.adapters.images.pixel_rule import CURRENT_RULE, PixelRule
from headkit.export.graph.description.names import level_output
from headkit.export.graph.level_row import last_row
from headkit.export.preprocess.pillow import Preprocess
from headkit.export.runtimes.model_source import ModelLike, ModelSource
from headkit.export.runtimes.providers import (
    ProviderName,
    ProviderOptions,
    choose_providers,
)

from .answers import Answer, OnError, answer, to_results
from .batches import ReadImage, check_at_least_1, gather, read_images
from .loaded_heads import LoadedHead, LoadedHeads
from .scores import Prediction, Result
from .session import Session

if TYPE_CHECKING:  # running a model needs no safetensors
    from PIL import Image

    from headkit.adapters.heads.head import Head

Array = np.ndarray[Any, Any]


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
        self.info = self._session.info
        overridable = self.session.get_overridable_initializers()
        inputs = {value.name: value.shape for value in overridable}
        self._heads = LoadedHeads(self.info, inputs, heads or {}, force=force)

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
        if len(self.heads) == 1:
            (one,) = self._heads.all()
            return {**facts, "classes": format_count(one.info.num_classes, one.info.label_names)}
        names = [name or "the model's own" for name in self.heads]
        return {**facts, "heads": format_count(len(names), names)}

    @property
    def session(self) -> Any:
        """ONNX Runtime's session."""
        return self._session.onnxruntime

    def num_classes(self, head: str | None = None) -> int:
        """Return the number of classes of a head, or of outputs for regression.

        Raises:
            ExportError: The model has no such head.
        """
        return self._heads.one(head).info.num_classes

    def num_predictions(self, top_k: int, head: str | None = None) -> int:
        """Return how many predictions an image gets from a head, see ``top_k`` of ``__call__``.

        Raises:
            ExportError: The model has no such head.
        """
        info = self._heads.one(head).info
        return min(top_k, info.num_classes) if info.task.has_classes else info.num_classes

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
        return self._heads.names

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
            images: One image or many, such as a list or a generator; a folder, whose images are
                read in the order of their names; an array uint8 ``[N, height, width, 3]`` or a
                tensor uint8 ``[N, 3, height, width]``. An image is a path, the content of a file
                as bytes, an open binary file, a Pillow image, an array uint8 ``[height, width]``
                or ``[height, width, 1|3|4]``, or a tensor uint8 ``[height, width]``,
                ``[1|3|4, height, width]`` or ``[height, width, 1|3|4]``.
            head: Name of the head, for a model with several. Default: the head in the file.
            top_k: Maximum number of predictions per image, at most one per class. A regression
                gives all its outputs, in their own order.
            batch_size: Number of images per run of the model.

        Returns:
            For each image, up to ``top_k`` predictions, the best first.

        Raises:
            DataError: An image cannot be read, or a folder has no images.
            ExportError: The model has no such head, or ONNX Runtime cannot run it.
        """
        name = self._heads.one(head).info.name
        return self.predict(images, [name], top_k=top_k, batch_size=batch_size)[name]

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
        loaded = self._heads.several(heads)
        results: dict[str, list[list[Prediction]]] = {head.info.name: [] for head in loaded}
        for one in self._answer(images, loaded, top_k, batch_size):
            if one.image.error is not None:
                raise one.image.error
            for name, predictions in one.predictions.items():
                results[name].append(predictions)
        return results

    def stream(
        self,
        images: ImageLike | Iterable[ImageLike],
        heads: Sequence[str] | None = None,
        *,
        top_k: int = 5,
        batch_size: int = 16,
        on_error: OnError = "raise",
    ) -> Iterator[Result]:
        """Classify images while they come, in constant memory.

        A generator is read only as far as the next batch needs it.

        Args:
            images: See ``__call__``.
            heads: Names of heads. Default: all.
            top_k: See ``__call__``.
            batch_size: See ``__call__``.
            on_error: What to do about an image that cannot be read. ``raise`` raises the error
                after the results of the images before it. ``return`` gives a result that has the
                ``error`` and no predictions. ``skip`` leaves it out and logs their number at the
                end.

        Yields:
            For each image, one result per head, in the order of the images.

        Raises:
            DataError, ExportError: See ``__call__``.
            ValueError: ``on_error`` is something else.
        """
        if on_error not in get_args(OnError):
            raise ValueError(
                f"on_error is {on_error!r}, expected one of {', '.join(get_args(OnError))}"
            )
        loaded = self._heads.several(heads)
        return to_results(self._answer(images, loaded, top_k, batch_size), on_error)

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
        return self._run(pixel_values, [self._heads.one(head)])[0]

    @overload
    def features(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        levels: None = None,
        pixels: PixelRule | None = None,
        batch_size: int = 16,
    ) -> Array | tuple[Array, ...]: ...

    @overload
    def features(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        levels: LevelNames,
        pixels: PixelRule | None = None,
        batch_size: int = 16,
    ) -> dict[str, Array]: ...

    def features(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        levels: LevelNames | None = None,
        pixels: PixelRule | None = None,
        batch_size: int = 16,
    ) -> Array | tuple[Array, ...] | dict[str, Array]:
        """Return the features of images: what enters the classifier, see ``headkit.features``.

        A model of the form ``backbone`` outputs them. For the other forms, the first call opens the
        model a second time with this output, which takes the memory of the weights again.

        Args:
            images: See ``__call__``.
            levels: Names of levels that the model computes, or ``all``; see ``headkit.features``.
            pixels: Rule by which images become pixels. Default: that of the model's own head, or
                of the first head; without heads, the current rule.
            batch_size: See ``__call__``.

        Returns:
            float32 ``[N, num_features]`` for most architectures; a tuple of such arrays if the
            classifier has several branches with inputs of their own.

            With ``levels``, a dict: ``last`` is the classifier's input as one row ``[N, width]``,
            and each level's name stands for its vector ``[N, width]``.

        Raises:
            DataError: See ``__call__``.
            ExportError: ONNX Runtime cannot run the model, or it has no such level.
        """
        if levels is None:
            branches = self._values(images, self.info.features, pixels, batch_size)
            return branches[0] if len(branches) == 1 else branches
        chosen = self.info.choose_levels(levels)
        values_of = self.info.values
        names = (*self.info.features, *map(level_output, chosen))
        shapes = {name: values_of[name] for name in names}
        values = self._values(images, shapes, pixels, batch_size)
        count = len(self.info.features)
        rows = zip((level.name for level in chosen), values[count:], strict=True)
        return {LAST: last_row(self.info, values[:count]), **dict(rows)}

    def _values(
        self,
        images: ImageLike | Iterable[ImageLike],
        shapes: Mapping[str, Sequence[int | str]],
        pixels: PixelRule | None,
        batch_size: int,
    ) -> tuple[Array, ...]:
        """Return values inside the graph of images, float32 ``[N, …]``."""
        check_at_least_1(batch_size=batch_size)
        names = list(shapes)
        batches = []
        for some in gather(self._read(images, [pixels or self._pixels()]), batch_size):
            for image in some:
                if image.error is not None:
                    raise image.error
            batch = np.stack([pixels for image in some for pixels in image.pixels.values()])
            batches.append(self._features_session.run(names, self._feed(batch)))
        if batches:
            values = tuple(map(np.concatenate, zip(*batches, strict=True)))
        else:
            values = tuple(
                np.empty([0 if isinstance(n, str) else n for n in dims]) for dims in shapes.values()
            )
        return tuple(value.astype(np.float32) for value in values)

    def _pixels(self) -> PixelRule:
        heads = self._heads.all()
        return heads[0].pixels if heads else CURRENT_RULE

    @cached_property
    def _features_session(self) -> Session:
        if self.info.form == "backbone":
            return self._session
        return self._session.with_outputs(self.info.values)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what another process makes itself when it needs it."""
        return {key: value for key, value in vars(self).items() if key != "_features_session"}

    def _answer(
        self,
        images: ImageLike | Iterable[ImageLike],
        heads: Sequence[LoadedHead],
        top_k: int,
        batch_size: int,
    ) -> Iterator[Answer]:
        check_at_least_1(top_k=top_k, batch_size=batch_size)
        rules = list(dict.fromkeys(head.pixels for head in heads))
        batches = gather(self._read(images, rules), batch_size)
        return (one for some in batches for one in answer(some, heads, top_k, self._run))

    def _read(
        self, images: ImageLike | Iterable[ImageLike], rules: Sequence[PixelRule]
    ) -> Iterator[ReadImage]:
        cfg = self.info.backbone["pretrained_cfg"]
        readers = [ImageReader.for_model(cfg, rule) for rule in rules]
        return read_images(images, readers, self._prepare)

    def _prepare(self, image: Image.Image) -> Array:
        """Return what the model takes for one image, without the dimension of the batch."""
        if not self.info.preprocess:
            return self.preprocess(image)
        return np.atleast_3d(np.asarray(image))

    def _feed(self, batch: Array) -> dict[str, Array]:
        return {"image" if self.info.preprocess else "pixel_values": batch}

    def _run(self, batch: Array, heads: Sequence[LoadedHead]) -> list[Array]:
        feed = self._feed(batch)
        if self.info.form != "swappable":
            return self._session.run([one.info.output for one in heads], feed)
        return [
            self._session.run(["logits"], {**feed, **one.arrays}, one.options)[0] for one in heads
        ]
