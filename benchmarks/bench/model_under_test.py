"""The model that is measured: an architecture, a head on its backbone, or an ONNX file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.errors import DataError, ExportError
from headkit.export.runtimes.inference import Array
from headkit.registry.resolve import head_file_or_architecture

from .macs import count_gmacs

if TYPE_CHECKING:
    from headkit.export.precision.calibrate import Images

CLASSES = 1000
"""Outputs of a new classifier, for an architecture that has none."""
MAX_IMAGES, SAMPLE = 512, 16
"""The user's images: half to calibrate with, half to compare runtimes on, in batches."""


@dataclass(frozen=True)
class Parts:
    """Files from which another process makes a model again.

    Attributes:
        head: path of the head file.
        weights: path of the backbone's weights.
        onnx: path of an ONNX file instead of both.
    """

    head: str = ""
    weights: str = ""
    onnx: str = ""


class ModelUnderTest:
    """A model of which each runtime gets the form that it runs.

    Attributes:
        name: name in the results.
    """

    name: str

    @property
    def input_size(self) -> tuple[int, ...]:
        """Channels, height and width; of raw images height, width and channels."""
        raise NotImplementedError

    @property
    def parameters(self) -> int:
        """Number of parameters of backbone and classifier."""
        raise NotImplementedError

    @property
    def gmacs(self) -> float | None:
        """Multiply-adds of one image, in billions; None where they cannot be counted."""
        return None

    def module(self) -> Any:
        """Return the model as torch module, in eval mode; a new one each time.

        Raises:
            ExportError: the model is an ONNX file.
        """
        raise ExportError(f"{self.name} is an ONNX file: torch cannot run it")

    def onnx(self, precision: str = "fp32", *, optimized: bool = True) -> Path:
        """Return the ONNX file, exported at the first call.

        Raises:
            ExportError: the model cannot be had in this precision.
        """
        raise NotImplementedError

    def parts(self) -> Parts:
        """Return the files from which another process can make ``module`` again."""
        raise NotImplementedError

    def images(self, batch: int) -> Array:
        """Return random images, as the model takes them."""
        raise NotImplementedError

    def samples(self) -> Array:
        """Return ``[16 * n, …]`` images to compare runtimes on: the user's, or random ones."""
        return self.images(SAMPLE)

    def targets(self) -> Array | None:
        """Return the classes of ``samples``, if their folders are named after the labels."""
        return None


class TorchModelUnderTest(ModelUnderTest):
    """A timm model with its classifier.

    Args:
        name: name in the results.
        model: the frozen model, on the CPU.
        backbone: loads the model as it was before it got its head.
        folder: folder for its files.
        images: images to calibrate a reduced precision with; random ones without.
        label_names: names of the classes.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        backbone: Callable[[], Any],
        folder: Path,
        images: Sequence[Any] | None,
        label_names: Sequence[str] = (),
    ) -> None:
        self.name, self._model, self._backbone, self._folder = name, model, backbone, folder
        self._calibration, self._label_names = images, label_names
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def input_size(self) -> tuple[int, ...]:  # noqa: D102
        from headkit.adapters.backbone.preprocessing import preprocessing

        return tuple(preprocessing(self._model)["input_size"])

    @cached_property
    def parameters(self) -> int:  # noqa: D102
        return sum(parameter.numel() for parameter in self._model.parameters())

    @cached_property
    def gmacs(self) -> float | None:  # noqa: D102
        return count_gmacs(self.module().to("meta"), self.input_size)

    def module(self) -> Any:  # noqa: D102
        return copy.deepcopy(self._model).eval()

    def onnx(self, precision: str = "fp32", *, optimized: bool = True) -> Path:  # noqa: D102
        from headkit.export.exporter import export

        path = self._folder / f"{precision}{'' if optimized else '-plain'}.onnx"
        if not path.is_file():
            images = None
            if precision != "fp32":
                images = self._calibration or self._random_pictures(32)
            export(
                self._model,
                path,
                precision=precision,
                images=images,
                optimize=optimized,
                max_cost=1.0,  # what it costs is measured, not judged
            )
        return path

    def parts(self) -> Parts:  # noqa: D102
        import safetensors.torch

        from headkit.adapters.heads.attach import head_of

        head, weights = self._folder / "head.safetensors", self._folder / "weights.safetensors"
        if not weights.is_file():
            head_of(self._model).save(head)
            loaded = self._backbone().state_dict()
            state = {name: t.contiguous() for name, t in loaded.items()}
            safetensors.torch.save_file(_unshared(state), weights)
        return Parts(str(head), str(weights))

    def images(self, batch: int) -> Array:  # noqa: D102
        import torch

        from headkit.export.verify import random_images

        generator = torch.Generator().manual_seed(0)
        return np.asarray(random_images(batch, self.input_size, generator).numpy())

    def samples(self) -> Array:  # noqa: D102
        if self._given is None:
            return super().samples()
        return np.concatenate(list(self._given.batches(self._given.held_out)))

    def targets(self) -> Array | None:  # noqa: D102
        if self._given is None or not self._label_names:
            return None
        return self._given.targets(self._label_names)

    @cached_property
    def _given(self) -> Images | None:
        from headkit.adapters.backbone.preprocessing import preprocessing
        from headkit.export.precision.calibrate import Images
        from headkit.export.preprocess.pillow import Preprocess

        if self._calibration is None:
            return None
        given = Images.load(self._calibration, Preprocess.from_cfg(preprocessing(self._model)))
        whole = given.held_out[: len(given.held_out) // SAMPLE * SAMPLE]
        return replace(given, held_out=whole)

    def _random_pictures(self, number: int) -> list[Array]:
        generator = np.random.default_rng(0)
        size = (number, *self.input_size[1:], self.input_size[0])
        return list(generator.integers(0, 256, size, dtype=np.uint8))


class OnnxModelUnderTest(ModelUnderTest):
    """An ONNX file: headkit's own, or any that takes images and has a dynamic batch.

    Raises:
        ExportError: it cannot be read, or does not say how large its images are.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name, self._path = name, path
        from headkit.export.runtimes.onnxruntime import open_session

        session = open_session(path)
        taken = session.get_inputs()[0]
        self._props = session.get_modelmeta().custom_metadata_map
        self._dtype = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}.get(taken.type)
        self._shape = list(taken.shape[1:])
        if self._dtype is None or len(self._shape) != 3:
            raise ExportError(
                f"{path} takes {taken.type} {taken.shape}, expected images: float32 or uint8 with "
                "four dimensions"
            )

    @cached_property
    def input_size(self) -> tuple[int, ...]:  # noqa: D102
        if all(isinstance(side, int) for side in self._shape):
            return tuple(self._shape)
        from headkit.export.graph.metadata import ModelInfo

        info = ModelInfo.from_props(self._props, str(self._path))
        channels, height, width = info.backbone["pretrained_cfg"]["input_size"]
        own = (height, width, channels) if self._dtype == np.uint8 else (channels, height, width)
        pairs = zip(self._shape, own, strict=True)
        return tuple(side if isinstance(side, int) else other for side, other in pairs)

    @cached_property
    def parameters(self) -> int:  # noqa: D102
        import onnx

        graph = onnx.load(self._path, load_external_data=False).graph
        return sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)

    def onnx(self, precision: str = "fp32", *, optimized: bool = True) -> Path:  # noqa: D102, ARG002
        if precision != "fp32":
            raise ExportError(f"{self.name} is an ONNX file: it is measured as it is")
        return self._path

    def parts(self) -> Parts:  # noqa: D102
        return Parts(onnx=str(self._path))

    def images(self, batch: int) -> Array:  # noqa: D102
        generator = np.random.default_rng(0)
        if self._dtype == np.uint8:
            return generator.integers(0, 256, (batch, *self.input_size), dtype=np.uint8)
        return generator.normal(size=(batch, *self.input_size)).astype(np.float32)


