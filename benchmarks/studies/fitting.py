"""Measure time and memory of fitting a head, and compare with ways to fit without headkit.

Run ``python -m headkit.benchmarks.studies.fitting [SECTION …]`` with any of the sections
``solver``, ``loop``, ``extraction``, ``memory`` and ``kill``; the default is all. It writes
``benchmarks/results/fitting.json`` after each section and keeps the other sections, so that an
interrupted run can continue with the remaining sections. Needs ``headkit[bench]``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import timm.data
import torch
from PIL import Image
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset

from headkit.adapters.backbone.level import LAST
from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.backbone.preprocessing import preprocessing
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.data.holdout import holdout
from headkit.adapters.data.open import open_data
from headkit.adapters.features.extract import extract
from headkit.adapters.features.runtime import Runtime
from headkit.adapters.fitting.linear.solve import STRENGTHS, solve
from headkit.adapters.heads.attach import adapt
from headkit.benchmarks.samples import ARCHITECTURE, write_digits, write_weights
from headkit.export.runtimes.choose import choose_runtime
from headkit.fit import fit

from .accuracy.features import extract as extract_set
from .accuracy.sets import Array, load
from .samples import write_photographs
from .sections import run_sections

RESULT = Path(__file__).parents[1] / "results" / "fitting.json"
BACKBONES = (ARCHITECTURE, "resnet50", "vit_small_patch16_224", "convnext_tiny")
WORKERS, BATCH = 2, 16
ROUNDS = 3
EPOCHS = 20
MNIST, TRAINING, FOLDS = "mnist", 4000, 5
Logits = Callable[[Array], Array]
"""A function that returns logits ``[n, classes]`` of features."""
PHOTOGRAPHS = 640
RUNTIMES = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
MANY, FEW = 200_000, 20_000
KILLS = 5


def solver(_folder: Path) -> dict[str, Any]:
    """Time the choice of a strength and the fit, and compare with scikit-learn's best practice.

    The data are features of MNIST. All contenders choose among the same strengths, with the
    training images alone; the log loss is that of other images.
    """
    images = load(MNIST)
    rows = extract_set(images, ARCHITECTURE).levels[LAST]
    order = np.random.default_rng(0).permutation(len(rows))
    train, test = order[:TRAINING], order[TRAINING:]
    x, y = rows[train], images.targets[train]
    contenders: dict[str, Callable[[], Logits]] = {
        "headkit": partial(_solve, x, y),
        "logistic_regression_cv": partial(_logistic_regression_cv, x, y),
        "grid_search": partial(_grid_search, x, y),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, float] = {}
    with threadpool_limits(1):
        for _ in range(ROUNDS):
            for name, work in contenders.items():
                start = time.process_time()
                logits = work()
                times[name].append(round(time.process_time() - start, 3))
                found = cross_entropy(
                    torch.from_numpy(logits(rows[test])), torch.from_numpy(images.targets[test])
                )
                losses[name] = round(found.item(), 6)
    torch.set_num_threads(threads)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "rows": len(x),
        "test_rows": len(test),
        "features": x.shape[1],
        "classes": images.num_outputs,
        "strengths": len(STRENGTHS),
        "cpu_seconds": seconds,
        "all_cpu_seconds": times,
        "log_loss": losses,
        "ratios": {
            name: round(value / seconds["headkit"], 1)
            for name, value in seconds.items()
            if name != "headkit"
        },
    }


def _solve(x: Array, y: Array) -> Logits:
    solution = solve(torch.from_numpy(x), torch.from_numpy(y), int(y.max()) + 1)
    weight, bias = solution.linear.weight.numpy(), solution.linear.bias.numpy()
    return lambda other: other @ weight.T + bias


def _logistic_regression_cv(x: Array, y: Array) -> Logits:
    """Fit scikit-learn's path, which starts each strength from the solution of the one before."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    path = LogisticRegressionCV(
        Cs=_inverse_strengths(y), cv=FOLDS, scoring="neg_log_loss", max_iter=2000
    )
    fitted = make_pipeline(StandardScaler(), path).fit(x, y)
    return lambda other: np.asarray(fitted.predict_log_proba(other))


def _grid_search(x: Array, y: Array) -> Logits:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    grid = {"logisticregression__C": _inverse_strengths(y)}
    search = GridSearchCV(pipeline, grid, cv=FOLDS, scoring="neg_log_loss").fit(x, y)
    return lambda other: np.asarray(search.predict_log_proba(other))


def _inverse_strengths(y: Array) -> list[float]:
    """Return scikit-learn's ``C`` for the strengths of ``solve``, for the images of four folds."""
    return [1 / (l2 * len(y) * (FOLDS - 1) / FOLDS) for l2 in STRENGTHS]


