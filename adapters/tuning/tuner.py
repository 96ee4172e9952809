"""Tune copies of a backbone, each on other images."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from headkit.adapters.heads.tasks import Task

from .layers import Layer, find_layers
from .methods import METHODS
from .trainable import Trainable
from .training import Batches, Progress, Schedule, train


@dataclass(frozen=True)
class Candidate:
    """What may be better than the head alone.

    Attributes:
        method: Name of a method, see ``methods``.
        rate: Highest learning rate of the changes.
    """

    method: str
    rate: float

    def __str__(self) -> str:
        return f"{self.method} at rate {self.rate:g}"


@dataclass(frozen=True)
class Recipe:
    """How to tune a backbone, whatever the method.

    Attributes:
        rank: Largest rank of the products of ``lora``.
        epochs: Number of passes over the images.
        min_steps: Least number of batches.
        batch_size: Number of images of a batch.
        head_rate: Learning rate of the head, relative to that of the changes.
        label_smoothing: See ``torch.nn.CrossEntropyLoss``.
        autocast: Compute in bfloat16 where torch's autocast does.
    """

    rank: int = 8
    epochs: float = 8
    min_steps: int = 120
    batch_size: int = 32
    head_rate: float = 0.1
    label_smoothing: float = 0.0
    autocast: bool = False

    def num_steps(self, num_images: int) -> int:
        """Return the number of batches of a training with so many images."""
        return max(self.min_steps, round(self.epochs * num_images / self.batch_size))


class TuningImages(Protocol):
    """Images that are read again and again."""

    def batches(self, chosen: Tensor, batch_size: int, seed: int) -> Batches:
        """Return batches of the images for which ``chosen`` ``[N]`` is True, randomly changed."""

    def unchanged(self, chosen: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yield these images in order, as a head sees them."""


@dataclass(frozen=True)
class Tuned:
    """A backbone with a head, and changes that are not merged.

    Attributes:
        trainable: The model with its changes.
        images: The images that the tuner knows.
        batch_size: Number of images of a batch.
    """

    trainable: Trainable
    images: TuningImages
    batch_size: int

    @torch.no_grad()
    def predict(self, chosen: Tensor) -> Tensor:
        """Return the logits of some images, float64 ``[n, num_outputs]``."""
        model = self.trainable.model
        batches = self.images.unchanged(chosen, self.batch_size)
        return torch.cat([model(batch).double().cpu() for batch in batches])


class Tuner:
    """Tunes copies of a backbone; the backbone itself never changes.

    Args:
        backbone: The frozen backbone in eval mode, without a head over levels.
        images: The images.
        put_head: Puts a head onto a copy of the backbone, in place, that was fitted to the images
            for which its second argument ``[N]`` is True.
        task: The kind of targets.
        recipe: How to tune.
        class_weights: See ``Task.loss``.
        seed: Seed of everything that is random.
        checkpoints: Beginning of the paths of files that keep the state of each training, so that
            a killed one continues.
        identity: A text that tells the images and the backbone apart from others.
        progress: Called with a name of the training and how far it is.
    """

    def __init__(
        self,
        backbone: nn.Module,
        images: TuningImages,
        put_head: Callable[[nn.Module, Tensor], None],
        task: Task,
        recipe: Recipe,
        *,
        class_weights: Callable[[Tensor], Tensor | None] = lambda _: None,
        seed: int = 0,
        checkpoints: Path | None = None,
        identity: str = "",
        progress: Callable[[str, Progress], None] | None = None,
    ) -> None:
        self.backbone, self.images, self.put_head = backbone, images, put_head
        self.task, self.recipe, self.seed = task, recipe, seed
        self.class_weights = class_weights
        self.checkpoints, self.identity, self.progress = checkpoints, identity, progress
        self._started: dict[bytes, nn.Module] = {}
        self._layers: tuple[Layer, ...] | None = None

    def start(self, chosen: Tensor, method: str | None = None) -> Tuned:
        """Return the backbone with a head that was fitted to the chosen images, not yet tuned.

        Args:
            chosen: ``[N]``, True for the images.
            method: What can be trained. Default: nothing.
        """
        key = chosen.numpy().tobytes()
        if key not in self._started:
            model = copy.deepcopy(self.backbone)
            self.put_head(model, chosen)
            self._started = {key: model.to(memory_format=torch.channels_last)}
        model = copy.deepcopy(self._started[key])
        changes = []
        if method is not None:
            layers = self._find_layers(model, len(chosen))
            changes = METHODS[method].place(model, layers, self.recipe.rank)
        return Tuned(Trainable(model, changes, self.seed), self.images, self.recipe.batch_size)

    def _find_layers(self, model: nn.Module, num_images: int) -> tuple[Layer, ...]:
        """Return the layers of the backbone; all copies have the same."""
        if self._layers is None:
            first = torch.arange(num_images) < 2
            self._layers = find_layers(model, next(self.images.unchanged(first, 2)))
        return self._layers

    def train(self, chosen: Tensor, candidate: Candidate, steps: int, name: str) -> Tuned:
        """Return the backbone and a head that were trained together on the chosen images.

        Args:
            chosen: ``[N]``, True for the images.
            candidate: How.
            steps: Number of batches.
            name: Name of the training for ``progress``.
        """
        tuned, recipe = self.start(chosen, candidate.method), self.recipe
        schedule = Schedule(
            candidate.rate,
            steps,
            head_rate=recipe.head_rate,
            label_smoothing=recipe.label_smoothing,
            autocast=recipe.autocast,
        )
        identity = hashlib.sha256(
            f"{self.identity}/{candidate}/{asdict(recipe)}/{schedule}/{self.seed}".encode()
            + chosen.numpy().tobytes()
        ).hexdigest()
        checkpoint = None
        if self.checkpoints is not None:
            checkpoint = Path(f"{self.checkpoints}.{identity[:24]}.safetensors")
        report: Any = None
        if self.progress is not None:
            tell = self.progress

            def report(one: Progress) -> None:
                tell(name, one)

        train(
            tuned.trainable,
            self.images.batches(chosen, recipe.batch_size, self.seed),
            self.task,
            schedule,
            class_weights=self.class_weights(chosen),
            checkpoint=checkpoint,
            identity=identity,
            progress=report,
        )
        return tuned
