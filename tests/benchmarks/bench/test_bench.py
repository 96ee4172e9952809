import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import headkit
from headkit.benchmarks.bench import run_configs
from headkit.benchmarks.bench.bench import TIMM_COLUMNS
from headkit.benchmarks.bench.display_names import describe_unmeasured
from headkit.benchmarks.bench.model_under_test import models_under_test
from headkit.benchmarks.bench.peak import peak_gmacs
from headkit.benchmarks.bench.plots import MARKERS, PALETTE, choose_styles
from headkit.benchmarks.bench.run_configs import explain_absence, missing_configs
from headkit.export.runtimes.inference import RunConfig
from headkit.export.runtimes.table import RUNTIMES
from headkit.export.runtimes.threads import restore_threads
from tests.backbones import SMALL, active_backbone

ON_CPU: dict[str, Any] = {"devices": ["cpu"], "repeats": 1, "rounds": 3}
BF16 = [] if explain_absence(RunConfig("torch", "bf16", "cpu", 1)) else [("torch", "bf16")]
"""The rows in bfloat16 that the processor of the tests supports."""
CPU_FLAGS = Path("/proc/cpuinfo")


def rows_of(result: dict[str, Any], runtime: str, precision: str) -> list[dict[str, Any]]:
    kind = (runtime, precision)
    return [row for row in result["rows"] if (row["runtime"], row["precision"]) == kind]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("bench")
    result = headkit.bench(
        [SMALL],
        runtimes=["torch", "onnxruntime"],
        batches=[1, 4],
        out=out,
        cold_starts=1,
        threads=1,
        **ON_CPU,
    )
    return result, out


def test_rows_contain_times_memory_agreement_and_ratios(
    measured: tuple[dict[str, Any], Path],
) -> None:
    result, _ = measured
    rows = result["rows"]
    kinds = {("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"), *BF16}
    assert {(r["runtime"], r["precision"], r["infer_batch_size"]) for r in rows} == {
        (*kind, batch) for kind in kinds for batch in (1, 4)
    }
    model = headkit.load_backbone(SMALL, pretrained=False)
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.zeros(1, 3, 160, 160))
    for row in rows:
        assert row["infer_img_size"] == 160
        assert row["param_count"] == round(sum(p.numel() for p in model.parameters()) / 1e6, 2)
        assert row["infer_gmacs"] == pytest.approx(counter.get_total_flops() / 2e9, abs=1e-4)
        per_second = 1000 * row["infer_batch_size"] / row["infer_step_time"]
        assert row["infer_samples_per_sec"] == pytest.approx(per_second, rel=1e-3)
        assert row["p05_ms"] <= row["infer_step_time"] <= row["p95_ms"]
        assert row["ratio"]["low"] <= row["ratio"]["value"] <= row["ratio"]["high"]
        assert 0 < row["load_s"] < row["first_prediction_s"]
        assert row["file_bytes"] < row["peak_bytes"]
        assert row["threads"] == 1
        if row["precision"] == "fp32":
            gmacs_per_s = row["infer_gmacs"] * row["infer_samples_per_sec"]
            peak = result["peak_gmacs_per_s"]["fp32 cpu"]
            assert row["share_of_peak"] == pytest.approx(gmacs_per_s / peak, rel=0.05)
            assert row["same_class"] == 1
            assert row["logit_difference"] < 1e-4
    first = rows_of(result, "torch", "fp32")
    assert all(row["ratio"]["value"] == 1 for row in first)
    for row, plain in zip(first, rows_of(result, "onnxruntime", "fp32"), strict=True):
        assert plain["ratio_to_onnxruntime"]["value"] == 1
        both = row["ratio_to_onnxruntime"]["value"] * plain["ratio"]["value"]
        assert both == pytest.approx(1, rel=5e-3)  # of an odd number of rounds, to four digits
    by_kind = {(row["runtime"], row["precision"]): row for row in rows}
    onnx, eager = by_kind["onnxruntime", "fp32"], by_kind["torch", "fp32"]
    assert onnx["first_prediction_s"] < eager["first_prediction_s"]
    assert onnx["peak_bytes"] < eager["peak_bytes"]
    for kind in BF16:
        assert 1e-4 < by_kind[kind]["logit_difference"] < 0.2


