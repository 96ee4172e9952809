"""What ``headkit fit`` tells its user."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from headkit.cli.options.fit import L2, Levels
from tests.backbones import SMALL
from tests.images import write_shapes

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def collapsed(tmp_path: Path) -> Path:
    """Return data whose validation images of two classes look like those of the third."""
    write_shapes(tmp_path / "data" / "train", images=6)
    write_shapes(tmp_path / "data" / "val", images=4)
    for label in ("dark", "striped"):
        folder = tmp_path / "data" / "val" / label
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "data" / "val" / "bright", folder)
    write_shapes(tmp_path / "data" / "test", images=1)
    (tmp_path / "data" / "train" / "dark" / "photo.heic").write_bytes(b"heic")
    return tmp_path / "data"


def test_summary_names_collapsed_classes_few_images_and_what_was_not_used(
    run: Run, collapsed: Path, small_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "head.safetensors"
    fit = (
        *("fit", "--backbone", SMALL, "--weights", small_weights, "--data", collapsed),
        *("--out", out, "--workers", 0),
    )
    status, text, err = run(*fit)
    assert status == 0, err
    lines = text.splitlines()
    assert "accuracy 0.3333 (95 % interval 0.1381 to 0.6094)" in lines[0]  # 4 of 12 images
    assert lines[1].startswith("validation: 12 images from a separate validation split; ")
    weak = "2 of 3 classes have a recall below half of the mean (0.33): dark 0.00, striped 0.00"
    assert f"note: {weak}" in lines
    few = "3 classes have fewer than 10 training images: bright 6, dark 6, striped 6"
    assert f"note: {few}" in lines
    assert any("the split test (3 images) is not used" in line for line in lines)
    assert any(".heic" in line and line.startswith("note: skipped") for line in lines)
    assert weak not in err  # it is said once

    status, text, err = run(*fit, "--json")
    assert status == 0, err
    result = json.loads(text)
    assert result["accuracy_interval"] == [0.1381, 0.6094]
    assert result["weak_classes"] == [
        {"label": "dark", "recall": 0.0},
        {"label": "striped", "recall": 0.0},
    ]
    assert result["few_images"][0] == {"label": "bright", "images": 6}
    assert weak in result["notes"]
    assert result["validation"] == "own"


def test_python_user_is_warned_of_collapsed_classes(
    collapsed: Path, small_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import headkit

    head = headkit.fit(SMALL, collapsed, weights=small_weights, workers=0)
    assert "dark 0.00, striped 0.00" in caplog.text
    assert "weak classes=2 (dark, striped)" in repr(head)


def test_good_head_has_no_warning(
    run: Run, shapes: Path, small_weights: Path, tmp_path: Path
) -> None:
    status, text, err = run(
        *("fit", "--backbone", SMALL, "--weights", small_weights, "--data", shapes),
        *("--out", tmp_path / "head.safetensors", "--workers", 0, "--holdout", 0.25),
    )
    assert status == 0, err
    assert text.splitlines()[1:] == [
        "validation: 6 of 24 images were held out once; the head reads the last features and "
        "act1, layer1, layer2, layer3",
        "note: 3 classes have fewer than 10 training images: bright 8, dark 8, striped 8",
    ]
    assert "WARNING" not in err


def test_summary_says_what_the_head_reads_if_l2_turns_levels_off(
    run: Run, shapes: Path, small_weights: Path, tmp_path: Path
) -> None:
    fit = ("fit", "--backbone", SMALL, "--weights", small_weights, "--data", shapes)
    status, text, err = run(*fit, "--out", tmp_path / "a.safetensors", "--workers", 0, "--l2", 0.1)
    assert status == 0, err
    assert text.splitlines()[1].endswith("held out once; the head reads the last features")
    for option in (Levels, L2):
        text = get_args(option)[1].help
        assert ("--l2" if option is Levels else "--levels auto") in text
        assert "the last features alone" in text


def test_one_output_is_singular(run: Run, small_weights: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "data")
    rows = [f"{path},{len(path.name)}.{path.stem}" for path in tmp_path.glob("data/*/*.png")]
    (tmp_path / "data.csv").write_text("\n".join(["path,label", *rows]))
    status, text, err = run(
        *("fit", "--backbone", SMALL, "--weights", small_weights, "--data", tmp_path / "data.csv"),
        *("--task", "regression", "--out", tmp_path / "a.safetensors", "--workers", 0),
    )
    assert status == 0, err
    assert ".safetensors: 1 output, " in text.splitlines()[0]


def test_test_option_is_named_where_the_data_have_no_test_split(
    run: Run, shapes: Path, collapsed: Path, small_weights: Path, tmp_path: Path
) -> None:
    fit = ("fit", "--backbone", SMALL, "--weights", small_weights, "--workers", 0)
    out = ("--out", tmp_path / "head.safetensors")
    status, _, err = run(*fit, *out, "--data", shapes, "--test", "split")
    assert status == 2
    assert "test is 'split', but" in err
    assert "has no splits: pass the test images as test (--test DATA)" in err
    assert "--split" not in err
    shutil.move(collapsed / "test", tmp_path / "apart")
    status, _, err = run(*fit, *out, "--data", collapsed, "--test", "split")
    assert "has only the splits train, val: pass the test images as test (--test DATA)" in err


def test_given_test_images_are_not_called_unused(
    run: Run, collapsed: Path, small_weights: Path, tmp_path: Path
) -> None:
    status, text, err = run(
        *("fit", "--backbone", SMALL, "--weights", small_weights, "--data", collapsed),
        *("--test", collapsed / "test", "--out", tmp_path / "a.safetensors", "--workers", 0),
    )
    assert status == 0, err
    assert "on 3 images" in text
    assert "is not used" not in text


def test_the_head_does_not_replace_the_weights(
    run: Run, collapsed: Path, small_weights: Path, tmp_path: Path
) -> None:
    weights = Path(shutil.copy(small_weights, tmp_path / "w.safetensors"))
    status, _, err = run(
        *("fit", "--backbone", SMALL, "--weights", weights, "--data", collapsed, "--out", weights)
    )
    assert status == 2
    assert "it is also an input; choose another path" in err
    assert weights.read_bytes() == small_weights.read_bytes()
