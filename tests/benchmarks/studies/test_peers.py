from pathlib import Path
from typing import Any

import pytest

from headkit.benchmarks.bench.machine import package_version
from headkit.benchmarks.pages.benchmarks import _latency_cells, _outcome
from headkit.benchmarks.studies.growth import _add_slopes, slope
from headkit.benchmarks.studies.peers import EXPORTERS, one, score, verdict


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_each_exporter_makes_a_file_that_is_judged(exporter: str, tmp_path: Path) -> None:
    if exporter == "timmx" and package_version("timmx") is None:
        pytest.skip("timmx is not installed")
    row = one(exporter, "test_resnet", tmp_path / "model.onnx")
    assert set(row["difference"]) == {"1", "3", "8"}
    assert verdict(row) == "agrees"
    assert row["bytes"] == (tmp_path / "model.onnx").stat().st_size


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"error": "no"}, "no file"),
        ({"errors": {"1": "no", "3": "no", "8": "no"}, "difference": {}}, "does not run"),
        ({"errors": {"1": "no"}, "difference": {"3": 0.0}}, "fixed batch"),
        ({"errors": {}, "difference": {"1": 1e-6, "3": 2e-4}}, "other logits"),
        ({"errors": {}, "difference": {"1": float("nan"), "3": 0.0}}, "other logits"),
        ({"errors": {}, "difference": {"1": 0.0, "3": float("nan")}}, "other logits"),
        ({"errors": {}, "difference": {"1": 1e-6, "3": 9e-5}}, "agrees"),
    ],
)
def test_verdicts(row: dict[str, Any], expected: str) -> None:
    assert verdict(row) == expected


def test_score_counts_bytes_where_all_exporters_made_a_file() -> None:
    def made(architecture: str, exporter: str, num_bytes: int, difference: float) -> dict[str, Any]:
        row = {"architecture": architecture, "exporter": exporter, "bytes": num_bytes}
        return row | {"difference": {"1": difference}, "errors": {}}

    result = score(
        [
            made("a", "ours", 10, 0.0),
            made("b", "ours", 30, 0.0),
            made("c", "ours", 90, 0.0),
            made("a", "theirs", 20, 0.0),
            made("b", "theirs", 40, 1.0),
            {"architecture": "c", "exporter": "theirs", "error": "no"},
        ]
    )
    assert result["architectures"] == 3
    assert result["common"] == 2
    ours, theirs = result["exporters"]["ours"], result["exporters"]["theirs"]
    assert ours == {"verdicts": {"agrees": ["a", "b", "c"]}, "bytes": 40}
    assert theirs["verdicts"] == {"agrees": ["a"], "other logits": ["b"], "no file": ["c"]}
    assert theirs["bytes"] == 60


def test_slope_is_the_power_by_which_cost_grows() -> None:
    sizes = [10, 100, 1000]
    assert slope(sizes, [3.0 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert slope(sizes, [7, 7, 7]) == 0
    assert slope(sizes, [0, 7, 7]) is None


def test_slopes_are_those_of_the_last_tenfold() -> None:
    rows = [{"size": size, "ms": cost} for size, cost in ((1, 9), (10, 1), (30, 3), (100, 10))]
    assert _add_slopes(rows, "size", ["ms"])["slopes"] == {"ms": 1.0}
    rows[1]["ms"] = 9
    assert _add_slopes(rows[:2], "size", ["ms"])["slopes"] == {"ms": 0.0}


def peer(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def test_page_shows_the_fastest_of_the_other_exporters() -> None:
    timing = {"median_ms": 2.0}
    ratios = {
        "torch.onnx.export": peer(0.90, 0.88, 0.92),
        "timm onnx_export": peer(1.05, 1.03, 1.07),
        "timmx": peer(0.95, 0.93, 0.97),
    }
    found = {"latency_ms": dict.fromkeys(ratios, timing) | {"headkit": timing}, "ratios": ratios}
    cells = _latency_cells("model", found)
    assert cells[-1] == "1.050 (1.030 to 1.070), timm onnx_export"
    assert _outcome("1", {"model": found}) == [
        "At batch 1 there is no architecture for which headkit's file is faster than every other "
        "file. headkit's file is slower than at least one other file for `model` (timm "
        "onnx_export: 1.050). A difference counts only if the interval of the ratio excludes 1."
    ]
    ratios["timm onnx_export"] = peer(0.99, 0.97, 1.01)
    (sentence,) = _outcome("1", {"model": found})
    assert sentence.startswith(
        "At batch 1 there is no architecture for which headkit's file is faster than every other "
        "file. No other file is faster than headkit's for any architecture. "
    )
    ratios["timm onnx_export"] = peer(0.95, 0.93, 0.97)
    (sentence,) = _outcome("1", {"model": found})
    assert "every other file for `model`. No other file is faster than headkit's" in sentence
