"""The page on accuracy shows means, differences and tests, and what was not measured."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from headkit.benchmarks.pages import accuracy, level_costs
from headkit.benchmarks.studies.accuracy.cells import CLASSES, FOREIGN, cells

LITE0 = "tf_efficientnet_lite0"
MACHINE = {
    "machine": "0a",
    "description": {
        "processor": "EPYC",
        "cores": 2,
        "packages": {"torch": "2.14.1", "timm": "1.0.31"},
    },
}


def _row(name: str, size: int | str, draw: int, score: float, **values: Any) -> dict[str, Any]:
    place = {"set": name, "backbone": LITE0, "images_per_class": size, "draw": draw}
    return {**place, "score": score, "cpu_seconds": 1.0, "machine": "0a", **values}


def _write(folder: Path, contender: str, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row) for row in [MACHINE, *rows]]
    (folder / f"{contender}.jsonl").write_text("\n".join(lines) + "\n")


def _row_of(page: str, title: str, size: str) -> list[str]:
    section = page.split(f"### {title}")[1].split("###")[0]
    return next(
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith(f"| {LITE0} | {size} |")
    )


def test_cells_show_mean_standard_error_and_draws(tmp_path: Path) -> None:
    scores = [0.5, 0.6, 0.9]
    _write(tmp_path, "last", [_row("mnist", 20, draw, score) for draw, score in enumerate(scores)])
    _write(tmp_path, "networks", [_row("mnist", 20, 0, 0.75, rate=1e-3)])
    row = _row_of(accuracy.page(tmp_path), "MNIST", "20")
    mean = 2 / 3
    error = math.sqrt(sum((one - mean) ** 2 for one in scores) / 2 / 3)
    assert row[2] == f"0.667 ± {error:.3f} (3 draws)"
    assert row[-2] == "0.750 (1 draw)"
    assert [*row[3:-2], row[-1]] == ["not measured yet"] * 6


def test_summary_compares_the_draws_that_both_have(tmp_path: Path) -> None:
    last = [_row("digits", 5, draw, 0.8) for draw in range(20)]
    last += [_row("digits", 20, draw, 0.9) for draw in range(20)]
    levels = [_row("digits", 5, draw, 0.85 + draw / 1000) for draw in range(20)]
    levels += [_row("digits", 20, draw, 0.9 + (-1) ** draw / 100) for draw in range(20)]
    networks = [_row("digits", 5, 0, 0.88, rate=1e-3), _row("digits", 20, 0, 0.90, rate=3e-4)]
    for name, rows in (("last", last), ("levels", levels), ("networks", networks)):
        _write(tmp_path, name, rows)
    page = accuracy.page(tmp_path)
    line = next(line for line in page.splitlines() if line.startswith("| levels | -"))
    planned = len(cells(CLASSES))
    network, reference = (cell.strip() for cell in line.strip("|").split("|")[1:])
    assert network == f"-1.0 points; better in 1 of 2 cells ({planned} are planned)"
    assert "significantly (p < 0.05) better in 1 and worse in 0 of 2" in reference
    assert "Of 2 cells, the learning rate of the network is 0.0003 in 1 and 0.001 in 1." in page


def test_tuning_is_compared_with_the_head_and_with_the_network(tmp_path: Path) -> None:
    scores = {
        # The network is 0.1 better, and tuning closes 90 % of that.
        ("blended", 20): {"levels": [0.8, 0.82], "networks": [0.9, 0.92], "tuned": [0.89, 0.91]},
        # The network is better in the mean, but not by more than the standard error.
        ("digits", 20): {"levels": [0.9, 0.8], "networks": [0.8, 0.91], "tuned": [0.9, 0.8]},
        # One draw has no standard error.
        ("mnist", 5): {"levels": [0.5], "networks": [0.9], "tuned": [0.4]},
        # Tuning is clearly worse.
        ("mnist", 20): {"levels": [0.9, 0.9], "networks": [0.8, 0.8], "tuned": [0.8, 0.81]},
    }
    for contender in ("levels", "networks", "tuned"):
        rows = [
            _row(name, size, draw, score, rate=1e-3, chosen="lora at rate 0.01")
            for (name, size), of in scores.items()
            for draw, score in enumerate(of[contender])
        ]
        _write(tmp_path, contender, rows)
    section = accuracy.page(tmp_path).split("## Tuning")[1].split("## ")[0]
    (line,) = (one for one in section.splitlines() if one.startswith("| blended"))
    assert line.endswith("| 0.910 ± 0.010 (2 draws) | lora at rate 0.01 |")
    planned = len(cells((*CLASSES, *FOREIGN)))
    assert f"4 of {planned} cells are measured, 3 of them in two draws or more." in section
    assert "In 1 of these, tuning is worse than the head" in section
    assert "In 1, the network is better than the head" in section
    assert "tuning closes 90 % of the difference" in section


def test_p_value_is_that_of_the_signs_of_all_draws() -> None:
    rising = [0.01 * number for number in range(1, 21)]
    assert accuracy.p_value(rising) == pytest.approx(2.0**-20)
    assert accuracy.p_value([-one for one in rising]) == pytest.approx(1)
    assert accuracy.p_value([0.0] * 20) == 1


def test_page_without_results_says_so(tmp_path: Path) -> None:
    page = accuracy.page(tmp_path)
    assert page.count("### ") == 7
    assert _row_of(page, "Grades of solar cells", "all")[2:] == ["not measured yet"] * 8
    assert "Measured with" not in page
    assert not any(character in page for character in ("nan", "None"))


def test_time_is_the_median_over_the_sets(tmp_path: Path) -> None:
    seconds = [1.0, 2.0, 4.0, 8.0]
    rows = [_row(name, 5, 0, 0.5, cpu_seconds=t) for name, t in zip(CLASSES, seconds, strict=True)]
    _write(tmp_path, "last", rows)
    slow = [{**row, "cpu_seconds": 100 * row["cpu_seconds"], "rate": 1e-3} for row in rows]
    _write(tmp_path, "networks", slow[:3])
    page = accuracy.page(tmp_path)
    times = page.split("## Time")[1]
    assert "| 5 | 3.0 s |" in times
    assert times.splitlines()[4].endswith("| not measured yet |")
    assert "the time of a network is 100 times that of a head on the last features." in times
    assert "Measured with torch 2.14.1 and timm 1.0.31 (processor: EPYC, 2 cores)." in page


def test_intervals_are_counted_and_their_bias_is_the_mean_error(tmp_path: Path) -> None:
    row = {"images": 100, "measured": 100, "accuracy": 0.7}
    truths = [0.7, 0.69, 0.71, 0.57, 0.83, 0.692, 0.7, 0.7]
    lines = [json.dumps({**row, "draw": draw, "truth": one}) for draw, one in enumerate(truths)]
    (tmp_path / "intervals.jsonl").write_text("\n".join(lines), encoding="utf-8")
    page = accuracy.page(tmp_path)
    assert "| 100 | 8 | 75.0 % | +0.10 ± 2.47 points |" in page
    assert "| 1,000 | 0 | not measured yet | not measured yet |" in page


def test_costs_of_levels_are_ratios(tmp_path: Path) -> None:
    path = tmp_path / "levels.json"
    assert level_costs.tables(path).count("not measured yet | not measured yet |") == 8
    row = {"architecture": "resnet50", "batch": 16, "ratio": 1.0214}
    section = {"rows": [row], "machine": MACHINE["description"]}
    path.write_text(json.dumps({"outputs": section}), encoding="utf-8")
    tables = level_costs.tables(path)
    assert "| resnet50 | 16 | 1.021 | not measured yet |" in tables
    assert tables.count("not measured yet | not measured yet |") == 7
    assert "Measured with torch 2.14.1" in tables
