"""The page on security shows all figures of the studies, also of those that are incomplete."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from headkit.benchmarks.pages import render, security

MACHINE = {
    "processor": "EPYC",
    "cores": 2,
    "packages": {"torch": "2.14.1", "timm": "1.0.31", "onnxruntime": "1.32.0"},
}
OTHER = {**MACHINE, "processor": "Xeon", "cores": 4}
FUZZING = {
    "head_file": {
        "inputs": 10_000,
        "seed": 0,
        "accepted": 1234,
        "refused": 8766,
        "raw_errors": 0,
        "hangs": 0,
        "over_memory": 0,
        "slowest_seconds": 0.4567,
        "peak_mb": 321.9,
        "machine": MACHINE,
    },
    "http_body": {
        "inputs": 10_000,
        "seed": 7,
        "accepted": 0,
        "refused": 9997,
        "raw_errors": 1,
        "hangs": 1,
        "over_memory": 1,
        "slowest_seconds": 5.01,
        "peak_mb": 1234.5,
        "machine": OTHER,
    },
}
KILLS = {
    "local": {
        "kills": {"publish": 600, "gc": 400},
        "acknowledged": 20_123,
        "lost": 0,
        "torn": 0,
        "gaps": 0,
        "gaps_of_killed_publishers": 12,
        "problems": [],
        "seconds": 3600,
        "machine": MACHINE,
    },
    "s3": {
        "kills": {"publish": 200},
        "acknowledged": 4321,
        "lost": 3,
        "torn": 2,
        "gaps": 1,
        "gaps_of_killed_publishers": 0,
        "problems": ["x"],
        "seconds": 60,
        "machine": MACHINE,
        "proxy": {"delayed": 500, "failed": 250},
    },
}
SERVING = {
    "hanging_store": {
        "seconds_hanging": 60,
        "usual_p99_ms": 100.0,
        "p99_ms": 150.0,
        "healthz_max_ms": 111.3,
        "heads_max_ms": 267.4,
        "recovery_seconds": 1.25,
        "machine": MACHINE,
    },
    "hostile_clients": {
        "seconds": 60,
        "half_open": 300,
        "slow_bodies": 60,
        "uploads": 40,
        "honest_requests": 1000,
        "honest_answers": 987,
        "honest_share": 0.987,
        "peak_mb": 654.3,
        "machine": MACHINE,
    },
}


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in rows}) == 1, "rows of one table have equally many cells"
    return rows


def test_fuzzing_shows_each_input_and_what_went_wrong() -> None:
    text = security.fuzzing(FUZZING)
    header, _, first, second = _rows(text)
    expected = ["10,000", "1,234", "8,766", "0", "0", "0", "0.46 s", "322 MB"]
    assert first == ["head file", *expected]
    assert second[4:7] == ["1", "1", "1"]
    assert header[4:7] == ["other errors", "hung", "over 1 GB"]
    assert (
        "20,000 inputs were tried (seeds 0 and 7). 3 times, one of them gave another error" in text
    )
    assert "(processor: EPYC, 2 cores). This holds for head file." in text
    good = security.fuzzing({"head_file": FUZZING["head_file"]})
    assert "(seed 0). None of them gave another error, hung or took over 1 GB." in good
    assert "(processor: Xeon, 4 cores). This holds for body of a request to the server." in text


def test_kills_show_what_was_lost() -> None:
    text = security.kills(KILLS)
    _, _, local, s3 = _rows(text)
    assert local == [
        *("a directory", "1,000 (publish 600, gc 400)", "20,123", "0", "0", "0", "12", "0"),
    ]
    assert s3 == ["an S3 endpoint", "200 (publish 200)", "4,321", "3", "2", "1", "0", "1"]
    assert "a proxy that delayed 500 requests and let 250 fail." in text
    assert text.splitlines()[-1].startswith("Measured with torch 2.14.1")
    assert text.splitlines()[-2] == ""


def test_serving_shows_both_tests() -> None:
    text = security.serving(SERVING)
    rows = [row[1] for row in _rows(text)[2:]]
    assert rows == [
        "p99 150 ms; usually 100 ms (1.50 times as long)",
        "111 ms and 267 ms",
        "1.25 s",
        "987 of 1,000 answered (98.7 %)",
        "654 MB",
    ]


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (security.fuzzing, FUZZING),
        (security.kills, KILLS),
        (security.serving, SERVING),
    ],
)
def test_each_section_stands_alone_and_none_says_nothing(function: Any, result: Any) -> None:
    assert function({}) == ""
    whole = function(result)
    for name, section in result.items():
        part = function({name: section})
        assert re.search(r"^Measured with .*\)\.$", part, re.MULTILINE)
        assert {*map(tuple, _rows(part))} < {*map(tuple, _rows(whole))}


def test_missing_result_leaves_its_block_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    text = "a\n<!-- generated: security/kills -->\nold\n<!-- end -->\nb\n"
    empty = render.render(text)
    assert empty == "a\n<!-- generated: security/kills -->\n<!-- end -->\nb\n"
    (tmp_path / "security").mkdir()
    (tmp_path / "security" / "kills.json").write_text(json.dumps(KILLS))
    assert "| a directory | 1,000" in render.render(empty)
