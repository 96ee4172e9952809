"""The demo: train, export and run a head for scikit-learn's digits with the public functions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headkit.adapters.files import make_folder, write_atomically
from headkit.benchmarks.samples import ARCHITECTURE, write_digits, write_weights

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[str, int, int | None], None]


def run(
    out: Path, progress: Progress | None = None, *, images_per_class: int | None = None
) -> dict[str, Any]:
    """Write digits as PNG files, fit a head, export it, classify images, and measure.

    Args:
        out: Folder for all files; created if it does not exist.
        progress: Called with the name of the data set, the number of images read, and their total.
        images_per_class: Number of images of each digit. Default: all, about 180.

    Returns:
        The figures, which are also in ``out/result.json``.

    Raises:
        DependencyMissing: The packages of the demo are not installed.
    """
    import numpy as np
    import torch
    from timm.data import create_transform

    import headkit
    from headkit.adapters.images.open import open_image
    from headkit.benchmarks.bench.machine import machine
    from headkit.benchmarks.bench.timing import alternate

    started = time.perf_counter()
    make_folder(out)
    weights = write_weights(out / f"{ARCHITECTURE}.safetensors")
    data = write_digits(out / "digits", images_per_class)

    backbone = headkit.load_backbone(ARCHITECTURE, weights)
    fit_started = time.perf_counter()
    head = headkit.fit(backbone, data, cache=False, progress=progress)
    fit_seconds = time.perf_counter() - fit_started
    head_path = head.save(out / "digits.safetensors")

    model = headkit.attach(
        headkit.load_backbone(ARCHITECTURE, weights), headkit.Head.load(head_path)
    )
    exported = headkit.export(head_path, out / "digits.onnx", weights=weights)
    predictor = headkit.Predictor(exported.path)
    samples = sorted(data.rglob("*.png"))
    samples = samples[:: max(len(samples) // 6, 1)]
    predictions = predictor(samples, top_k=1)

    transform = create_transform(**head.pretrained_cfg, is_training=False)
    pixels = torch.stack([transform(open_image(path)) for path in samples[:1]])
    latency = {}
    for batch in (1, 8):
        x = pixels.repeat(batch, 1, 1, 1) + 0.1 * torch.randn(batch, *pixels.shape[1:])

        def eager(x: torch.Tensor = x) -> torch.Tensor:
            with torch.inference_mode():
                return model(x)  # type: ignore[no-any-return]

        def onnx(x: torch.Tensor = x) -> np.ndarray[Any, Any]:
            return predictor.logits(x.numpy())

        timings = alternate({"torch_eager": eager, "onnxruntime": onnx}).timings
        latency[str(batch)] = {name: timing.to_json() for name, timing in timings.items()}

    result = {
        "accuracy": head.metrics["accuracy"],
        "log_loss": head.metrics["log_loss"],
        "num_train": head.metrics["num_train"],
        "num_val": head.metrics["num_val"],
        "fit_seconds": round(fit_seconds, 1),
        "total_seconds": round(time.perf_counter() - started, 1),
        "head_bytes": head_path.stat().st_size,
        "head_tensor_bytes": head.num_bytes,
        "model_bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        "onnx_bytes": exported.num_bytes,
        "opset": exported.opset,
        "difference": {str(batch): value for batch, value in exported.difference.items()},
        "latency_ms": latency,
        "predictions": {
            str(path.relative_to(data)): best
            for path, (best,) in zip(samples, predictions, strict=True)
        },
        "files": {
            "data": str(data),
            "weights": str(weights),
            "head": str(head_path),
            "model": str(exported.path),
        },
        "machine": machine(),
    }
    write_atomically(out / "result.json", json.dumps(result, indent=2).encode())
    return result


def build_table(result: dict[str, Any]) -> Table:
    """Return the figures of ``run`` as a table for the terminal."""
    from rich.table import Table

    rows = Table(title="A head for handwritten digits", title_justify="left", show_header=False)
    rows.add_row("validation accuracy", f"{result['accuracy']:.4f} on {result['num_val']} images")
    rows.add_row("log loss", f"{result['log_loss']:.4f}")
    rows.add_row("fit", f"{result['fit_seconds']} s for {result['num_train']} images")
    share = result["model_bytes"] / result["head_bytes"]
    rows.add_row(
        "head file",
        f"{result['head_bytes']:,} bytes; the whole model has {result['model_bytes']:,} "
        f"({share:.0f} times as many)",
    )
    worst = max(result["difference"].values())
    rows.add_row(
        "difference from torch",
        f"at most {worst:.1e} times the largest logit at batch sizes "
        f"{', '.join(result['difference'])}",
    )
    for batch, timings in result["latency_ms"].items():
        eager, onnx = timings["torch_eager"]["median_ms"], timings["onnxruntime"]["median_ms"]
        rows.add_row(
            f"latency, batch {batch}",
            f"torch eager {eager:.1f} ms, ONNX Runtime {onnx:.1f} ms ({eager / onnx:.1f}x)",
        )
    for name, path in result["files"].items():
        rows.add_row(name, path)
    return rows
