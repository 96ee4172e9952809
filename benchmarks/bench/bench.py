"""Measure latency, throughput, memory and size of models on the installed runtimes."""

from __future__ import annotations

import csv
import gc
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from headkit.adapters.errors import ExportError, first_line
from headkit.adapters.files import make_folder, scratch_folder, write_atomically
from headkit.export.runtimes.inference import Array, LoadedModel, RunConfig
from headkit.export.runtimes.table import DEVICES, PRECISIONS, RUNTIMES
from headkit.export.runtimes.threads import restore_threads

from .cold_start import Cold, cold_start
from .display_names import ONNXRUNTIME
from .gpu import measure_copy_ms, time_by_events
from .machine import machine
from .model_under_test import SAMPLE, BackboneSource, ModelUnderTest, models_under_test
from .peak import peak_gmacs
from .plots import check_plots, draw
from .run_configs import cores, explain_absence, missing_configs, run_configs
from .timing import Call, Race, race

REPEATS, ROUNDS, COLD_STARTS = 8, 3, 3

TIMM_COLUMNS = (
    "model",
    "infer_samples_per_sec",
    "infer_step_time",
    "infer_batch_size",
    "infer_img_size",
    "infer_gmacs",
    "param_count",
)
"""Columns of timm's own benchmark results, in its units: milliseconds and millions."""

RATIOS = ("ratio", "ratio_to_onnxruntime")

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class _Agreement:
    """Comparison of the logits of one way to run a model with those of the first way.

    Attributes:
        same_class: Share of the images for which both predict the same class.
        logit_difference: Median over the images of the largest difference, relative to the largest
            logit of that image.
        accuracy: Accuracy on the images; None if their classes are unknown.
    """

    same_class: float
    logit_difference: float
    accuracy: float | None


