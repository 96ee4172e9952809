"""Fit a head on each of several backbones, and compare their scores and measured latencies."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from headkit.adapters.backbone.load import check_architecture, load_backbone
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.data.memory.digest import digest_data
from headkit.adapters.data.memory.open import is_in_memory
from headkit.adapters.data.open import open_data
from headkit.adapters.errors import ContractError, DataError, HeadkitError, OutputError, first_line
from headkit.adapters.files import exists, is_file, make_folder, reason_of, write_atomically
from headkit.adapters.heads.head import PER_CLASS, Head
from headkit.adapters.heads.summary import describe
from headkit.adapters.heads.tasks import DEFAULT, get_task
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
_QUANTILE = 1.959963984540054
"""Quantile of the normal distribution for an interval of 95 %."""
ROW_FORMAT = 2
"""Version of the rows in ``compare.json``; a row of another version is computed again."""
_FIT_KEYWORDS = frozenset(signature(fit).parameters)
_READ_KEYWORDS = ("class_from", "path_column", "label_column", "label_separator")
_LOAD_KEYWORDS = frozenset(signature(load_backbone).parameters)

Progress = Callable[[str, int, int | None], None]


def compare(
    data: Any,
    backbones: Sequence[str] | Mapping[str, str | Path | None],
    out: str | Path,
    *,
    batch: int = 1,
    threads: int | None = None,
    progress: Progress | None = None,
    **fit_options: Any,
) -> dict[str, Any]:
    """Fit a head on each backbone, export each model, and measure its latency.

    ``out`` receives ``compare.json``, ``pareto.png``, and for each backbone
    ``heads/NAME.safetensors`` and ``onnx/NAME.onnx``. An interrupted comparison resumes: a backbone
    that was fitted with the same data and options is not fitted again. Every run measures the
    latency of all models again, in turns, so that latencies are comparable.

    Args:
        data: See ``fit``. Data in memory are known again by their content.
        backbones: timm entry points, globs over those with pretrained weights (``mobilenetv4*``),
            or entry points with the weights file of each.
        out: Folder for the results; created if it does not exist.
        batch: Images per measured call.
        threads: Threads of ONNX Runtime. Default: one per core.
        progress: Called after each backbone with ``"backbones"``, the number of backbones done, and
            their total.
        **fit_options: Any keyword arguments of ``fit`` and of ``load_backbone``, the same for all
            backbones. ``report`` receives a folder for each backbone. ``weights`` belongs to one
            backbone, see ``backbones``.

    Returns:
        The content of ``compare.json``: ``machine``, ``task``, ``score`` (the name of the metric)
        and ``rows``, the best score first. A row has ``name``, ``score``, ``metrics``,
        ``latency_ms``, ``parameters`` (of the backbone), ``head_bytes``, ``onnx_bytes``,
        ``fit_seconds``, what a user must know (``weak_classes``, ``few_images``, ``notes``),
        ``as_good_as_best``, which is True if the score differs from the best one by no more than
        chance may, and ``pareto``, which is True if no other backbone is both faster and better. A
        difference within chance counts as none. The row of a backbone that failed has the whole
        message as ``error`` instead.

    Raises:
        UnknownArchitecture: timm does not have one of the architectures; nothing was fitted.
        DataError: A glob matches nothing, or the data cannot be read.
        OutputError: ``out`` cannot be written.
        DependencyMissing: matplotlib is not installed.
        ValueError: An argument is out of its range.
    """
    if "weights" in fit_options:
        raise ValueError(
            "weights belongs to one backbone: pass backbones={ARCHITECTURE: FILE}, or "
            "--backbones ARCHITECTURE=FILE"
        )
    check_plots()
    weights_by_name = _expand_names(backbones)
    out = Path(out)
    for folder in ("heads", "onnx"):
        make_folder(out / folder)
    report = progress or (lambda *_: None)
    data, fit_options = _open_once(data, fit_options)
    options = {"rows": ROW_FORMAT, "data": _identify(data), **fit_options}
    if isinstance(fit_options.get("val"), ImageDataset):
        options["val"] = _identify(fit_options["val"])
    settings = json.dumps(options, sort_keys=True, default=str)
    record = out / "compare.json"
    rows = {row["name"]: row for row in _read(record) if row.get("settings") == settings}
    rows = {n: row for n, row in rows.items() if n in weights_by_name and _is_done(out, row)}
    report("backbones", 0, len(weights_by_name))
    for number, (name, weights) in enumerate(weights_by_name.items()):
        if name not in rows:
            row = _fit_and_export(name, weights, data, out, fit_options)
            rows[name] = {**row, "settings": settings}
            _write(record, {"rows": list(rows.values())})
        report("backbones", number + 1, len(weights_by_name))
    fitted = [row for row in rows.values() if "error" not in row]
    for row, timing in zip(fitted, _measure_latencies(fitted, out, batch, threads), strict=True):
        row["latency_ms"] = timing.to_json()
    for row in fitted:
        row["pareto"] = not any(_beats(other, row) for other in fitted)
        best = max(fitted, key=lambda one: one["score"])
        row["as_good_as_best"] = row is best or is_within_noise(row, best)
    task = fitted[0]["task"] if fitted else DEFAULT
    result = {
        "machine": machine(),
        "batch": batch,
        "threads": threads,
        "task": task,
        "score": get_task(task).score,
        "rows": sorted(rows.values(), key=lambda row: -row.get("score", -np.inf)),
    }
    _write(record, result)
    if fitted:
        draw(result, out / "pareto.png")
    return result


def _open_once(data: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Open data in memory for all backbones; return the data and the other options of ``fit``."""
    options = dict(options)
    val = options.get("val")
    if not is_in_memory(data) and (val is None or not is_in_memory(val)):
        return data, options
    reading = {name: options.pop(name) for name in _READ_KEYWORDS if name in options}
    train, held = open_data(data, options.pop("val", None), task=options.get("task"), **reading)
    return train, {**options, "val": held}


