import json
from typing import Any

import pytest

from headkit.benchmarks.pages import render
from headkit.benchmarks.pages.benchmarks import COST_TITLES, VERDICT_TITLES
from headkit.benchmarks.pages.registry import serving
from headkit.benchmarks.pages.wording import reword
from headkit.benchmarks.studies.peers import verdict


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ("no image", "not an image"),
        ("no image in a folder", "no image in a folder"),
        ("cut connection", "dropped connection"),
        (
            "compiling takes minutes, hence only a and b",
            "compiling takes minutes, so only a and b are compiled",
        ),
        (
            "ContractError: float32 itself is off by 2.0e-05",
            "ContractError: torch in float32 differs from float64 by 2.0e-05, so it is not a "
            "usable reference",
        ),
        (
            "differ in logits by 2e-04 of the largest value, allowed is 1e-04; no file was written",
            "differ in logits by 2e-04 times the largest value; the limit is 1e-04; no file was "
            "written",
        ),
        ("there is no GPU that torch can use", "there is no GPU that torch can use"),
    ],
)
def test_recorded_texts_are_reworded(recorded: str, expected: str) -> None:
    assert reword(recorded) == expected


def test_failed_requests_are_not_called_responses() -> None:
    result = json.loads((render.RESULTS / "serving.json").read_text())
    result["clients"]["crowd"]["statuses"] = {"200": 1234, "503": 5, "ConnectionResetError": 2}
    assert (
        "1,234 responses with status 200, 5 responses with status 503, 2 requests that failed "
        "with ConnectionResetError |"
    ) in serving(result)


def test_each_verdict_and_each_measured_cost_has_a_title() -> None:
    rows: list[dict[str, Any]] = [
        {"error": "no"},
        {"errors": {"1": "no"}, "difference": {}},
        {"errors": {"1": "no"}, "difference": {"3": 0.0}},
        {"errors": {}, "difference": {"1": 1.0}},
        {"errors": {}, "difference": {"1": 0.0}},
    ]
    assert {verdict(row) for row in rows} == VERDICT_TITLES.keys()
    growth = json.loads((render.RESULTS / "growth.json").read_text())
    costs = {cost for section in growth.values() for cost in section["slopes"]}
    assert costs == COST_TITLES.keys()