def loop(folder: Path) -> dict[str, Any]:
    """Time ``fit`` with an empty cache, and training by epochs through the frozen backbone."""
    weights = write_weights(folder / "weights.safetensors")
    data = write_digits(folder / "digits")
    seconds, accuracies = [], []
    for number in range(ROUNDS):
        start = time.perf_counter()
        backbone = load_backbone(ARCHITECTURE, weights)
        head = fit(backbone, data, cache=folder / f"cache{number}", workers=WORKERS)
        seconds.append(time.perf_counter() - start)
        accuracies.append(head.metrics["accuracy"])
    epochs = _train_by_epochs(weights, data)
    ours = statistics.median(seconds)
    return {
        "architecture": ARCHITECTURE,
        "images": head.metrics["num_train"] + head.metrics["num_val"],
        "epochs": EPOCHS,
        "fit_seconds": round(ours, 2),
        "all_fit_seconds": [round(value, 2) for value in seconds],
        "fit_accuracy": statistics.median(accuracies),
        **epochs,
        "ratio": round(epochs["loop_seconds"] / ours, 1),
    }


def extraction(folder: Path) -> dict[str, Any]:
    """Time features of image files, and a plain loop over a DataLoader with as many workers."""
    write_photographs(folder / "photographs" / "a", PHOTOGRAPHS)
    photographs = sorted((folder / "photographs" / "a").iterdir())
    source = ImageDataset(
        "photographs",
        "multiclass",
        ("a",),
        tuple(map(str, photographs)),
        np.zeros(len(photographs), np.int64),
    )
    rows: dict[str, dict[str, Any]] = {}
    for architecture in BACKBONES:
        weights = (
            write_weights(folder / "weights.safetensors") if architecture == ARCHITECTURE else None
        )
        torch.manual_seed(0)
        model = load_backbone(architecture, weights, pretrained=weights is not None)
        rows[architecture] = {}
        candidates: dict[str, Callable[[Path], Tensor]] = {}
        for name, precision in RUNTIMES:
            if find_spec(name) is not None:
                runtime = choose_runtime(name, precision, model)
                # Conversion happens once for all data sets, so it is measured separately.
                start = time.perf_counter()
                runtime.start(model, folder / "backbones", BATCH)
                seconds = round(time.perf_counter() - start, 2)
                rows[architecture][f"{name}_{precision}_start_seconds"] = seconds
                candidates[f"{name}_{precision}"] = partial(
                    _extract_features, model, source, runtime
                )
        plain = partial(_plain_loop, model, source)
        rows[architecture] |= _alternate(plain, candidates, folder / architecture)
    return {"images": len(photographs), "workers": WORKERS, "batch": BATCH, "backbones": rows}


def memory(folder: Path) -> dict[str, Any]:
    """Measure the peak memory of all processes that fit a head to very many images."""
    peaks = {}
    for images in (FEW, MANY):
        data = _write_synthetic(folder / str(images), images)
        start = time.perf_counter()
        peak, printed = _run_and_measure_peak(_FIT, data, folder / f"cache{images}")
        peaks[str(images)] = {
            "peak_bytes": peak,
            "seconds": round(time.perf_counter() - start, 1),
            **json.loads(printed),
        }
    return {"architecture": _MANY_BACKBONE, "images": peaks}


def kill(folder: Path) -> dict[str, Any]:
    """Kill ``fit`` with SIGKILL at random moments of extraction, then let it finish."""
    weights = write_weights(folder / "weights.safetensors")
    data = write_digits(folder / "digits")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}

    def start(cache: str) -> subprocess.Popen[bytes]:
        out = folder / f"{cache}.safetensors"
        command = [sys.executable, "-m", "headkit", "fit", "--backbone", ARCHITECTURE]
        command += ["--weights", str(weights), "--data", str(data), "--out", str(out)]
        command += ["--cache", str(folder / cache)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    began = time.perf_counter()
    if start("whole").wait():
        raise RuntimeError("fit failed")
    seconds = time.perf_counter() - began
    generator = random.Random(0)  # noqa: S311
    shards = []
    for _ in range(KILLS):
        process = start("killed")
        time.sleep(generator.uniform(0.2, 0.9) * seconds)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        shards.append(len(list((folder / "killed").glob("features/*/shard-*"))))
        (folder / "killed.safetensors").unlink(missing_ok=True)
    began = time.perf_counter()
    if start("killed").wait():
        raise RuntimeError("fit failed after a kill")
    digests = [
        hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
        for name in ("whole", "killed")
    ]
    return {
        "images": len(list(data.rglob("*.png"))),
        "kills": KILLS,
        "shards_after_each_kill": shards,
        "shards": len(list((folder / "whole").glob("features/*/shard-*"))),
        "seconds_without_kill": round(seconds, 1),
        "seconds_of_the_last_run": round(time.perf_counter() - began, 1),
        "same_head": digests[0] == digests[1],
    }


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "solver": solver,
    "loop": loop,
    "extraction": extraction,
    "memory": memory,
    "kill": kill,
}


class _Images(Dataset[tuple[Tensor, int]]):
    """A dataset with timm's transform."""

    def __init__(self, source: ImageDataset, transform: Callable[[Image.Image], Tensor]) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source.paths or ())

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert self.source.paths is not None  # noqa: S101
        assert self.source.targets is not None  # noqa: S101
        image = Image.open(self.source.paths[index]).convert("RGB")
        return self.transform(image), int(self.source.targets[index])


