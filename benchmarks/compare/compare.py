"""Fit a head on each of several backbones, and set accuracy against measured latency."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headkit.adapters.backbone.load import check_architecture, load_backbone
from headkit.adapters.errors import ContractError, DataError, HeadkitError, OutputError, first_line
from headkit.adapters.files import write_atomically
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.tasks import DEFAULT, task_named
from headkit.benchmarks.bench.machine import machine
from headkit.benchmarks.bench.plots import check_plots
from headkit.benchmarks.bench.timing import Timing
from headkit.export.exporter import export
from headkit.export.predict.predictor import Predictor
from headkit.fit import fit
from headkit.registry.catalogue import models

from .plot import draw

logger = logging.getLogger("headkit")

ROUNDS, CALLS, WARMUP = 3, 10, 3

Progress = Callable[[str, int, int | None], None]


def compare(
    data: str | Path,
    backbones: Sequence[str] | Mapping[str, str | Path | None],
    out: str | Path,
    *,
    batch: int = 1,
    threads: int | None = None,
    progress: Progress | None = None,
    **fit_options: Any,
) -> dict[str, Any]:
    """Fit a head on each backbone, export the two, and measure.

    ``out`` receives ``compare.json``, ``pareto.png``, and of each backbone
    ``heads/NAME.safetensors`` and ``onnx/NAME.onnx``. A comparison that was stopped goes on where
    it was: a backbone that is done with the same data and options is not fitted again. Latency is
    measured anew for all of them each time, in turns, so that it can be compared.

    Args:
        data: see ``fit``.
        backbones: timm entry points, globs over those with pretrained weights (``mobilenetv4*``),
            or entry points with the weights file of each.
        out: a folder, made if it is not there.
        batch: images per measured call.
        threads: of ONNX Runtime; one per core without it.
        progress: told about the backbones that are done.
        **fit_options: see ``fit``; the same for all.

    Returns:
        What is in ``compare.json``: ``machine``, ``task``, ``score`` (the name of the metric) and
        ``rows``, the best score first. A row holds ``name``, ``score``, ``metrics``,
        ``latency_ms``, ``parameters`` (of the backbone), ``head_bytes``, ``onnx_bytes``,
        ``fit_seconds`` and whether it is ``pareto``, that is, no other is both faster and better;
        or the ``error`` of a backbone that failed.

    Raises:
        UnknownArchitecture: one of the names; nothing has been done then.
        DataError: a glob matches nothing, or the data cannot be read.
        OutputError: ``out`` cannot be written.
        DependencyMissing: matplotlib is not installed.
    """
    check_plots()
    named = _resolved(backbones)
    out = Path(out)
    try:
        for folder in ("heads", "onnx"):
            (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {out}: {error.strerror}") from error
    report = progress or (lambda *_: None)
    options = {"data": str(Path(data).absolute() if Path(data).exists() else data), **fit_options}
    settings = json.dumps(options, sort_keys=True, default=str)
    record = out / "compare.json"
    rows = {row["name"]: row for row in _read(record) if row.get("settings") == settings}
    rows = {name: row for name, row in rows.items() if name in named and _is_done(out, row)}
    report("backbones", 0, len(named))
    for number, (name, weights) in enumerate(named.items()):
        if name not in rows:
            rows[name] = {**_row(name, weights, data, out, fit_options), "settings": settings}
            _write(record, {"rows": list(rows.values())})
        report("backbones", number + 1, len(named))
    fitted = [row for row in rows.values() if "error" not in row]
    for row, timing in zip(fitted, _latencies(fitted, out, batch, threads), strict=True):
        row["latency_ms"] = timing.to_json()
    for row in fitted:
        row["pareto"] = not any(_beats(other, row) for other in fitted)
    task = fitted[0]["task"] if fitted else DEFAULT
    result = {
        "machine": machine(),
        "batch": batch,
        "threads": threads,
        "task": task,
        "score": task_named(task).score,
        "rows": sorted(rows.values(), key=lambda row: -row.get("score", -np.inf)),
    }
    _write(record, result)
    if fitted:
        draw(result, out / "pareto.png")
    return result


def _resolved(
    backbones: Sequence[str] | Mapping[str, str | Path | None],
) -> dict[str, str | Path | None]:
    given = backbones if isinstance(backbones, Mapping) else dict.fromkeys(backbones)
    named: dict[str, str | Path | None] = {}
    for name, weights in given.items():
        if not any(mark in name for mark in "*?["):
            named[name] = weights
            continue
        found = [row.name for row in models(name, pretrained=True)]
        if not found:
            raise DataError(f"no architecture with pretrained weights matches {name!r}")
        named |= {one: named.get(one, weights) for one in found}
    if not named:
        raise DataError("name at least one backbone")
    for name in named:
        check_architecture(name)
    return named


def _row(
    name: str, weights: str | Path | None, data: str | Path, out: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        backbone = load_backbone(name, weights)
        head = fit(backbone, data, **options)
        seconds = time.perf_counter() - started
        path = head.save(out / "heads" / f"{name}.safetensors")
        exported = export(head, out / "onnx" / f"{name}.onnx", backbone=backbone)
    except DataError:
        raise  # the same for every backbone
    except HeadkitError as error:
        logger.warning("%s: %s", name, first_line(error))
        return {"name": name, "error": first_line(error)}
    finally:
        gc.collect()
    return {
        "name": name,
        "task": head.task,
        "score": head.metrics.get(task_named(head.task).score, float("nan")),
        "metrics": {k: v for k, v in head.metrics.items() if not isinstance(v, list)},
        "parameters": head.backbone.parameters,
        "head_bytes": path.stat().st_size,
        "onnx_bytes": exported.num_bytes,
        "fit_seconds": round(seconds, 1),
    }


def _latencies(
    rows: Sequence[Mapping[str, Any]], out: Path, batch: int, threads: int | None
) -> list[Timing]:
    """Measure in rounds over all models, so that a change of the machine's speed meets all."""
    taken: list[list[float]] = [[] for _ in rows]
    generator = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for row, milliseconds in zip(rows, taken, strict=True):
            predictor = Predictor(out / "onnx" / f"{row['name']}.onnx", threads=threads)
            size = predictor.info.backbone["pretrained_cfg"]["input_size"]
            x = generator.normal(size=(batch, *size)).astype(np.float32)
            for call in range(-WARMUP, CALLS):
                start = time.perf_counter()
                predictor.logits(x)
                if call >= 0:
                    milliseconds.append((time.perf_counter() - start) * 1000)
    return [Timing.from_samples(milliseconds) for milliseconds in taken]


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    faster = one["latency_ms"]["median_ms"] - other["latency_ms"]["median_ms"]
    better = other["score"] - one["score"]
    return bool(faster <= 0 and better <= 0 and (faster < 0 or better < 0))


def _is_done(out: Path, row: Mapping[str, Any]) -> bool:
    if "error" in row:
        return False
    try:
        Head.load(out / "heads" / f"{row['name']}.safetensors")
    except HeadkitError:
        return False
    return (out / "onnx" / f"{row['name']}.onnx").is_file()


def _read(record: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(record.read_text(encoding="utf-8"))["rows"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ContractError(
            f"{record} is no record of a comparison ({first_line(error)}): remove it or name "
            "another folder"
        ) from error


def _write(record: Path, result: Mapping[str, Any]) -> None:
    write_atomically(record, json.dumps(result, indent=2, ensure_ascii=False).encode())
