import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import headkit
from tests.backbones import SMALL

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(shapes: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the head file ``head.safetensors`` and its backbone's weights."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(small_weights, folder)
    head = headkit.fit(SMALL, shapes, weights=small_weights, workers=0)
    head.save(folder / "head.safetensors")
    return folder


def test_fit_export_predict(run: Run, shapes: Path, small_weights: Path, tmp_path: Path) -> None:
    head, model = tmp_path / "head.safetensors", tmp_path / "model.onnx"
    status, out, err = run(
        "fit", "--backbone", SMALL, "--data", shapes, "--out", head, "--weights", small_weights
    )
    assert status == 0, err
    assert re.search(r"3 classes, [\d,]+ bytes; on 24 images accuracy \d", out)
    assert "24 of 24 images" in err

    status, out, err = run("export", head, "--out", model, "--weights", small_weights, "--json")
    assert status == 0, err
    assert max(json.loads(out)["difference"].values()) < 1e-4

    images = [shapes / "dark" / "0.png", shapes / "bright" / "1.png"]
    status, out, err = run("predict", model, *images, "--top-k", 1, "--json")
    assert status == 0, err
    found = [row["predictions"][0]["label"] for row in json.loads(out)]
    assert found == ["dark", "bright"]
    status, out, err = run("predict", model, *images)
    assert re.match(r".*0\.png  dark [01]\.\d{4}  ", out)

    status, out, err = run("info", model)
    assert "form: merged" in out


def test_info_shows_a_head_and_an_architecture(run: Run, trained: Path) -> None:
    status, out, _ = run("info", trained / "head.safetensors", "--json")
    assert status == 0
    described = json.loads(out)
    assert described["label_names"] == ["bright", "dark", "striped"]
    assert described["backbone"]["source"] == "file:small.safetensors"
    status, out, _ = run("info", "resnet50")
    assert "family: resnet" in out


def test_doctor_lists_what_is_installed(run: Run) -> None:
    status, out, _ = run("doctor")
    assert status == 0
    assert "fit and export: ready" in out


def _fails(run: Run, *arguments: object) -> str:
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


def test_bad_input_is_one_line_and_the_old_file_stays(
    run: Run, shapes: Path, trained: Path, small_weights: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.safetensors"
    old.write_bytes(b"precious")
    (tmp_path / "empty").mkdir()
    fit = ("fit", "--weights", small_weights, "--out", old)
    assert "nearest: test_resnet" in _fails(run, *fit, "--backbone", "test_resnt", "--data", shapes)
    assert "no images in" in _fails(run, *fit, "--backbone", SMALL, "--data", tmp_path / "empty")
    wrong = _fails(run, *fit, "--backbone", "test_vit", "--data", shapes)
    assert "do not fit test_vit" in wrong
    assert "expected a fraction" in _fails(
        run, *fit, "--backbone", SMALL, "--data", shapes, "--holdout", 2
    )
    assert old.read_bytes() == b"precious"

    model = tmp_path / "old.onnx"
    model.write_bytes(b"precious")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((trained / "head.safetensors").read_bytes()[:-10])
    assert "cannot read head" in _fails(run, "export", cut, "--out", model)
    other = tmp_path / "other.safetensors"
    from safetensors.torch import save_file

    from tests.backbones import random_backbone

    save_file(random_backbone(seed=1).state_dict(), other)
    mismatch = _fails(
        run, "export", trained / "head.safetensors", "--out", model, "--weights", other
    )
    assert "fingerprint" in mismatch
    assert model.read_bytes() == b"precious"


@pytest.mark.parametrize("command", ["fit", "export"])
def test_unwritable_output_is_refused_before_any_work(
    run: Run, command: str, shapes: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    suffix = {"fit": ".safetensors", "export": ".onnx"}[command]
    arguments = {
        # The architecture does not exist either, but the output is checked first.
        "fit": ("--backbone", "no_such_architecture", "--data", shapes),
        "export": (trained / "head.safetensors",),
    }[command]
    out = tmp_path / "file" / f"x{suffix}"
    assert "file is a file, expected a folder" in _fails(run, command, *arguments, "--out", out)
    out = tmp_path / "new" / "x.bin"
    expected = f"its suffix is '.bin', expected '{suffix}'"
    assert expected in _fails(run, command, *arguments, "--out", out)
    assert not out.parent.exists()


def test_fit_export_and_graft_make_missing_folders(
    run: Run, shapes: Path, small_weights: Path, tmp_path: Path
) -> None:
    head, model, new = (
        tmp_path / name for name in ("a/b/head.safetensors", "c/d/m.onnx", "e/f/new.onnx")
    )
    backbone = ("--backbone", "test_resnet", "--weights", small_weights)
    assert run("fit", *backbone, "--data", shapes, "--no-cache", "--out", head)[0] == 0
    assert run("export", head, "--weights", small_weights, "--out", model)[0] == 0
    status, _, err = run("graft", model, head, "--out", new)
    assert status == 0, err
    assert new.is_file()
    before = new.read_bytes()
    refused = _fails(run, "graft", new, head, "--out", new)
    assert "it is the model itself" in refused
    assert "--overwrite" in refused
    assert "--force" in refused
    assert new.read_bytes() == before
    assert run("graft", new, head, "--out", new, "--overwrite")[0] == 0
    assert run("graft", new, head, "--out", new, "--force")[0] == 0


def test_debug_shows_the_traceback(run: Run, tmp_path: Path) -> None:
    with pytest.raises(headkit.HeadFormatError):
        run("--debug", "info", tmp_path / "none.safetensors")


def test_message_names_force_where_the_caller_has_it(run: Run, tmp_path: Path) -> None:
    fixtures = Path(__file__).parents[2] / "fixtures" / "v0_1_0"
    model, image = fixtures / "models/resnet_swappable.onnx", fixtures / "images/dark/0.png"
    own = headkit.Head.load(fixtures / "heads" / "resnet_own.safetensors")
    stranger = own.with_changes(backbone=replace(own.backbone, fingerprint="0" * 64))
    path = stranger.save(tmp_path / "stranger.safetensors")
    refused = _fails(run, "predict", model, image, "--head", path)
    assert "fingerprint 000000000000" in refused
    assert "--force" in refused
    status, out, _ = run("predict", model, image, "--head", path, "--force", "--top-k", 1)
    assert status == 0
    assert "stranger: " in out
    info = headkit.Predictor(model, threads=1).info
    with pytest.raises(headkit.BackboneMismatch, match=r"with its own backbone$"):
        info.check_backbone(stranger, force=None)