def _identify(data: Any) -> str:
    """Return text that is the same for the same data."""
    if isinstance(data, ImageDataset):
        return digest_data(data)
    return str(Path(data).absolute() if exists(data) else data)


def _expand_names(
    backbones: Sequence[str] | Mapping[str, str | Path | None],
) -> dict[str, str | Path | None]:
    """Return the weights of each backbone by name, with globs expanded."""
    patterns = backbones if isinstance(backbones, Mapping) else dict.fromkeys(backbones)
    weights_by_name: dict[str, str | Path | None] = {}
    for pattern, weights in patterns.items():
        if not any(mark in pattern for mark in "*?["):
            weights_by_name[pattern] = weights
            continue
        matching = [row.name for row in models(pattern, pretrained=True)]
        if not matching:
            raise DataError(f"no architecture with pretrained weights matches {pattern!r}")
        weights_by_name |= {name: weights_by_name.get(name, weights) for name in matching}
    if not weights_by_name:
        raise DataError("backbones is empty, expected at least one architecture")
    for name in weights_by_name:
        check_architecture(name)
    return weights_by_name


def _fit_and_export(
    name: str, weights: str | Path | None, data: Any, out: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    started = time.perf_counter()
    load = {k: v for k, v in options.items() if k in _LOAD_KEYWORDS or k not in _FIT_KEYWORDS}
    options = {k: v for k, v in options.items() if k not in load}
    if options.get("report") is not None:
        options["report"] = Path(options["report"]) / name
    try:
        backbone = load_backbone(name, weights, **load)
        head = fit(backbone, data, **options)
        seconds = time.perf_counter() - started
        path = head.save(out / "heads" / f"{name}.safetensors")
        exported = export(head, out / "onnx" / f"{name}.onnx", backbone=backbone)
    except DataError:
        raise  # the data are the same for every backbone
    except HeadkitError as error:
        logger.warning("skipped the backbone %s: %s", name, error)
        return {"name": name, "error": str(error)}
    finally:
        gc.collect()
    return {
        "name": name,
        "task": head.task,
        "score": head.metrics.get(get_task(head.task).score, float("nan")),
        "metrics": {k: v for k, v in head.metrics.items() if k != PER_CLASS},
        **describe(head.metrics, head.label_names or (), head.task),
        "parameters": head.backbone.parameters,
        "head_bytes": path.stat().st_size,
        "onnx_bytes": exported.num_bytes,
        "fit_seconds": round(seconds, 1),
    }


def _measure_latencies(
    rows: Sequence[Mapping[str, Any]], out: Path, batch: int, threads: int | None
) -> list[Timing]:
    """Measure all models in each round, so that a change of the machine's speed affects all."""
    times: list[list[float]] = [[] for _ in rows]
    generator = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for row, milliseconds in zip(rows, times, strict=True):
            predictor = Predictor(out / "onnx" / f"{row['name']}.onnx", threads=threads)
            size = predictor.info.backbone["pretrained_cfg"]["input_size"]
            x = generator.normal(size=(batch, *size)).astype(np.float32)
            for call in range(-WARMUP, CALLS):
                start = time.perf_counter()
                predictor.logits(x)
                if call >= 0:
                    milliseconds.append((time.perf_counter() - start) * 1000)
    return [Timing.from_samples(milliseconds) for milliseconds in times]


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    faster = one["latency_ms"]["median_ms"] - other["latency_ms"]["median_ms"]
    better = 0.0 if is_within_noise(one, other) else other["score"] - one["score"]
    return bool(faster <= 0 and better <= 0 and (faster < 0 or better < 0))


def is_within_noise(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return True if chance alone explains the difference between the scores of two rows.

    The standard error of a score is that of its 95 % interval. The images of both scores are the
    same, so this errs on the side of noise. Scores without intervals always differ.
    """
    first, second = _standard_error(one), _standard_error(other)
    if one is other or first is None or second is None:
        return one is other
    limit = _QUANTILE * float(np.hypot(first, second))
    return bool(abs(one["score"] - other["score"]) <= limit)


def _standard_error(row: Mapping[str, Any]) -> float | None:
    interval = row["metrics"].get(f"{get_task(row['task']).score}_interval")
    return None if interval is None else (interval[1] - interval[0]) / (2 * _QUANTILE)


def _is_done(out: Path, row: Mapping[str, Any]) -> bool:
    if "error" in row:
        return False
    try:
        Head.load(out / "heads" / f"{row['name']}.safetensors")
    except HeadkitError:
        return False
    return is_file(out / "onnx" / f"{row['name']}.onnx")


def _read(record: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(record.read_text(encoding="utf-8"))["rows"])
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(f"cannot read {record}: {reason_of(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(
            f"{record} does not hold the results of a comparison ({first_line(error)}): remove it "
            "or choose another folder"
        ) from error


def _write(record: Path, result: Mapping[str, Any]) -> None:
    write_atomically(record, json.dumps(result, indent=2, ensure_ascii=False).encode())
