"""Measure what fitting a head takes, against the ways that it is done without headkit.

``python -m headkit.benchmarks.studies.fitting`` writes ``benchmarks/results/fitting.json``; names
of
sections behind it (``solver``, ``loop``, ``extraction``, ``memory``, ``kill``) measure only those
and keep the rest of the file. Needs ``headkit[bench]``.
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
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset

from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.backbone.preprocessing import preprocessing
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.data.holdout import holdout
from headkit.adapters.data.open import open_data
from headkit.adapters.features.extract import extract
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.features.runtime import Runtime
from headkit.adapters.features.transform import View
from headkit.adapters.fitting.linear.solve import STRENGTHS, solve
from headkit.adapters.heads.attach import adapt
from headkit.benchmarks.samples import ARCHITECTURE, write_digits, write_weights
from headkit.export.runtimes.choose import choose_runtime
from headkit.fit import fit

from .samples import write_mnist, write_photographs
from .sections import run_sections

RESULT = Path(__file__).parents[1] / "results" / "fitting.json"
BACKBONES = (ARCHITECTURE, "resnet50", "vit_small_patch16_224", "convnext_tiny")
WORKERS, BATCH = 2, 16
ROUNDS = 3
EPOCHS = 20
VIEWS = 4
"""Crops of each of 2,500 images: 10,000 rows."""
PHOTOGRAPHS = 640
RUNTIMES = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
MANY, FEW = 200_000, 20_000
KILLS = 5


def solver(folder: Path) -> dict[str, Any]:
    """The path of strengths with selection, against one fit and a grid of scikit-learn's."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y, x_val, y_val = _features(folder)
    taken: dict[str, list[float]] = {"path": [], "scikit_learn": []}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        solution = solve(x, y, 10, x_val=x_val, y_val=y_val)
        taken["path"].append(time.perf_counter() - start)
        start = time.perf_counter()
        one = LogisticRegression(max_iter=1000).fit(x.numpy(), y.numpy())
        taken["scikit_learn"].append(time.perf_counter() - start)
    scale = StandardScaler().fit(x.numpy())
    grids = {
        "raw": (x.numpy(), x_val.numpy()),
        "standardized": (scale.transform(x.numpy()), scale.transform(x_val.numpy())),
    }
    losses = {
        name: {
            str(l2): _log_loss(
                LogisticRegression(C=1 / (l2 * len(y)), max_iter=1000).fit(a, y.numpy()), b, y_val
            )
            for l2 in STRENGTHS
        }
        for name, (a, b) in grids.items()
    }
    logits = x_val.double() @ solution.linear.weight.T + solution.linear.bias
    seconds = {name: round(statistics.median(values), 3) for name, values in taken.items()}
    return {
        "rows": len(x),
        "features": x.shape[1],
        "classes": 10,
        "strengths": len(STRENGTHS),
        "seconds": seconds,
        "all_seconds": {name: [round(v, 3) for v in values] for name, values in taken.items()},
        "ratio": round(seconds["scikit_learn"] / seconds["path"], 1),
        "worst_ratio": round(min(taken["scikit_learn"]) / max(taken["path"]), 1),
        "l2": solution.l2,
        "val_log_loss": round(cross_entropy(logits, y_val).item(), 6),
        "scikit_learn_val_log_loss": _log_loss(one, x_val.numpy(), y_val),
        "scikit_learn_iterations": int(one.n_iter_.max()),
        "grid_val_log_loss": losses,
        "best_grid_val_log_loss": min(min(found.values()) for found in losses.values()),
    }


def loop(folder: Path) -> dict[str, Any]:
    """``fit``, nothing cached, against training the classifier on the frozen backbone by epochs."""
    weights = write_weights(folder / "weights.safetensors")
    data = write_digits(folder / "digits")
    seconds, accuracies = [], []
    for number in range(ROUNDS):
        start = time.perf_counter()
        backbone = load_backbone(ARCHITECTURE, weights)
        head = fit(backbone, data, cache=folder / f"cache{number}", workers=WORKERS)
        seconds.append(time.perf_counter() - start)
        accuracies.append(head.metrics["accuracy"])
    found = _train_by_epochs(weights, data)
    ours = statistics.median(seconds)
    return {
        "architecture": ARCHITECTURE,
        "images": head.metrics["num_train"] + head.metrics["num_val"],
        "epochs": EPOCHS,
        "fit_seconds": round(ours, 2),
        "all_fit_seconds": [round(value, 2) for value in seconds],
        "fit_accuracy": statistics.median(accuracies),
        **found,
        "ratio": round(found["loop_seconds"] / ours, 1),
    }


