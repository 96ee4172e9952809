"""Train changes and head together, by AdamW with timm's cosine schedule."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor

from headkit.adapters.backbone.module_copy import forget_results
from headkit.adapters.files import is_file, write_atomically
from headkit.adapters.heads.tasks import Task

from .trainable import Trainable

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""A function that yields the images and targets of a step and of those after it. It yields the same
ones for the same step, wherever it starts."""


@dataclass(frozen=True)
class Schedule:
    """How to train.

    Attributes:
        rate: Highest learning rate of the changes.
        steps: Number of batches.
        head_rate: Learning rate of the head, relative to that of the changes.
        warm_up: Share of the steps in which the learning rate rises.
        weight_decay: Weight decay of the head; changes have none.
        label_smoothing: See ``torch.nn.CrossEntropyLoss``.
        autocast: Compute in bfloat16 where torch's autocast does.
    """

    rate: float
    steps: int
    head_rate: float = 1.0
    warm_up: float = 0.1
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    autocast: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: Number of steps done.
        steps: Number of all steps.
        loss: Loss of the last batch.
        seconds_left: Estimate of the time that is left.
    """

    step: int
    steps: int
    loss: float
    seconds_left: float


def train(
    trainable: Trainable,
    batches: Batches,
    task: Task,
    schedule: Schedule,
    *,
    class_weights: Tensor | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    every: int = 50,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Train the changes and the head of a model in place.

    Everything random comes from ``batches``, so a run that was killed and continues from its
    checkpoint ends with the same bits as one that was not.

    Args:
        trainable: The model.
        batches: Images ``[B, channels, height, width]`` as the model expects them, and targets.
        task: The task, which determines the loss.
        schedule: How to train.
        class_weights: See ``Task.loss``.
        checkpoint: File that keeps the state of the training, so that a killed run continues. A
            checkpoint of another training is not read.
        identity: A text that tells this training apart from others, such as digests of the images
            and of the backbone. The schedule and the names of the tensors are added.
        every: Number of steps between two checkpoints.
        progress: Called after each step with how far the training is.
    """
    tensors, head = list(trainable.tensors.values()), list(trainable.head.values())
    groups = [
        {"params": tensors, "lr": schedule.rate, "weight_decay": 0.0},
        {"params": head, "lr": schedule.rate * schedule.head_rate},
    ]
    optimizer = create_optimizer_v2(
        [group for group in groups if group["params"]],
        opt="adamw",
        lr=schedule.rate,
        weight_decay=schedule.weight_decay,
    )
    warm_up = round(schedule.warm_up * schedule.steps)
    scheduler = CosineLRScheduler(
        optimizer,
        max(1, schedule.steps - warm_up),
        warmup_t=warm_up,
        warmup_lr_init=0.0,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    identity = _identify(trainable, schedule, identity)
    first = _resume(trainable, optimizer, identity, checkpoint)
    forget_results(trainable.model)
    started = time.monotonic()
    device = head[0].device.type if head else "cpu"
    for step, (images, targets) in zip(range(first, schedule.steps), batches(first), strict=False):
        scheduler.step_update(step + 1)
        context: Any = (
            torch.autocast(device, torch.bfloat16) if schedule.autocast else nullcontext()
        )
        optimizer.zero_grad()
        with context:
            logits = trainable.model(images)
        loss = task.loss(logits.float(), targets, class_weights)
        if schedule.label_smoothing and task.exclusive:
            uniform = -torch.log_softmax(logits.float(), 1).mean()
            loss = loss.lerp(uniform, schedule.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        forget_results(trainable.model)
        done = step + 1
        if progress is not None:
            pace = (time.monotonic() - started) / (done - first)
            left = pace * (schedule.steps - done)
            progress(Progress(done, schedule.steps, float(loss.detach()), left))
        if checkpoint is not None and (done % every == 0 or done == schedule.steps):
            _save(trainable, optimizer, identity, done, checkpoint)


def _save(
    trainable: Trainable,
    optimizer: torch.optim.Optimizer,
    identity: str,
    step: int,
    path: Path,
) -> None:
    tensors = {f"trained.{name}": value for name, value in trainable.state().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value).clone()
    cpu = {name: value.contiguous().cpu() for name, value in tensors.items()}
    metadata = {"step": str(step), "training": identity}
    write_atomically(path, safetensors.torch.save(cpu, metadata))


def _resume(
    trainable: Trainable,
    optimizer: torch.optim.Optimizer,
    identity: str,
    path: Path | None,
) -> int:
    """Load a checkpoint of the same training; return the number of steps that it has done."""
    if path is None or not is_file(path):
        return 0
    with safetensors.safe_open(path, "pt") as file:
        metadata: Mapping[str, str] = file.metadata() or {}
        if metadata.get("training") != identity:
            return 0
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    trained = {n.removeprefix("trained."): t for n, t in tensors.items() if n.startswith("trained")}
    trainable.load_state(trained)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(metadata["step"])


def _identify(trainable: Trainable, schedule: Schedule, identity: str) -> str:
    shapes = {name: list(value.shape) for name, value in trainable.state().items()}
    return json.dumps([asdict(schedule), identity, shapes], sort_keys=True)
