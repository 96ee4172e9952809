import json
import multiprocessing
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import timm

import headkit
from headkit.benchmarks.coverage import contract, record
from headkit.benchmarks.pages import coverage
from headkit.benchmarks.studies.catalogue import RECORD

COMMITTED = record.load(RECORD)


def test_every_entry_point_is_recorded_and_passes_the_structural_check() -> None:
    rows = {name: row for (name, check), row in COMMITTED.items() if check == "structure"}
    assert set(rows) == set(timm.list_models())
    assert [name for name, row in rows.items() if not row["passed"]] == []


def test_every_entry_point_up_to_100_million_parameters_passes_with_real_tensors() -> None:
    small = {
        name
        for (name, check), row in COMMITTED.items()
        if check == "structure" and row["parameters"] <= 100e6
    }
    rows = {name: row for (name, check), row in COMMITTED.items() if check == "numeric"}
    assert small <= set(rows)
    assert [name for name in sorted(small) if not rows[name]["passed"]] == []
    assert max(rows[name]["difference"] for name in small) <= 1e-5


def test_every_family_exports_and_so_does_every_architecture_up_to_30_million() -> None:
    export = {name: row for (name, check), row in COMMITTED.items() if check == "export"}
    structure = {name: row for (name, check), row in COMMITTED.items() if check == "structure"}
    families = {row["family"] for row in structure.values()}
    assert len(families) == 98
    assert {row["family"] for row in export.values() if row["passed"]} == families
    small = {name for name, row in structure.items() if row["parameters"] <= 30e6}
    assert small <= set(export)
    failed = [name for name in small if not export[name]["passed"]]
    assert len(failed) <= 0.02 * len(small), failed
    for name, row in export.items():
        if row["passed"]:
            assert row["difference"] <= 1e-4 < row["spread"], name
            assert row["opset"] >= 18
            assert row["bytes"] > 4 * 0.2 * structure[name]["parameters"]  # some tie weights
        else:
            assert row["error"], name


def test_every_family_has_levels_and_they_are_what_timm_returns() -> None:
    levels = {name: row for (name, check), row in COMMITTED.items() if check == "levels"}
    assert len({row["family"] for row in levels.values()}) == 98
    assert [name for name, row in levels.items() if not row["passed"]] == []
    assert [row["levels"] for row in levels.values() if row["reason"]] == []
    maps = {name: row for (name, check), row in COMMITTED.items() if check == "level_maps"}
    assert len({row["family"] for row in maps.values()}) == 98
    failed = [row["error"] for row in maps.values() if not row["passed"]]
    assert [error for error in failed if "took longer" not in error] == []
    assert len(failed) <= 1
    assert max(row["difference"] for row in maps.values() if row["passed"]) <= 1e-5


def test_backbones_are_exported_with_all_levels() -> None:
    """The check has run for most families; the page says for how many."""
    rows = {name: row for (name, check), row in COMMITTED.items() if check == "level_export"}
    assert len({row["family"] for row in rows.values()}) >= 58
    assert [name for name, row in rows.items() if not row["passed"]] == []
    assert max(row["difference"] for row in rows.values()) <= 1e-4


def test_every_architecture_has_vectors_to_train() -> None:
    rows = {name: row for (name, check), row in COMMITTED.items() if check == "tuning"}
    assert set(rows) == set(timm.list_models())
    assert [name for name, row in rows.items() if not row["passed"]] == []
    assert min(row["vectors"] for row in rows.values()) > 0


def test_changes_are_trained_and_merged() -> None:
    """The check has run for nearly all families; the page says for how many."""
    rows = {name: row for (name, check), row in COMMITTED.items() if check == "tuning_merged"}
    assert len({row["family"] for row in rows.values()}) >= 97
    assert [name for name, row in rows.items() if not row["passed"]] == []
    for name, row in rows.items():
        assert row["difference"] <= max(1e-5, 2 * row.get("rounding", 0)), name
        assert row["effect"] > 100 * row["difference"], name
    assert median(row["share"] for row in rows.values()) <= 0.02


def test_the_smallest_architectures_are_one_per_family() -> None:
    names = record.smallest_of_each_family(COMMITTED)
    families = {COMMITTED[name, "structure"]["family"] for name in names}
    assert len(names) == len(families) == 98


def test_page_names_failed_checks_and_counts_what_it_leaves_out() -> None:
    rows = {key: row for key, row in COMMITTED.items() if row["family"] == "resnet"}
    for check in ("numeric", "export"):
        rows.pop(("resnet18", check), None)
    rows["resnet34", "numeric"] = {
        **rows["resnet34", "structure"], "check": "numeric", "passed": False, "error": "E: broken",
    }  # fmt: skip
    page = coverage.page(rows)
    assert "- `resnet34`, numeric: E: broken" in page
    line = next(line for line in page.splitlines() if line.startswith("| resnet18 "))
    assert line.endswith(("| ✓---- |", "| ✓--✓- |", "| ✓--✓✓ |"))
    assert "The numeric check leaves out " in page


def test_crash_fails_one_row_which_the_next_run_repeats(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"

    def kill_the_first_worker() -> None:
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.01)
        workers[0].kill()

    killer = threading.Thread(target=kill_the_first_worker)
    killer.start()
    names = ["resnet10t", "resnet18"]
    summary = record.coverage(["structure"], path, names=names, workers=1)
    killer.join()
    assert [row["name"] for row in summary.passed("structure")] == ["resnet18"]
    (failed,) = summary.failed("structure")
    assert (failed["name"], failed["error"]) == ("resnet10t", "the process ended with signal 9")

    path.write_text(path.read_text() + '{"name": "cut sho')  # as a kill leaves it
    again = record.coverage(["structure"], path, names=names, workers=1)
    assert again.failed("structure") == []
    assert again.rows["resnet18", "structure"] == summary.rows["resnet18", "structure"]


def test_hanging_worker_is_ended(tmp_path: Path) -> None:
    summary = record.coverage(
        ["structure"], tmp_path / "new" / "record.jsonl", names=["resnet18"], timeout=0.01
    )
    assert (tmp_path / "new" / "record.jsonl").is_file()
    assert "took longer than" in summary.failed("structure")[0]["error"]


def test_structural_check_fails_on_a_broken_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    resnet = timm.models.resnet.ResNet
    monkeypatch.setattr(resnet, "get_classifier", lambda self: self.conv1)
    with pytest.raises(headkit.ContractError, match="get_classifier of resnet18"):
        contract.structure("resnet18")


def test_numeric_check_fails_on_a_broken_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    resnet = timm.models.resnet.ResNet
    forward = resnet.forward
    monkeypatch.setattr(resnet, "forward", lambda self, x: 2 * forward(self, x))
    with pytest.raises(headkit.ContractError, match="changes the logits after the classifier"):
        contract.numeric("resnet18")


def test_command_line(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "record.jsonl"
    status, _, err = run("coverage", "--structure", "--only", "resnet18*", "--out", out, "--json")
    assert status == 0, err
    status, printed, err = run(
        "coverage", "--macs", "--only", "resnet18", "--max-params", "100M", "--out", out, "--json"
    )
    assert status == 0, err
    assert json.loads(printed)["passed"] == {"macs": 1}
    row = record.load(out)["resnet18", "macs"]
    assert row["gmacs"] == pytest.approx(1.82, abs=0.01)  # 1.8e9, He et al. 2015, table 1
    assert run("coverage", "--out", out)[0] == 2
    status, _, err = run("coverage", "--structure", "--only", "nothing*", "--out", out)
    assert status == 2
    assert "no architecture" in err
