"""Models that ``bench`` measures: an architecture, a head on its backbone, or an ONNX file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.errors import DataError, ExportError
from headkit.adapters.files import is_file, make_folder, write_atomically
from headkit.export.runtimes.inference import Array
from headkit.registry.resolve import head_file_or_architecture

from .macs import count_gmacs

if TYPE_CHECKING:
    from headkit.export.precision.calibrate import Images

CLASSES = 1000
"""Number of classes of the new classifier of an architecture without one."""
MAX_IMAGES, SAMPLE = 512, 16
"""Maximum number of the user's images, and batch size when runtimes are compared on them.

Half of the images calibrates; the other half compares the runtimes."""


@dataclass(frozen=True)
class Parts:
    """Files from which another process loads the same model.

    Attributes:
        head: Path of the head file, or empty.
        weights: Path of the backbone's weights, or empty.
        onnx: Path of an ONNX file instead of both, or empty.
    """

    head: str = ""
    weights: str = ""
    onnx: str = ""


@dataclass(frozen=True)
class BackboneSource:
    """What the user says about the backbone of head files, see ``load_backbone_of``."""

    backbone: str | None = None
    weights: str | Path | None = None
    remap: bool = False


class ModelUnderTest:
    """A model in all forms that runtimes load.

    Attributes:
        name: Name in the results.
    """

    name: str

    @property
    def input_size(self) -> tuple[int, ...]:
        """Channels, height and width. For raw images: height, width and channels."""
        raise NotImplementedError

    @property
    def parameters(self) -> int:
        """Number of parameters of the backbone and the classifier."""
        raise NotImplementedError

    @property
    def gmacs(self) -> float | None:
        """Multiply-adds for one image in billions, or None if they cannot be counted."""
        return None

    def module(self) -> Any:
        """Return the model as a new torch module in eval mode.

        Raises:
            ExportError: The model is an ONNX file.
        """
        raise ExportError(f"{self.name} is an ONNX file: torch cannot run it")

    def onnx(self, precision: str = "fp32", *, optimized: bool = True) -> Path:
        """Return the ONNX file; the first call exports it.

        Raises:
            ExportError: The model does not exist in this precision.
        """
        raise NotImplementedError

    def parts(self) -> Parts:
        """Return the files from which another process loads ``module``."""
        raise NotImplementedError

    def images(self, batch: int) -> Array:
        """Return random images in the form of the model's input."""
        raise NotImplementedError

    def samples(self) -> Array:
        """Return images ``[16 * n, …]`` to compare runtimes: the user's, or random images."""
        return self.images(SAMPLE)

    def targets(self) -> Array | None:
        """Return the classes of ``samples``, if their folders are named after the labels."""
        return None


