"""What ``headkit tune`` tells its user."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headkit
from headkit.adapters.tuning.tuner import Recipe
from tests.backbones import SMALL
from tests.choices import take_the_first, take_the_head

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(shapes: Path, small_weights: Path, tmp_path: Path) -> tuple[Any, ...]:
    return (
        *("tune", "--backbone", SMALL, "--weights", small_weights, "--data", shapes),
        *("--out", tmp_path / "head.safetensors", "--workers", 0, "--levels", "last"),
        *("--cache", tmp_path / "cache", "--img-size", 32),
    )


def test_result_names_the_changes_and_the_head_without_them(
    run: Run, command: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recipe, "num_steps", lambda *_: 4)
    monkeypatch.setattr("headkit.adapters.tuning.choice.choose", take_the_first)
    options = ("--method", "bias", "--rates", "0.001", "--hflip", 0, "--color-jitter", 0.1)
    status, text, err = run(*command, *options)
    assert status == 0, err
    head = headkit.Head.load(tmp_path / "head.safetensors")
    assert head.delta is not None
    assert head.delta.recipe["augmentation"]["hflip"] == 0
    assert head.delta.recipe["augmentation"]["color_jitter"] == 0.1
    (line,) = (line for line in text.splitlines() if line.startswith("tuning: "))
    values = f"{head.delta.num_values:,} values by bias at rate 0.001"
    assert line.startswith(f"tuning: {values}; the head without changes: accuracy ")
    assert line.endswith(" on the same images")
    status, text, err = run(*command, *options, "--json")
    assert json.loads(text)["tuning"]["num_values"] == head.delta.num_values


def test_result_says_that_nothing_was_gained(
    run: Run, command: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recipe, "num_steps", lambda *_: 2)
    monkeypatch.setattr("headkit.adapters.tuning.choice.choose", take_the_head)
    status, text, err = run(*command, "--method", "bias", "--rates", "0.001")
    assert status == 0, err
    assert "tuning gained nothing on held-out images, so the head has no changes" in text
    assert headkit.Head.load(tmp_path / "head.safetensors").delta is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rates", "fast"), "rates is 'fast', expected a number"),
        (("--method", "magic"), "method is 'magic', expected auto or one of"),
        (("--scale", 0), "scale is (0.0, 1.0)"),
        (("--views", 2), "No such option: --views"),
        (("--extend", "a.safetensors"), "No such option: --extend"),
    ],
)
def test_wrong_options(
    run: Run, command: tuple[Any, ...], options: tuple[Any, ...], message: str
) -> None:
    status, _, err = run(*command, *options)
    assert status == 2
    assert message in err