def extraction(folder: Path) -> dict[str, Any]:
    """Features of image files, against a plain loop over a DataLoader with as many workers."""
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
        contenders: dict[str, Callable[[Path], Tensor]] = {}
        for name, precision in RUNTIMES:
            if find_spec(name) is not None:
                runtime = choose_runtime(name, precision, model)
                # Converted once for all data sets: not a part of extraction, and told apart.
                start = time.perf_counter()
                runtime.start(model, folder / "backbones", BATCH)
                seconds = round(time.perf_counter() - start, 2)
                rows[architecture][f"{name}_{precision}_start_seconds"] = seconds
                contenders[f"{name}_{precision}"] = partial(_extracted, model, source, runtime)
        plain = partial(_plain_loop, model, source)
        rows[architecture] |= _alternate(plain, contenders, folder / architecture)
    return {"images": len(photographs), "workers": WORKERS, "batch": BATCH, "backbones": rows}


def memory(folder: Path) -> dict[str, Any]:
    """Memory of the whole process tree while a head is fitted to very many images."""
    peaks = {}
    for images in (FEW, MANY):
        data = _write_synthetic(folder / str(images), images)
        start = time.perf_counter()
        peak, printed = _peak_of(_FIT, data, folder / f"cache{images}")
        peaks[str(images)] = {
            "peak_bytes": peak,
            "seconds": round(time.perf_counter() - start, 1),
            **json.loads(printed),
        }
    return {"architecture": _MANY_BACKBONE, "images": peaks}


def kill(folder: Path) -> dict[str, Any]:
    """Kill ``fit`` with SIGKILL at random moments of extraction; then let it end."""
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


def _features(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MNIST under real weights: half of 5,000 images in four crops each, and the other half."""
    weights = write_weights(folder / "weights.safetensors")
    source, _ = open_data(write_mnist(folder / "mnist"))
    model = load_backbone(ARCHITECTURE, weights)
    runtime = choose_runtime("onnxruntime", "fp32", model)
    crops = [
        extract(model, source, runtime, folder / "cache", view=View(number))
        for number in range(VIEWS)
    ]
    held = holdout(crops[0].targets, "multiclass", 0.5, 0)
    train, val = (
        LabeledFeatures.from_views(crops, ~held),
        LabeledFeatures.from_views(crops[:1], held),
    )
    assert isinstance(train.x, Tensor)  # noqa: S101 - they fit into memory
    assert isinstance(val.x, Tensor)  # noqa: S101
    return train.x, train.y, val.x, val.y


def _log_loss(model: Any, x: np.ndarray[Any, Any], y: Tensor) -> float:
    from sklearn.metrics import log_loss

    return round(float(log_loss(y.numpy(), model.predict_proba(x))), 6)


class _Images(Dataset[tuple[Tensor, int]]):
    """What a loop over timm's transform reads."""

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
    found = [
        model.forward_head(model.forward_features(images), pre_logits=True) for images, _ in loader
    ]
    return torch.cat(found).flatten(1)


def _extracted(model: nn.Module, source: ImageDataset, runtime: Runtime, root: Path) -> Tensor:
    (root / "backbones").symlink_to(root.parent / "backbones")
    found = extract(model, source, runtime, root, batch_size=BATCH, workers=WORKERS)
    (features,) = found.cache.load(found.found)
    return features.flatten(1)


def _alternate(
    plain: Callable[[], Tensor], contenders: Mapping[str, Callable[[Path], Tensor]], folder: Path
) -> dict[str, Any]:
    """Each from files to features in memory, in turns, with nothing cached."""
    taken: dict[str, list[float]] = {contender: [] for contender in contenders}
    loop: list[float] = []
    found: dict[str, Tensor] = {}
    for number in range(ROUNDS):
        start = time.perf_counter()
        expected = plain()
        loop.append(time.perf_counter() - start)
        for contender, work in contenders.items():
            root = folder.with_name(f"{folder.name}-{contender}-{number}")
            root.mkdir()
            start = time.perf_counter()
            found[contender] = work(root)
            taken[contender].append(time.perf_counter() - start)
    result: dict[str, Any] = {"torch_loop": {"seconds": [round(value, 2) for value in loop]}}
    for contender, seconds in taken.items():
        ratios = [a / b for a, b in zip(loop, seconds, strict=True)]
        errors = (found[contender] - expected).norm(dim=1) / expected.norm(dim=1)
        result[contender] = {
            "seconds": [round(value, 2) for value in seconds],
            "ratio": round(statistics.median(ratios), 2),
            "relative_error": errors.median().item(),
        }
    return result


def _train_by_epochs(weights: Path, data: Path) -> dict[str, Any]:
    """AdamW on the classifier; the frozen backbone computes each image again in each epoch."""
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
    """Write 32 x 32 images of ten classes, each with a colour of its own under noise."""
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


def _peak_of(code: str, *arguments: Path) -> tuple[int, str]:
    """Run Python code; return the largest sum of its processes' own memory, and what it prints."""
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
                # Proportional: what workers share with their parent counts once.
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