def _dataset(model: nn.Module, source: ImageDataset) -> _Images:
    transform = timm.data.create_transform(**preprocessing(model), is_training=False)
    return _Images(source, transform)


@torch.inference_mode()
def _plain_loop(model: Any, source: ImageDataset) -> Tensor:
    loader = DataLoader(_dataset(model, source), batch_size=BATCH, num_workers=WORKERS)
    features = [
        model.forward_head(model.forward_features(images), pre_logits=True) for images, _ in loader
    ]
    return torch.cat(features).flatten(1)


def _extract_features(
    model: nn.Module, source: ImageDataset, runtime: Runtime, root: Path
) -> Tensor:
    (root / "backbones").symlink_to(root.parent / "backbones")
    extraction = extract(model, source, runtime, root, batch_size=BATCH, workers=WORKERS)
    (features,) = extraction.cache.load(extraction.locations)
    return features.flatten(1)


def _alternate(
    plain: Callable[[], Tensor], candidates: Mapping[str, Callable[[Path], Tensor]], folder: Path
) -> dict[str, Any]:
    """Time the loop and the candidates in turns, from files to features, without a cache."""
    times: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    loop: list[float] = []
    features: dict[str, Tensor] = {}
    for number in range(ROUNDS):
        start = time.perf_counter()
        expected = plain()
        loop.append(time.perf_counter() - start)
        for candidate, work in candidates.items():
            root = folder.with_name(f"{folder.name}-{candidate}-{number}")
            root.mkdir()
            start = time.perf_counter()
            features[candidate] = work(root)
            times[candidate].append(time.perf_counter() - start)
    result: dict[str, Any] = {"torch_loop": {"seconds": [round(value, 2) for value in loop]}}
    for candidate, seconds in times.items():
        ratios = [a / b for a, b in zip(loop, seconds, strict=True)]
        errors = (features[candidate] - expected).norm(dim=1) / expected.norm(dim=1)
        result[candidate] = {
            "seconds": [round(value, 2) for value in seconds],
            "ratio": round(statistics.median(ratios), 2),
            "relative_error": errors.median().item(),
        }
    return result


def _train_by_epochs(weights: Path, data: Path) -> dict[str, Any]:
    """Train a classifier with AdamW; the frozen backbone processes each image in each epoch."""
    start = time.perf_counter()
    source, _ = open_data(data)
    assert source.targets is not None  # noqa: S101
    model = adapt(load_backbone(ARCHITECTURE, weights), 10)
    dataset = _dataset(model, source)
    held = holdout(source.targets, "multiclass", 0.2, 0)
    train, val = (Subset(dataset, np.flatnonzero(mask).tolist()) for mask in (~held, held))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    loader = DataLoader(train, batch_size=BATCH, num_workers=WORKERS, shuffle=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        model.train()
        for images, targets in loader:
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(model(images), targets))
            optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    model.eval()
    correct = 0
    with torch.inference_mode():
        for images, targets in DataLoader(val, batch_size=BATCH, num_workers=WORKERS):
            correct += int((model(images).argmax(1) == targets).sum())
    return {"loop_seconds": round(seconds, 1), "loop_accuracy": round(correct / len(val), 6)}


_MANY_BACKBONE = "mobilenetv2_035"
_FIT = f"""
import json, sys, torch
import headkit
torch.manual_seed(0)
model = headkit.load_backbone("{_MANY_BACKBONE}", pretrained=False)
model.pretrained_cfg = {{**model.pretrained_cfg, "input_size": (3, 32, 32), "crop_pct": 1.0}}
head = headkit.fit(model, sys.argv[1], cache=sys.argv[2], workers={WORKERS})
print(json.dumps({{"num_features": head.num_features, "accuracy": head.metrics["accuracy"]}}))
"""


def _write_synthetic(folder: Path, images: int) -> Path:
    """Write 32 x 32 images of ten classes: each class has its own colour, under noise."""
    generator = np.random.default_rng(0)
    colours = generator.integers(60, 196, (10, 3))
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number in range(images):
        noise = generator.integers(-60, 60, (32, 32, 3))
        pixels = (colours[number % 10] + noise).astype(np.uint8)
        path = folder / str(number % 10) / f"{number}.jpg"
        Image.fromarray(pixels).save(path, quality=60)
    return folder


def _run_and_measure_peak(code: str, *arguments: Path) -> tuple[int, str]:
    """Run Python code; return the peak of the sum of its processes' memory, and its output."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                members = [tree, *tree.children(recursive=True)]
                # Proportional set size counts memory that workers share with their parent once.
                peak = max(peak, sum(member.memory_full_info().pss for member in members))
            except psutil.Error:
                pass
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"fit failed with status {process.returncode}")
    return peak, printed


if __name__ == "__main__":
    run_sections(__doc__, RESULT, SECTIONS)
