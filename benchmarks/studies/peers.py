"""Compare headkit's exports with those of other exporters: correctness, latency and size.

Run ``python -m headkit.benchmarks.studies.peers [SECTION …]``. The sections are the names of the
architectures, which measure the latency of their files, and ``exports``, which counts the
architectures that each exporter can export; the default is all. The study writes
``benchmarks/results/peers.json`` after each section and keeps the other sections, so that an
interrupted run can continue with the remaining sections. ``exports`` writes a line for each
architecture and exporter to ``peers_exports.jsonl`` and resumes there. ``--result`` names another
file: ``peers_epyc.json`` has the latencies on a second processor. Needs ``headkit[peers]``.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from headkit.adapters.backbone.classifier import find_classifier
from headkit.adapters.backbone.freeze import freeze
from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.backbone.timm_exceptions import ENCODERS, class_names
from headkit.adapters.compat import input_config
from headkit.adapters.errors import ContractError, ExportError, first_line
from headkit.adapters.heads.attach import adapt
from headkit.benchmarks.bench.process import report, run_in_process
from headkit.benchmarks.bench.run_configs import cores
from headkit.benchmarks.bench.timing import Call, estimate_turn_seconds, race
from headkit.benchmarks.coverage import record
from headkit.benchmarks.coverage.random_weights import randomize_weights
from headkit.export.exporter import export
from headkit.export.graph.onnx_file import num_bytes
from headkit.export.runtimes.onnxruntime import open_session
from headkit.export.verify import TOLERANCE, random_images

from .catalogue import RECORD
from .sections import run_sections

RESULT = Path(__file__).parents[1] / "results" / "peers.json"
EXPORTS = RESULT.with_name("peers_exports.jsonl")
ARCHITECTURES = (
    "resnet50",
    "vit_small_patch16_224",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "tf_efficientnet_lite0",
    "mobilenetv4_conv_small",
    "efficientformerv2_s0",
    "maxvit_nano_rw_256",
)
BATCHES = (1, 16)
CHECKED = (1, 3, 8)
"""Batch sizes at which a file is compared with torch. All exporters trace with two images."""
CLASSES = 1000
REPEATS = {1: 12, 16: 8}
"""Number of repeats of a race by batch size."""
ROUNDS = range(3, 21)
ROUNDS_S = 90.0
"""Intended seconds for all rounds of one race, with ``ROUNDS`` as limits per repeat."""


def _headkit(model: nn.Module, _name: str, _weights: Path, path: Path) -> None:
    export(model, path)


def _torch(model: nn.Module, _name: str, _weights: Path, path: Path) -> None:
    torch.onnx.export(
        model,
        (_two(model),),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
    )


def _timm(model: nn.Module, _name: str, _weights: Path, path: Path, *, dynamo: bool) -> None:
    from timm.utils.onnx import onnx_export

    onnx_export(model, str(path), example_input=_two(model), use_dynamo=dynamo)


def _timmx(_model: nn.Module, name: str, weights: Path, path: Path) -> None:
    import timmx

    timmx.export_model(
        "onnx",
        name,
        checkpoint=str(weights),
        output=str(path),
        batch_size=2,
        dynamic_batch=True,
        **_options(name),
    )


EXPORTERS: dict[str, Callable[[nn.Module, str, Path, Path], None]] = {
    "headkit": _headkit,
    "torch.onnx.export": _torch,
    "timm onnx_export": partial(_timm, dynamo=False),
    "timm onnx_export, dynamo": partial(_timm, dynamo=True),
    "timmx": _timmx,
}


def _two(model: nn.Module) -> torch.Tensor:
    size = input_config(model)["input_size"]
    return random_images(2, size, torch.Generator().manual_seed(0))


def _options(name: str) -> dict[str, Any]:
    """Return timm's options that add a classifier to an architecture without one."""
    plain = timm.create_model(name, pretrained=False, device="meta")
    is_encoder = not ENCODERS.keys().isdisjoint(class_names(plain))
    return {} if is_encoder or find_classifier(plain).num_classes else {"num_classes": CLASSES}


def random_model(name: str, *, encoder_head: bool = True) -> nn.Module:
    """Return a model with random weights of a fixed seed, all of whose branches affect the logits.

    Args:
        name: Name of the architecture.
        encoder_head: Whether an encoder without a classifier gets one from headkit. The other
            exporters export it without a classifier.
    """
    torch.manual_seed(0)
    model = load_backbone(name, pretrained=False, **_options(name))
    if find_classifier(model).num_classes:
        randomize_weights(model)
        return freeze(model)
    headed = adapt(model, CLASSES)
    randomize_weights(headed)
    if encoder_head:
        return freeze(headed)
    plain = load_backbone(name, pretrained=False)
    own = plain.state_dict()
    plain.load_state_dict({k: v for k, v in headed.state_dict().items() if k in own})
    return plain


