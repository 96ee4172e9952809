from pathlib import Path
from typing import Any

import pytest
from headkit.benchmarks.growth import slope
from headkit.benchmarks.machine import package_version
from headkit.benchmarks.peers import EXPORTERS, one, score, verdict


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


def test_score_counts_cost_where_all_exporters_made_a_file() -> None:
    def made(architecture: str, exporter: str, seconds: float, difference: float) -> dict[str, Any]:
        row = {"architecture": architecture, "exporter": exporter, "export_seconds": seconds}
        return row | {"bytes": int(10 * seconds), "difference": {"1": difference}, "errors": {}}

    found = score(
        [
            made("a", "ours", 1.0, 0.0),
            made("b", "ours", 3.0, 0.0),
            made("c", "ours", 9.0, 0.0),
            made("a", "theirs", 2.0, 0.0),
            made("b", "theirs", 4.0, 1.0),
            {"architecture": "c", "exporter": "theirs", "error": "no"},
        ]
    )
    assert found["architectures"] == 3
    assert found["common"] == 2
    ours, theirs = found["exporters"]["ours"], found["exporters"]["theirs"]
    assert ours == {"verdicts": {"agrees": ["a", "b", "c"]}, "export_seconds": 2.0, "bytes": 40}
    assert theirs["verdicts"] == {"agrees": ["a"], "other logits": ["b"], "no file": ["c"]}
    assert (theirs["export_seconds"], theirs["bytes"]) == (3.0, 60)


def test_slope_is_the_power_by_which_cost_grows() -> None:
    sizes = [10, 100, 1000]
    assert slope(sizes, [3.0 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert slope(sizes, [7, 7, 7]) == 0
    assert slope(sizes, [0, 7, 7]) is None