def test_results_are_files_that_timms_tools_read(measured: tuple[dict[str, Any], Path]) -> None:
    result, out = measured
    assert json.loads((out / "bench.json").read_text()) == result
    with (out / "bench.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0])[: len(TIMM_COLUMNS)] == TIMM_COLUMNS
    assert len(table) == len(result["rows"])
    assert float(table[0]["infer_step_time"]) == result["rows"][0]["infer_step_time"]
    for name in ("latency.png", "throughput.png"):
        with Image.open(out / name) as plot:
            assert np.asarray(plot.convert("L")).std() > 5


def test_an_onnx_file_is_measured_as_it_is(tmp_path: Path) -> None:
    path = headkit.export(active_backbone(), tmp_path / "model.onnx", preprocess=True).path
    with restore_threads():
        torch.set_num_threads(3)
        result = headkit.bench([path], batches=[2], cold_starts=0, **ON_CPU)
        assert torch.get_num_threads() == 3
    (row,) = rows_of(result, "onnxruntime", "fp32")
    assert row["model"] == str(path)
    assert row["infer_img_size"] == 160
    assert row["infer_gmacs"] is None
    assert row["first_prediction_s"] is None
    reasons = {(a["runtime"], a["precision"]): a["reason"] for a in result["absent"]}
    assert "torch cannot run it" in reasons["torch", "fp32"]
    assert "precision is fixed" in reasons["onnxruntime", "int8"]


def test_a_head_file_is_measured_on_its_backbone(
    small_weights: Path, shapes: Path, tmp_path: Path
) -> None:
    head = headkit.fit(SMALL, shapes, weights=small_weights, val=shapes, workers=0)
    path = head.save(tmp_path / "shapes.safetensors")
    for label in ("bright", "dark", "striped"):  # 24 images are too few
        for number in range(4):
            source = shapes / label / f"{number}.png"
            target = tmp_path / "more" / label / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    with pytest.raises(headkit.DataError, match="has 12 images, expected at least 32"):
        headkit.bench([path], weights=small_weights, images=tmp_path / "more", **ON_CPU)
    kinds = ["torch", "onnxruntime"]
    result = headkit.bench(
        [path],
        weights=small_weights,
        runtimes=kinds,
        precisions=["fp32", "int8"],
        batches=[1],
        cold_starts=1,
        **ON_CPU,
    )
    assert {(row["runtime"], row["precision"]) for row in result["rows"]} == {
        ("torch", "fp32"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    }
    assert all(row["load_s"] > 0 for row in result["rows"])
    assert result["images"] == {"number": 16, "random": True}


def test_users_images_calibrate_and_compare(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(70):
        pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    result = headkit.bench(
        [SMALL],
        runtimes=["onnxruntime"],
        batches=[1],
        images=tmp_path / "images",
        cold_starts=0,
        **ON_CPU,
    )
    assert result["images"] == {"number": 32, "random": False}
    int8 = next(row for row in result["rows"] if row["precision"] == "int8")
    assert 0 < int8["logit_difference"] < 0.5


def test_missing_runtimes_are_reported_with_the_reason(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    path = headkit.export(active_backbone(), tmp_path / "model.onnx").path
    result = headkit.bench(
        [path],
        runtimes=["onnxruntime", "tensorrt"],
        batches=[1],
        cold_starts=0,
        **{**ON_CPU, "devices": None},
    )
    assert [row["device"] for row in result["rows"]] == ["cpu"]
    missing = {(row["runtime"], row["precision"], row["device"]) for row in result["absent"]}
    on_gpu = {(one, p, "cuda") for one in ("onnxruntime", "tensorrt") for p in ("fp32", "fp16")}
    assert missing == {("onnxruntime", "int8", "cpu"), *on_gpu}
    assert describe_unmeasured(result["absent"], [str(path)]) == [
        f"Not measured: onnxruntime int8. Reason: {path} is an ONNX file, whose precision is "
        "fixed: it is listed as fp32.",
        "Not measured: onnxruntime fp32 cuda, onnxruntime fp16 cuda, tensorrt fp32 cuda, "
        "tensorrt fp16 cuda. Reason: there is no GPU that torch can use.",
    ]
    with pytest.raises(headkit.ExportError, match="there is no GPU that torch can use"):
        headkit.bench([path], runtimes=["tensorrt"], devices=["cuda"])


def test_a_line_names_its_models_if_others_were_measured() -> None:
    def row(model: str, runtime: str, reason: str) -> dict[str, str]:
        missing = {"runtime": runtime, "precision": "bf16", "device": "cpu"}
        return {"model": model, **missing, "reason": reason}

    rows = [
        row("one", "torch", "no"),
        row("other", "torch", "no"),
        row("one", "openvino", "no"),
        row("other", "openvino", "too large."),
    ]
    assert describe_unmeasured(rows, ["one", "other"]) == [
        "Not measured: torch bf16. Reason: no.",
        "Not measured: openvino bf16 for one. Reason: no.",
        "Not measured: openvino bf16 for other. Reason: too large.",
    ]


def test_requested_configurations_that_a_runtime_lacks_are_reported() -> None:
    def named(precisions: list[str] | None, devices: list[str] | None) -> list[str]:
        found = missing_configs(["onnxruntime", "openvino"], precisions, devices, 1)
        return [f"{one.runtime} {one.precision} {one.device}" for one in found]

    assert named(None, None) == []
    assert named(None, ["cpu"]) == []
    assert named(None, ["cuda"]) == ["openvino fp32 cuda", "openvino bf16 cuda"]
    assert named(["bf16"], ["cpu"]) == ["onnxruntime bf16 cpu"]


def test_bfloat16_is_skipped_if_torch_has_no_kernels_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_configs, "multiplies_bfloat16", lambda: False)
    result = headkit.bench(
        [SMALL],
        runtimes=["torch"],
        batches=[1],
        cold_starts=0,
        precisions=["fp32", "bf16"],
        **ON_CPU,
    )
    assert {row["precision"] for row in result["rows"]} == {"fp32"}
    (row,) = result["absent"]
    assert row["reason"] == "torch has no bfloat16 kernels for this processor"
    assert result["peak_gmacs_per_s"]["bf16 cpu"] is None
    assert peak_gmacs(RunConfig("openvino", "bf16", "cpu", 1)) is None


def test_bfloat16_is_measured_where_the_processor_has_instructions_for_it() -> None:
    flags = CPU_FLAGS.read_text().split() if CPU_FLAGS.exists() else []
    if not {"avx512_bf16", "amx_bf16"} & set(flags):
        pytest.skip("the processor has none")
    assert BF16


def test_multiply_adds_of_a_transformer_are_those_of_the_formula(tmp_path: Path) -> None:
    (model,) = models_under_test(["vit_tiny_patch16_224"], tmp_path)
    patches, width, depth, classes = 14 * 14, 192, 12, 1000
    tokens = patches + 1
    linear = tokens * 12 * width**2
    attention = 2 * tokens**2 * width
    total = patches * width * 3 * 16**2 + depth * (linear + attention) + width * classes
    assert model.gmacs == pytest.approx(total / 1e9, abs=1e-4)


def test_no_two_names_look_alike() -> None:
    found = choose_styles(str(number) for number in range(len(PALETTE) * len(MARKERS)))
    assert len({tuple(style.values()) for style in found.values()}) == len(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtimes": ["tflite"]}, "runtime is 'tflite', expected one of torch, torch.compile"),
        ({"precisions": ["fp8"]}, "precision is 'fp8', expected one of fp32"),
        ({"devices": ["tpu"]}, "device is 'tpu', expected one of cpu, cuda"),
        (
            {"runtimes": ["tensorrt"], "devices": ["cpu"]},
            r"no requested runtime \(tensorrt\) supports a requested precision \(fp32, .*\) on cpu",
        ),
        ({"batches": [0]}, "batches is 0, expected at least 1"),
        ({"batches": []}, "batches is 0, expected at least 1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"repeats": 0}, "repeats is 0, expected at least 1"),
        ({"threads": 0}, "threads is 0, expected at least 1"),
        ({"cold_starts": -1}, "cold_starts is -1, expected at least 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        headkit.bench([SMALL], **options)


def test_a_repeated_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(headkit.DataError, match="appears twice"):
        models_under_test([SMALL, SMALL], tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("runtime", ["torch", "torch.compile", "onnxruntime", "tensorrt"])
def test_gpu_is_timed_by_its_own_events_and_copies_apart(runtime: str) -> None:
    result = headkit.bench(
        [SMALL], runtimes=["torch", runtime], devices=["cuda"], batches=[1, 8], rounds=3, repeats=1
    )
    rows = [row for row in result["rows"] if row["runtime"] == runtime]
    if not rows:
        pytest.skip(result["absent"][0]["reason"])
    assert {row["precision"] for row in rows} == set(RUNTIMES[runtime].inference["cuda"])
    for row in rows:
        assert row["copy_ms"] > 0
        assert row["device_bytes"] > 0
        assert row["same_class"] > 0.8
