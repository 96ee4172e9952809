"""Train a head on frozen features: extract once, then solve."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import find_classifier, replace_classifier
from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.backbone.timm_exceptions import LOGITS, exception_for
from headkit.adapters.data.dataset import ImageDataset, count
from headkit.adapters.data.open import open_data
from headkit.adapters.errors import ContractError, DataError, ExportError
from headkit.adapters.features.duplicates import held_out, report_duplicates
from headkit.adapters.features.engine import Engine, choose
from headkit.adapters.features.extract import Extracted, Progress, extract
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.features.ray_executor import check_ray, fill_with_ray
from headkit.adapters.features.transform import View
from headkit.adapters.files import cache_folder
from headkit.adapters.fitting.linear.solve import STRENGTHS, Linear, solve
from headkit.adapters.heads.attach import adapt, head_of
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.kinds import KINDS, Kind
from headkit.adapters.heads.tasks import TaskName, task_named

from .adamw import logits_of, train
from .metrics import metrics as measure
from .metrics import temperature as fit_temperature
from .report import check_report, write_report

logger = logging.getLogger("headkit")

SMALL = 256
"""Images below which converting the backbone for another engine takes longer than it saves."""
ClassWeights = Literal["balanced"] | Mapping[str, float]


def fit(
    backbone: str | nn.Module,
    data: str | Path,
    *,
    val: str | Path | None = None,
    task: TaskName | None = None,
    kind: Kind | None = None,
    weights: str | Path | None = None,
    remap: bool = False,
    holdout: float = 0.2,
    l2: float | Sequence[float] | None = None,
    class_weights: ClassWeights | None = None,
    views: int = 1,
    engine: str = "auto",
    precision: str = "fp32",
    cache: bool | str | Path = True,
    seed: int = 0,
    batch_size: int = 16,
    workers: int | None = None,
    max_unreadable: float = 0.05,
    report: str | Path | None = None,
    notes: str = "",
    progress: Progress | None = None,
    **timm_kwargs: Any,
) -> Head:
    """Train a head on the frozen features of ``backbone``.

    Features are extracted once with the backbone's own eval preprocessing and kept in a cache. A
    linear head is solved for (``solver.solve``), any other is trained by AdamW
    (``train.train``). A backbone that is given as a model carries the new head afterwards.

    Args:
        backbone: timm entry point, or a timm model.
        data: training images, see ``open_data``.
        val: validation images. Without them, and where ``data`` has no validation split,
            ``holdout`` of each class is kept back.
        task: ``multiclass``, ``multilabel`` or ``regression``; without it what the data are.
        kind: of head, see ``adapt``. Without it the architecture's own classifier if that is
            linear or part of how the architecture makes its logits, else ``linear``.
        weights: see ``load_backbone``.
        remap: see ``load_backbone``.
        holdout: share of each class to keep back, between 0 and 1.
        l2: strength of the penalty of a linear head, or several to choose from on validation log
            loss; without it a path of them, see ``solve``.
        class_weights: ``balanced`` to weigh classes inversely to their number of images, or a
            weight by label name, 1 where there is none. Validation is never weighted.
        views: crops of each training image: the eval crop, and random ones, flipped or not.
        engine: what runs the backbone: ``auto`` (``onnxruntime`` on a CPU, ``openvino`` there for
            bf16, ``torch`` on a GPU and for few images), one of them by name, or ``ray``: the
            same on all cores of a Ray cluster, see ``ray_data.fill_with_ray``.
        precision: ``fp32``, or ``bf16``.
        cache: keep features in the user's cache, in this folder, or (False) not at all.
        seed: of the choice of held-out images, of random crops, and of training.
        batch_size: images per forward pass.
        workers: processes that decode images; one per core without it.
        max_unreadable: share of images that may be unreadable and left out, 0 to 1.
        report: folder for a confusion matrix, a reliability diagram and their numbers.
        notes: free text, kept with the head.
        progress: told about the images that were read.
        **timm_kwargs: see ``load_backbone``.

    Raises:
        UnknownArchitecture, WeightsError: see ``load_backbone``.
        DataError: see ``open_data``; or too many images are unreadable.
        DependencyMissing: the engine is not installed.
        ContractError: the architecture cannot take this kind of head.
        OutputError: the cache or the report cannot be written.
    """
    # All that can be refused is refused before minutes of extraction.
    _check(holdout=holdout, l2=l2, kind=kind, views=views, batch_size=batch_size, workers=workers)
    if report is not None:
        check_report(report)
    train_source, val_source = open_data(data, val, task=task)
    weighing = _class_weights(class_weights, train_source)
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, weights, remap=remap, **timm_kwargs)
    plan = _plan(backbone, kind)
    with _cache(cache) as root:
        extraction = _Extraction(
            backbone,
            _engine(engine, precision, backbone, train_source),
            root,
            fall_back=engine in ("auto", "ray"),
            options={
                "fill": fill_with_ray if engine == "ray" else None,
                "batch_size": batch_size,
                "workers": os.cpu_count() or 1 if workers is None else workers,
                "max_unreadable": max_unreadable,
                "progress": progress,
            },
        )
        extracted = extraction(train_source)
        if val_source is not None:
            held = extraction(val_source)
            mask = np.zeros(len(extracted.targets), np.bool_)
        else:
            held = extracted
            mask = held_out(extracted, train_source.task, holdout, seed)
        crops = [extraction(train_source, View(n, seed)) for n in range(1, views)]
        _check_crops(extracted, crops)
        _check_classes(train_source, extracted.targets[~mask])
        duplicates = report_duplicates(extracted, held if val_source else None)
        examples = LabeledFeatures.from_views([extracted, *crops], ~mask)
        on = np.ones(len(held.targets), np.bool_) if val_source else mask
        validation = LabeledFeatures.from_views([held], on) if on.any() else None
        if validation is None:
            logger.warning("no image is left to validate on: the head comes without metrics")
        names = train_source.label_names or task_named(train_source.task).label_names(examples.y)
        model, found = _trained(
            backbone, plan, examples, validation, len(names), train_source.task, weighing, l2, seed
        )
        logits = None if validation is None else logits_of(model, validation)
    metrics: dict[str, Any] = {}
    temperature = 1.0
    if logits is not None and validation is not None:
        temperature = fit_temperature(logits, validation.y, train_source.task)
        metrics = measure(logits, validation.y, train_source.task, temperature)
    metrics |= {
        "num_train": len(examples) // views,
        "num_val": 0 if validation is None else len(validation),
        "num_unreadable": len(extracted.unreadable)
        + (len(held.unreadable) if val_source is not None else 0),
        **duplicates,
        **found,
    }
    head = head_of(
        model,
        names,
        task=train_source.task,
        metrics=metrics,
        temperature=temperature,
        notes=notes,
    )
    if report is not None and logits is not None and validation is not None:
        write_report(report, head, logits, validation.y)
    return head


def _check(
    *,
    holdout: float,
    l2: float | Sequence[float] | None,
    kind: str | None,
    views: int,
    batch_size: int,
    workers: int | None,
) -> None:
    if not 0 < holdout < 1:
        raise ValueError(f"holdout is {holdout}, expected a share between 0 and 1")
    for strength in () if l2 is None else (l2,) if isinstance(l2, int | float) else l2:
        if not strength > 0:
            raise ValueError(f"l2 is {strength}, expected a positive strength")
    if kind is not None and kind not in KINDS:
        raise ContractError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    for name, value in (("views", views), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    if workers is not None and workers < 0:
        raise ValueError(f"workers is {workers}, expected 0 or more")


def _engine(name: str, precision: str, model: nn.Module, source: ImageDataset) -> Engine:
    if name == "ray":
        check_ray()
        return choose("auto", precision, model, threads=1)
    images = count(source)
    small = images is not None and images < SMALL
    return choose(
        "torch" if name == "auto" and small and precision == "fp32" else name, precision, model
    )


@contextmanager
def _cache(cache: bool | str | Path) -> Iterator[Path]:
    if cache is not False:
        yield cache_folder(cache)
        return
    with tempfile.TemporaryDirectory(prefix="headkit-") as folder:
        yield Path(folder)


@dataclass
class _Extraction:
    """Extraction with one engine for all sources of a head: their numbers have to go together."""

    model: nn.Module
    engine: Engine
    root: Path
    fall_back: bool
    options: Mapping[str, Any]

    def __call__(self, source: ImageDataset, view: View | None = None) -> Extracted:
        try:
            return extract(self.model, source, self.engine, self.root, view=view, **self.options)
        except ExportError as error:
            if not self.fall_back:
                raise
            logger.warning("extracting with torch instead of %s: %s", self.engine.name, error)
            self.engine, self.fall_back = choose("torch", "fp32", self.model), False
            return self(source, view)


def _check_crops(whole: Extracted, crops: Sequence[Extracted]) -> None:
    """Raise ``DataError`` if an image that was there for one crop was gone at the next."""
    for crop in crops:
        changed = sorted(set(whole.names) ^ set(crop.names))
        if changed:
            raise DataError(
                f"{len(changed)} images could be read for some crops and not for others, such as "
                f"{changed[0]}: the data changed meanwhile; fit again"
            )


@dataclass(frozen=True)
class _Plan:
    """Which classifier, and whether its best weights can be solved for."""

    kind: Kind
    linear: bool


def _plan(model: nn.Module, kind: Kind | None) -> _Plan:
    if exception_for(LOGITS, model) is not None:
        # Its logits are more than the mean of its modules: no linear map of the features.
        return _Plan(kind or "own", linear=False)
    probe = copy_structure(model, share_tensors=False)
    modules = [probe.get_submodule(path) for path in replace_classifier(probe, 2).paths]
    own = all(isinstance(module, nn.Linear | nn.Conv2d) for module in modules)
    if kind is None:
        kind = "own" if own else "linear"
    return _Plan(kind, linear=kind == "linear" or (kind == "own" and own))


def _trained(
    backbone: nn.Module,
    plan: _Plan,
    examples: LabeledFeatures,
    validation: LabeledFeatures | None,
    num_outputs: int,
    task: TaskName,
    weighing: Tensor | Literal["balanced"] | None,
    l2: float | Sequence[float] | None,
    seed: int,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model with its new classifier, and what was chosen on the way."""
    if weighing == "balanced":
        weighing = task_named(task).balanced_weights(examples.y, num_outputs)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = adapt(backbone, num_outputs, plan.kind)
    if not plan.linear:
        trained = train(model, examples, validation, task, class_weights=weighing, seed=seed)
        return model, {"learning_rate": trained.rate, "epochs": trained.epochs}
    solution = solve(
        examples.x,
        examples.y,
        num_outputs,
        task=task,
        x_val=None if validation is None else validation.x,
        y_val=None if validation is None else validation.y,
        class_weights=weighing,
        l2=STRENGTHS if l2 is None else l2,
    )
    set_linear(model, solution.linear, [int(np.prod(shape)) for shape in examples.shapes])
    return model, {"l2": solution.l2, "var_smoothing": solution.var_smoothing}


