"""Options of ``fit``, ``tune`` and ``compare`` from a file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import headkit
from tests.backbones import SMALL

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(tmp_path: Path, shapes: Path, small_weights: Path) -> Path:
    text = f"""
        backbone = "{SMALL}"
        data = {json.dumps(str(shapes))}
        weights = {json.dumps(str(small_weights))}
        img-size = 64
        levels = "last"
        l2 = [0.01, 0.1]
        no-cache = true
        workers = 0
        notes = "from a file"

        [class_weights]
        dark = 2
    """
    path = tmp_path / "fit.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_options_come_from_a_file(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"
    status, _, err = run("fit", "--config", config, "--out", out)
    assert status == 0, err
    head = headkit.Head.load(out)
    assert head.notes == "from a file"
    assert head.pretrained_cfg["input_size"] == [3, 64, 64]
    assert head.metrics["l2"] in (0.01, 0.1)
    options = (
        *("--backbone", SMALL, "--img-size", 64, "--levels", "last", "--l2", "0.01,0.1"),
        *("--class-weights", "dark=2", "--workers", 0, "--no-cache"),
    )
    lines = config.read_text().splitlines()
    data, weights = (json.loads(line.partition("=")[2]) for line in lines[2:4])
    other = tmp_path / "other.safetensors"
    status, _, err = run("fit", *options, "--data", data, "--weights", weights, "--out", other)
    assert status == 0, err
    expected = headkit.Head.load(other)
    assert all((head.tensors[name] == expected.tensors[name]).all() for name in head.tensors)


def test_the_command_line_takes_precedence(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"
    status, _, err = run("fit", "--notes", "mine", "--config", config, "--out", out, "--l2", 1)
    assert status == 0, err
    head = headkit.Head.load(out)
    assert (head.notes, head.metrics["l2"]) == ("mine", 1)


@pytest.mark.parametrize("command", ["fit", "tune", "compare"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "has the key 'epoch', but `headkit {command}` has no option --epoch"),
        ("config = 'a.toml'", "has the key 'config'"),
        ("no-cache = 1", "has no-cache = 1, expected true or false"),
        ("seed = true", "has seed = True, expected a number, a text, a list or a table"),
        ("seed", "is not a TOML file"),
    ],
)
def test_wrong_files(run: Run, tmp_path: Path, command: str, text: str, message: str) -> None:
    path = tmp_path / "options.toml"
    path.write_text(text)
    status, _, err = run(command, "--config", path)
    assert status == 2
    assert message.format(command=command) in err


def test_value_of_another_type(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("seed = 'many'\nbackbone = 'a'\ndata = 'b'\nout = 'c.safetensors'")
    status, _, err = run("fit", "--config", path)
    assert status == 2
    assert "Invalid value for '--seed'" in err


def test_missing_file(run: Run, tmp_path: Path) -> None:
    status, _, err = run("fit", "--config", tmp_path / "no.toml")
    assert status == 2
    assert "no.toml" in err
    assert "no such file" in err.lower()