class TorchModelUnderTest(ModelUnderTest):
    """A timm model with its classifier.

    Args:
        name: Name in the results.
        model: The frozen model, on the CPU.
        backbone: Function that loads the model without its head.
        folder: Folder for its files.
        images: Images to calibrate a reduced precision. If None, random images.
        label_names: Names of the classes.
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
        make_folder(folder)

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
        if not is_file(path):
            images = None
            if precision != "fp32":
                images = self._calibration or self._random_images(32)
            export(
                self._model,
                path,
                precision=precision,
                images=images,
                optimize=optimized,
                max_cost=1.0,  # bench reports the cost instead of limiting it
            )
        return path

    def parts(self) -> Parts:  # noqa: D102
        import safetensors.torch

        from headkit.adapters.heads.attach import head_of

        head, weights = self._folder / "head.safetensors", self._folder / "weights.safetensors"
        if not is_file(weights):
            head_of(self._model).save(head)
            loaded = self._backbone().state_dict()
            state = {name: t.contiguous() for name, t in loaded.items()}
            write_atomically(weights, safetensors.torch.save(_unshared(state)))
        return Parts(str(head), str(weights))

    def images(self, batch: int) -> Array:  # noqa: D102
        import torch

        from headkit.export.verify import random_images

        generator = torch.Generator().manual_seed(0)
        return np.asarray(random_images(batch, self.input_size, generator).numpy())

    def samples(self) -> Array:  # noqa: D102
        if self._user_images is None:
            return super().samples()
        return np.concatenate(list(self._user_images.batches(self._user_images.held_out)))

    def targets(self) -> Array | None:  # noqa: D102
        if self._user_images is None or not self._label_names:
            return None
        return self._user_images.targets(self._label_names)

    @cached_property
    def _user_images(self) -> Images | None:
        from headkit.adapters.backbone.preprocessing import preprocessing
        from headkit.export.precision.calibrate import Images

        if self._calibration is None:
            return None
        images = Images.load(self._calibration, preprocessing(self._model))
        whole_batches = images.held_out[: len(images.held_out) // SAMPLE * SAMPLE]
        return replace(images, held_out=whole_batches)

    def _random_images(self, number: int) -> list[Array]:
        generator = np.random.default_rng(0)
        size = (number, *self.input_size[1:], self.input_size[0])
        return list(generator.integers(0, 256, size, dtype=np.uint8))


class OnnxModelUnderTest(ModelUnderTest):
    """An ONNX file that takes images and has a dynamic batch, from headkit or elsewhere.

    Raises:
        ExportError: The file cannot be read, or its input is not a batch of images.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name, self._path = name, path
        from headkit.export.runtimes.onnxruntime import open_session

        session = open_session(path)
        pixels = session.get_inputs()[0]
        self._props = session.get_modelmeta().custom_metadata_map
        self._dtype = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}.get(pixels.type)
        self._shape = list(pixels.shape[1:])
        if self._dtype is None or len(self._shape) != 3:
            raise ExportError(
                f"{path} takes {pixels.type} {pixels.shape}, expected images: float32 or uint8 "
                "with four dimensions"
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
            raise ExportError(
                f"{self.name} is an ONNX file, whose precision is fixed: it is listed as fp32"
            )
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
    source: BackboneSource | None = None,
    images: str | Path | None = None,
) -> list[ModelUnderTest]:
    """Load the models to measure.

    Args:
        targets: Architectures (with random weights, which do not change the speed), head files, or
            ONNX files.
        folder: Folder for temporary files.
        source: Where the backbone of the head files comes from, if the user names it.
        images: Folder of images to calibrate reduced precisions and to compare runtimes.

    Raises:
        UnknownArchitecture: A name is neither an architecture of timm nor a head.
        DataError: A target appears twice, or the folder has too few images.
        ExportError, HeadFormatError, WeightsError: A file cannot be used.
    """
    models: list[ModelUnderTest] = []
    paths = None
    if images is not None:
        from headkit.adapters.images.sources import list_images

        paths = list_images(images)
        paths = paths[:: max(1, len(paths) // MAX_IMAGES)][:MAX_IMAGES]
        if len(paths) < 2 * SAMPLE:
            raise DataError(f"{images} has {len(paths)} images, expected at least {2 * SAMPLE}")
    for target in targets:
        name = str(target)
        if name in [model.name for model in models]:
            raise DataError(f"the target {name} appears twice: list it once")
        place = folder / str(len(models))
        if name.endswith(".onnx"):
            models.append(OnnxModelUnderTest(name, Path(target)))
        else:
            load, add_head, label_names = _plan_loading(target, source or BackboneSource())
            model = add_head(load()).eval()
            models.append(TorchModelUnderTest(name, model, load, place, paths, label_names))
    return models


def _plan_loading(
    target: str | Path, source: BackboneSource
) -> tuple[Callable[[], Any], Callable[[Any], Any], Sequence[str]]:
    """Return a function that loads a backbone, one that adds its head, and its label names."""
    import torch

    from headkit.adapters.backbone.classifier import find_classifier
    from headkit.adapters.backbone.load import load_backbone
    from headkit.adapters.heads.attach import adapt, attach
    from headkit.adapters.heads.backbone_of_head import load_backbone_of
    from headkit.adapters.heads.head import Head

    path = head_file_or_architecture(target)
    if path is not None:
        head = Head.load(path)
        load = partial(
            load_backbone_of,
            head,
            source.weights,
            backbone=source.backbone,
            remap=source.remap,
            folder=path.parent,
        )
        return load, lambda model: attach(model, head), head.label_names or ()

    def load_random() -> Any:
        torch.manual_seed(0)
        return load_backbone(str(target), pretrained=False)

    return (
        load_random,
        lambda model: model if find_classifier(model).num_classes else adapt(model, CLASSES),
        (),
    )


def _unshared(state: dict[str, Any]) -> dict[str, Any]:
    """Return tensors that share no memory, as safetensors requires."""
    seen: set[int] = set()
    for name, tensor in state.items():
        if tensor.data_ptr() in seen:
            state[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return state