def models_under_test(
    targets: Iterable[str | Path],
    folder: Path,
    weights: str | Path | None = None,
    images: str | Path | None = None,
) -> list[ModelUnderTest]:
    """Return the models that are measured.

    Args:
        targets: architectures (with random weights, speed does not depend on them), head files, or
            ONNX files.
        folder: folder for files that are made on the way.
        weights: weights of the head files' backbone, see ``load_backbone_of``.
        images: a folder of images to calibrate reduced precisions with.

    Raises:
        UnknownArchitecture: timm lacks one of the names, and there is no such head.
        DataError: a name is given twice, or the folder has no images.
        ExportError, HeadFormatError, WeightsError: a file cannot be used.
    """
    found: list[ModelUnderTest] = []
    listed = None
    if images is not None:
        from headkit.adapters.images import list_images

        listed = list_images(images)
        listed = listed[:: max(1, len(listed) // MAX_IMAGES)][:MAX_IMAGES]
        if len(listed) < 2 * SAMPLE:
            raise DataError(f"{images} has {len(listed)} images, expected at least {2 * SAMPLE}")
    for target in targets:
        name = str(target)
        if name in [model.name for model in found]:
            raise DataError(f"{name} is named twice")
        place = folder / str(len(found))
        if name.endswith(".onnx"):
            found.append(OnnxModelUnderTest(name, Path(target)))
        else:
            load, finish, label_names = _parts(target, weights)
            model = finish(load()).eval()
            found.append(TorchModelUnderTest(name, model, load, place, listed, label_names))
    return found


def _parts(
    target: str | Path, weights: str | Path | None
) -> tuple[Callable[[], Any], Callable[[Any], Any], Sequence[str]]:
    """Return what loads a backbone, what gives it its head, and the names of its classes."""
    import torch

    from headkit.adapters.backbone.classifier import find_classifier
    from headkit.adapters.backbone.load import load_backbone
    from headkit.adapters.heads.attach import adapt, attach
    from headkit.adapters.heads.backbone_of_head import load_backbone_of
    from headkit.adapters.heads.head import Head

    path = head_file_or_architecture(target)
    if path is not None:
        head = Head.load(path)
        load = partial(load_backbone_of, head, weights, folder=path.parent)
        return load, lambda model: attach(model, head), head.label_names or ()

    def random() -> Any:
        torch.manual_seed(0)
        return load_backbone(str(target), pretrained=False)

    return (
        random,
        lambda model: model if find_classifier(model).num_classes else adapt(model, CLASSES),
        (),
    )


def _unshared(state: dict[str, Any]) -> dict[str, Any]:
    """Return tensors that share no memory, as safetensors demands."""
    seen: set[int] = set()
    for name, tensor in state.items():
        if tensor.data_ptr() in seen:
            state[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return state