def bench(
    targets: Iterable[str | Path],
    *,
    runtimes: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 16),
    threads: int | None = None,
    backbone: str | None = None,
    weights: str | Path | None = None,
    remap: bool = False,
    images: str | Path | None = None,
    out: str | Path | None = None,
    repeats: int = REPEATS,
    rounds: int = ROUNDS,
    cold_starts: int = COLD_STARTS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure models on several runtimes; all runtimes of a model take turns.

    Args:
        targets: Architectures (with random weights, which do not change the speed), head files, or
            ONNX files with a dynamic batch.
        runtimes: Keys of ``RUNTIMES``. Default: all.
        precisions: Any of ``fp32``, ``fp16``, ``bf16``, ``int8``. Default: all.
        devices: Any of ``cpu``, ``cuda``. Default: both.
        batches: Numbers of images per call.
        threads: Threads on the CPU. Default: one per core.
        backbone: Backbone of the head files, such as ``local-dir:FOLDER``. Default: see
            ``load_backbone_of``.
        weights: Weights file of the head files' backbone. Default: see ``load_backbone_of``.
        remap: Match the tensors of ``weights`` by position, see ``load_backbone``.
        images: Folder of images to calibrate int8 and fp16, and to compare the predictions of the
            runtimes. Default: random images.
        out: Folder for ``bench.json``, ``bench.csv``, ``latency.png`` and ``throughput.png``.
        repeats: Number of repeats, see ``race``.
        rounds: Number of rounds in each repeat, see ``race``.
        cold_starts: Number of processes to start for each way to run a model; 0 skips cold starts.
        progress: Called after each model with ``"models"``, the number of models done, and their
            total.

    Returns:
        The content of ``bench.json``:

        - ``machine``: processor, cores, system and versions.
        - ``images``: number of the images for comparing predictions, and whether they are random.
        - ``peak_gmacs_per_s``: peak speed of a large matrix product, by precision and device.
        - ``rows``: the measurements. A row has timm's columns (``TIMM_COLUMNS``), ``runtime``,
          ``precision``, ``device``, ``threads``, ``p05_ms``, ``p95_ms`` and ``spread``. ``ratio``
          is the time relative to the first runtime of that model and batch size, with the ends of
          its interval; ``ratio_to_onnxruntime`` is the same relative to ONNX Runtime in float32 on
          the CPU, if that was measured. ``share_of_peak``, ``copy_ms`` (on a GPU), ``same_class``,
          ``logit_difference`` and ``accuracy`` (if the images are in folders named after the
          classes) follow, and ``first_prediction_s``, ``load_s``, ``peak_bytes``, ``device_bytes``
          and ``file_bytes`` of the cold starts.
        - ``absent``: the requested ways that could not run, with the reason.

    Raises:
        ValueError: A runtime, precision, device or number is not valid.
        DependencyMissing: ``out`` is given and matplotlib is not installed.
        ExportError: Nothing can run a model, or an ONNX file cannot be used.
        UnknownArchitecture, HeadFormatError, WeightsError, DataError: See ``models_under_test``.
    """
    runtimes = _check_names("runtime", runtimes, RUNTIMES)
    all_precisions = _check_names("precision", precisions, PRECISIONS)
    all_devices = _check_names("device", devices, DEVICES)
    for name, number in (("batches", min(batches, default=0)), ("rounds", rounds)):
        if number < 1:
            raise ValueError(f"{name} is {number}, expected at least 1")
    for name, number, least in (
        ("repeats", repeats, 1),
        ("threads", 1 if threads is None else threads, 1),
        ("cold_starts", cold_starts, 0),
    ):
        if number < least:
            raise ValueError(f"{name} is {number}, expected at least {least}")
    if out is not None:
        check_plots()
        make_folder(Path(out))
    configs = run_configs(runtimes, all_precisions, all_devices, threads or cores())
    if not configs:
        raise ValueError(
            f"no requested runtime ({', '.join(runtimes)}) supports a requested precision "
            f"({', '.join(all_precisions)}) on {' or '.join(all_devices)}"
        )
    unsupported = missing_configs(runtimes, precisions, devices, threads or cores())
    report = progress or (lambda *_: None)
    rows, missing = list[dict[str, Any]](), list[dict[str, Any]]()
    with restore_threads(), scratch_folder() as folder:
        source = BackboneSource(backbone, weights, remap)
        models = models_under_test(targets, Path(folder), source, images)
        num_images = len(models[0].samples()) if models else 0
        peaks = _measure_peaks(configs)
        report("models", 0, len(models))
        for number, model in enumerate(models):
            bench_one = _Bench(model, repeats, rounds, cold_starts, peaks)
            rows += bench_one.measure(configs, batches)
            missing += bench_one.absent
            missing += [
                _absent_row(
                    model, one, f"{one.runtime} does not support {one.precision} on {one.device}"
                )
                for one in unsupported
            ]
            report("models", number + 1, len(models))
    result = {
        "machine": machine(),
        "images": {"number": num_images, "random": images is None},
        "peak_gmacs_per_s": {name: None if p is None else round(p, 1) for name, p in peaks.items()},
        "rows": rows,
        "absent": missing,
    }
    if out is not None:
        _write(result, Path(out))
    return result


class _Bench:
    """One model in all ways to run it."""

    def __init__(
        self,
        model: ModelUnderTest,
        repeats: int,
        rounds: int,
        cold_starts: int,
        peaks: dict[str, float | None],
    ) -> None:
        self.model, self.peaks = model, peaks
        self.repeats, self.rounds, self.cold_starts = repeats, rounds, cold_starts
        self.absent = list[dict[str, Any]]()
        self._compiled = dict[tuple[RunConfig, int], LoadedModel]()

    def measure(self, configs: Sequence[RunConfig], batches: Sequence[int]) -> list[dict[str, Any]]:
        agreements = self._run_each(configs)
        if not agreements:
            reasons = "; ".join(sorted({row["reason"] for row in self.absent}))
            raise ExportError(f"no requested runtime can run {self.model.name}: {reasons}")
        cold = {}
        if self.cold_starts:
            cold = cold_start(self.model, list(agreements), self.cold_starts)
        rows = []
        for batch in batches:
            x = self.model.images(batch)
            run = race(
                {str(one): partial(self._prepare, one, x) for one in agreements},
                repeats=self.repeats,
                rounds=self.rounds,
            )
            reference = str(next(iter(agreements)))
            for one, agreement in agreements.items():
                rows.append(
                    {
                        **self._row(one, batch, run, reference),
                        "copy_ms": self._copy_ms(one, x),
                        **asdict(agreement),
                        **_cold_columns(cold.get(one)),
                    }
                )
            self._compiled.clear()
        return rows

    def _run_each(self, configs: Sequence[RunConfig]) -> dict[RunConfig, _Agreement]:
        """Return the ways that run, and how their logits compare with those of the first."""
        agreements = dict[RunConfig, _Agreement]()
        samples, targets = self.model.samples(), self.model.targets()
        expected: Array | None = None
        for one in configs:
            reason = explain_absence(one)
            if not reason:
                try:
                    loaded = self._load(one, SAMPLE)
                    logits = np.concatenate(
                        [loaded.run(some) for some in np.split(samples, len(samples) // SAMPLE)]
                    )
                except Exception as error:  # each runtime raises its own types of errors
                    reason = first_line(error)
            if reason:
                self.absent.append(_absent_row(self.model, one, reason))
                continue
            expected = logits if expected is None else expected
            agreements[one] = _compare_logits(logits, expected, targets)
        return agreements

    def _load(self, one: RunConfig, batch: int) -> LoadedModel:
        return RUNTIMES[one.runtime].load_module().load(self.model, one, batch)

    def _prepare(self, one: RunConfig, x: Array) -> Call:
        loaded = self._load_once(one, len(x))
        call = loaded.bind(x)
        return call if one.device == "cpu" else time_by_events(call, loaded.stream)

    def _load_once(self, one: RunConfig, batch: int) -> LoadedModel:
        """Load a model; keep compiled ones over all repeats, as torch compiles for minutes."""
        if one.runtime != "torch.compile":
            return self._load(one, batch)
        if (one, batch) not in self._compiled:
            self._compiled[one, batch] = self._load(one, batch)
        return self._compiled[one, batch]

    def _copy_ms(self, one: RunConfig, x: Array) -> float | None:
        if one.device == "cpu":
            return None
        logits = self._load_once(one, len(x)).run(x)
        gc.collect()
        return round(measure_copy_ms(x, logits), 4)

    def _row(self, one: RunConfig, batch: int, run: Race, reference: str) -> dict[str, Any]:
        timing, model = run.timings[str(one)], self.model
        per_second = 1000 * batch / timing.median_ms
        peak, gmacs = self.peaks[_kind(one)], model.gmacs
        share = None if peak is None or gmacs is None else round(gmacs * per_second / peak, 4)
        return {
            "model": model.name,
            "infer_samples_per_sec": round(per_second, 2),
            "infer_step_time": timing.median_ms,
            "infer_batch_size": batch,
            "infer_img_size": max(model.input_size),
            "infer_gmacs": gmacs,
            "param_count": round(model.parameters / 1e6, 2),
            **asdict(one),
            "p05_ms": timing.p05_ms,
            "p95_ms": timing.p95_ms,
            "spread": round(timing.spread, 3),
            "ratio": run.ratio(str(one), reference).to_json(),
            "ratio_to_onnxruntime": (
                run.ratio(str(one), ONNXRUNTIME).to_json() if ONNXRUNTIME in run.calls else None
            ),
            "share_of_peak": share,
        }


def _absent_row(model: ModelUnderTest, one: RunConfig, reason: str) -> dict[str, Any]:
    return {"model": model.name, **asdict(one), "reason": reason}


def _compare_logits(logits: Array, expected: Array, targets: Array | None) -> _Agreement:
    differences = np.abs(logits - expected).max(1) / np.abs(expected).max(1)
    same = (logits.argmax(1) == expected.argmax(1)).mean()
    accuracy = None if targets is None else float((logits.argmax(1) == targets).mean())
    return _Agreement(
        round(float(same), 4),
        float(f"{np.median(differences):.3g}"),
        None if accuracy is None else round(accuracy, 4),
    )


def _cold_columns(cold: Cold | None) -> dict[str, Any]:
    return dict.fromkeys(Cold.__dataclass_fields__) if cold is None else asdict(cold)


def _kind(one: RunConfig) -> str:
    return f"{one.precision} {one.device}"


def _measure_peaks(configs: Sequence[RunConfig]) -> dict[str, float | None]:
    by_kind = {_kind(one): one for one in configs}
    return {kind: peak_gmacs(one) for kind, one in by_kind.items()}


def _check_names(what: str, names: Sequence[str] | None, known: Iterable[str]) -> tuple[str, ...]:
    known = tuple(known)
    for name in names or ():
        if name not in known:
            raise ValueError(f"{what} is {name!r}, expected one of {', '.join(known)}")
    return tuple(names or known)


def _write(result: dict[str, Any], folder: Path) -> None:
    content = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "bench.json", content.encode())
    write_atomically(folder / "bench.csv", to_csv(result["rows"]).encode())
    draw(result, folder)


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV, timm's columns first; ratios without their intervals."""
    if not rows:
        return ""
    columns = [*TIMM_COLUMNS, *(name for name in rows[0] if name not in TIMM_COLUMNS)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        ratios = {name: row[name] and row[name]["value"] for name in RATIOS}
        writer.writerow({**row, **ratios})
    return text.getvalue()