def one(exporter: str, name: str, path: Path) -> dict[str, Any]:
    """Export one model in this process and compare the file with torch.

    Returns:
        ``export_seconds``, ``bytes``, and by batch size the largest ``difference`` relative to the
        largest logit, or the message in ``errors`` if the file does not run.
    """
    model = random_model(name, encoder_head=exporter == "headkit")
    weights = path.with_suffix(".pth")
    torch.save(model.state_dict(), weights)
    start = time.perf_counter()
    EXPORTERS[exporter](model, name, weights, path)
    seconds = time.perf_counter() - start
    weights.unlink()
    session = open_session(path)
    input_name = session.get_inputs()[0].name
    size = input_config(model)["input_size"]
    differences, errors = {}, {}
    for batch in CHECKED:
        x = random_images(batch, size, torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = model(x).numpy()
        try:
            logits = session.run(None, {input_name: x.numpy()})[0]
        except Exception as error:  # ONNX Runtime raises many types of errors
            errors[str(batch)] = first_line(error)
            continue
        if logits.shape != expected.shape:
            errors[str(batch)] = f"shape {logits.shape}, expected {expected.shape}"
            continue
        differences[str(batch)] = float(np.abs(logits - expected).max() / np.abs(expected).max())
    return {
        "export_seconds": round(seconds, 2),
        "bytes": num_bytes(path),
        "difference": differences,
        "errors": errors,
    }


def _export_in_process(exporter: str, name: str, path: Path) -> dict[str, Any]:
    """Export in a new process, so that exporters do not affect each other.

    Raises:
        ExportError: The random weights cannot show a difference, which is not the exporter's fault.
    """
    try:
        return run_in_process(__spec__.name, "one", exporter, name, str(path))
    except ExportError as error:
        if ContractError.__name__ in str(error):
            raise
        return {"error": str(error).replace(f"{path.parent}/", "")}


def verdict(row: Mapping[str, Any]) -> str:
    """Return ``agrees`` if an export is correct, or a short description of its fault."""
    if "error" in row:
        return "no file"
    if row["errors"]:
        return "fixed batch" if row["difference"] else "does not run"
    # A NaN does not agree.
    same = all(difference <= TOLERANCE for difference in row["difference"].values())
    return "agrees" if same else "other logits"


def exports(folder: Path) -> dict[str, Any]:
    """Count each exporter's correct exports of the smallest architecture of each family."""
    rows = {(row["architecture"], row["exporter"]): row for row in _read(EXPORTS)}
    names = record.smallest_of_each_family(record.load(RECORD))
    for exporter, name in itertools.product(reversed(EXPORTERS), names):
        if (name, exporter) in rows:
            continue
        outcome = _export_in_process(exporter, name, folder / "model.onnx")
        for exported in folder.iterdir():
            exported.unlink()
        row = {"architecture": name, "exporter": exporter, **outcome}
        rows[name, exporter] = row
        with EXPORTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return score([rows[name, exporter] for exporter in EXPORTERS for name in names])


def score(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the verdicts on each exporter's exports, and the total size of comparable files.

    The result has no durations, as the rows may come from runs on different machines.

    Returns:
        ``architectures``, their number; ``common``, the number of architectures that every exporter
        can export; and for each exporter its architectures by ``verdicts``, and the total ``bytes``
        of its files of the common architectures.
    """
    names = sorted({row["architecture"] for row in rows})
    failed = {row["architecture"] for row in rows if "error" in row}
    exporters = {}
    for exporter, group in itertools.groupby(rows, itemgetter("exporter")):
        own = list(group)
        verdicts: dict[str, list[str]] = {}
        for row in own:
            verdicts.setdefault(verdict(row), []).append(row["architecture"])
        common = sum(row["bytes"] for row in own if row["architecture"] not in failed)
        exporters[exporter] = {"verdicts": verdicts, "bytes": common}
    num_common = len(names) - len(failed)
    return {"architectures": len(names), "common": num_common, "exporters": exporters}


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def latency(name: str, folder: Path) -> dict[str, Any]:
    """Measure export time, size and latency of the files of all exporters for an architecture."""
    rows, paths = {}, {}
    for number, exporter in enumerate(EXPORTERS):
        path = folder / f"{number}.onnx"
        row = _export_in_process(exporter, name, path)
        rows[exporter] = {**row, "verdict": verdict(row)}
        if rows[exporter]["verdict"] == "agrees":
            paths[exporter] = path
    batches = _race(name, paths)
    return {"threads": cores(), "sittings": REPEATS, "exporters": rows, "batches": batches}


def _race(name: str, paths: dict[str, Path]) -> dict[str, Any]:
    size = input_config(timm.create_model(name, device="meta"))["input_size"]
    result: dict[str, Any] = {}
    for batch in BATCHES:
        x = random_images(batch, size, torch.Generator().manual_seed(batch)).numpy()
        candidates = {exporter: partial(_prepare, path, x) for exporter, path in paths.items()}
        repeats = REPEATS[batch]
        rounds = _choose_rounds(candidates.values(), repeats)
        run = race(candidates, repeats=repeats, rounds=rounds)
        timings = run.timings
        peers = [exporter for exporter in paths if exporter != "headkit"]
        result[str(batch)] = {
            "rounds": repeats * rounds,
            "latency_ms": {exporter: timing.to_json() for exporter, timing in timings.items()},
            "ratios": {peer: run.ratio("headkit", peer).to_json() for peer in peers},
        }
    return result


def _choose_rounds(candidates: Iterable[Callable[[], Call]], repeats: int) -> int:
    """Return the number of rounds per repeat that fit into ``ROUNDS_S``."""
    round_s = sum(estimate_turn_seconds(prepare()) for prepare in candidates)
    return min(max(int(ROUNDS_S / repeats / round_s), ROUNDS[0]), ROUNDS[-1])


def _prepare(path: Path, x: Any) -> Call:
    session = open_session(path, cores())
    input_name = session.get_inputs()[0].name
    return lambda: session.run(None, {input_name: x})


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{name: partial(latency, name) for name in ARCHITECTURES},
    "exports": exports,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        report(one(sys.argv[2], sys.argv[3], Path(sys.argv[4])))
    else:
        run_sections(__doc__, RESULT, SECTIONS)