@torch.no_grad()
def set_linear(model: nn.Module, solution: Linear, widths: list[int]) -> None:
    """Spread one linear map over the classifier's modules, the mean of which are the logits.

    Module ``i`` sees branch ``i`` modulo their number, see ``split.classify``.
    """
    paths = find_classifier(model).paths
    parts = torch.split(solution.weight, widths, 1)
    for number, path in enumerate(paths):
        branch = number % len(parts)
        sharing = len(range(branch, len(paths), len(parts)))
        module = model.get_submodule(path)
        weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
        weight.copy_((parts[branch] * len(paths) / sharing).view_as(weight))
        bias.copy_(solution.bias)


def _class_weights(
    asked: ClassWeights | None, source: ImageDataset
) -> Tensor | Literal["balanced"] | None:
    if asked is None:
        return None
    if not task_named(source.task).has_classes:
        raise DataError("a regression has no classes to weigh")
    if isinstance(asked, str):
        if asked != "balanced":
            raise ValueError(f"class_weights is {asked!r}, expected 'balanced' or weights by label")
        return "balanced"
    unknown = sorted(set(asked) - set(source.label_names))
    if unknown:
        raise DataError(f"class_weights names {', '.join(unknown[:5])}, which {source.name} lacks")
    weights = [float(asked.get(name, 1)) for name in source.label_names]
    if not all(weight > 0 for weight in weights):
        raise ValueError("class_weights has a weight that is not positive")
    return torch.tensor(weights)


def _check_classes(source: ImageDataset, targets: np.ndarray[Any, Any]) -> None:
    images = task_named(source.task).images_per_class(targets, len(source.label_names))
    if images is None:
        return
    missing = [name for name, count in zip(source.label_names, images, strict=False) if not count]
    if missing:
        raise DataError(f"no image of class {', '.join(missing[:5])} could be read")
